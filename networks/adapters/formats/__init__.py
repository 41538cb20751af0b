"""LoRA files in the forms of other programs, read as ours and written."""
