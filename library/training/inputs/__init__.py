"""Inputs of the denoiser for a batch: latents and text-encoder outputs, cached or encoded on the fly."""
