"""Adapter networks for --network_module: LoRA."""
