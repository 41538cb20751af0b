"""Latents and text encoder outputs cached on disk, and legacy .npz latents."""
