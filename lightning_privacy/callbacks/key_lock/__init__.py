"""Normalisation layers whose scale and shift a client keeps to itself, by a key and a lock (arXiv 2305.04095)."""
