"""Saved weights and states: names, retention, metadata, resume, uploads to the Hugging Face Hub."""
