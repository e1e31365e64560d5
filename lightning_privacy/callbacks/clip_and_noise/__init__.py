"""Clipped gradients with Gaussian noise, in the manner of DP-SGD and without its accounting (arXiv 1607.00133)."""
