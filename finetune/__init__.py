"""Stand-alone scripts that caption and tag images and make metadata files: one file each, run by name."""
