"""Models: loading, saving, converting and running them; Stable Diffusion 1.x, 2.x and XL."""
