"""Noise on the gradient that is shared (arXiv 1906.08935, section on defences)."""
