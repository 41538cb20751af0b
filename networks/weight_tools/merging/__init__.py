"""Merges LoRAs into one, and into the weights of a model."""
