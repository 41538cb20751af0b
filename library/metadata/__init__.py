"""Metadata files of the scripts in finetune/: merging captions and tags, cleaning them, latents for training."""
