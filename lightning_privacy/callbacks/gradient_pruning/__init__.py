"""Only the largest entries of a gradient are shared (arXiv 1906.08935, section on defences)."""
