"""From images in buckets to batches: the plan of an epoch, items, the loader, held-out images."""
