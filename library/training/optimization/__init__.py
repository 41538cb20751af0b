"""Optimizers, learning rates, learning-rate schedules, and the EMA of the trained weights."""
