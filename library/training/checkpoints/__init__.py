"""Checkpoints: saved weights and states, their names, retention, metadata, resuming, and uploads to the Hub."""
