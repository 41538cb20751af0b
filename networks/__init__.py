"""Adapter networks for --network_module, and stand-alone tools on their weight files."""
