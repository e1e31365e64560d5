"""A classifier that works only on pictures edited by a key (arXiv 2405.16285)."""
