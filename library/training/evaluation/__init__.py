"""Evaluation during training: sample images and the validation loss."""
