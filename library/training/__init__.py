"""Training: the loop, its options, and what it is put together from, each in a sub-package."""
