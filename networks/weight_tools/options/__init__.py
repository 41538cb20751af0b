"""Options of the tools on LoRA weight files, and what they are read into. Imports no torch."""
