"""Optimizers, learning rates and their schedules, and the EMA of the weights."""
