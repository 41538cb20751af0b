"""Layouts of whole models: single files in the Stability layout and Diffusers folders, read and written."""
