"""What the Stable Diffusion families share: a U-Net on the latents of a VAE, conditioned by CLIP text encoders."""
