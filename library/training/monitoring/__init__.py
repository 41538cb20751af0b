"""Watching a run: trackers of its curves and images, and their options."""
