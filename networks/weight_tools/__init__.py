"""What the stand-alone tools on LoRA weight files do: check, resize, merge, extract."""
