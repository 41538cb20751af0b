"""Stand-alone tools, started as `python -m library.tools.NAME`."""
