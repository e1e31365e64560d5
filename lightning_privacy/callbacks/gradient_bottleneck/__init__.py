"""A random bottleneck before the head, so that gradients depend on an unknown draw (arXiv 2108.04725)."""
