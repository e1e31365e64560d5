"""Noise on a hidden layer's output, in training and at inference (arXiv 2104.05743)."""
