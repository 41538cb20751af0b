"""Models: loading, saving, converting and running them; Stable Diffusion 1.x and 2.x."""
