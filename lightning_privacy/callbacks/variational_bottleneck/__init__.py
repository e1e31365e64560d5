"""The variational information bottleneck at a hidden layer (arXiv 2009.05241 and 1612.00410)."""
