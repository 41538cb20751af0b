"""Image files: headers, decoding, resizing, colours, augmentations."""
