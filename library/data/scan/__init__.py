"""Scans for images and captions: folders, metadata files, the index of an earlier scan (`cache_info`)."""
