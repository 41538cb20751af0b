"""The page of a run: its record, curves, sample images and files as one HTML file."""
