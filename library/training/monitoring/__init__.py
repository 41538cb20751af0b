"""Watching a run: trackers of its curves and pictures, and their options."""
