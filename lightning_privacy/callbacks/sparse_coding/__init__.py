"""Sparse-coding layers in place of the first convolutions (arXiv 2403.14772)."""
