"""Training data: configuration, scanning, captions, aspect-ratio buckets, augmentation, caches, batches."""
