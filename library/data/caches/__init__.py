"""Cached latents and cached text encoder outputs on disk."""
