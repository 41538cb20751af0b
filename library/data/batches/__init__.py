"""From images in buckets to batches: the plan of an epoch, items, the dataloader, held-out images (validation)."""
