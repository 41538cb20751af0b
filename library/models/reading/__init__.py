"""Reads whole models: what their small files say, their parts and tokenizers, what they consist of."""
