"""The page of a run: its record, curves, sample images and files as one HTML file; and the page that compares runs."""
