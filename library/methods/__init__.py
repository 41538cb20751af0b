"""Training methods: LoRA and other adapters, full fine-tuning, textual inversion."""
