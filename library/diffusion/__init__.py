"""Diffusion maths: noise schedule, noise, timesteps, loss and loss weights, as pure functions."""
