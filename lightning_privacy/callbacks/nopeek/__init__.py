"""NoPeek: a split layer that is little correlated with the picture (arXiv 2008.09161)."""
