"""The model family Stable Diffusion XL."""
