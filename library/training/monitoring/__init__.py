"""Monitoring a run: loss history, trackers (TensorBoard), and advice when memory runs out."""
