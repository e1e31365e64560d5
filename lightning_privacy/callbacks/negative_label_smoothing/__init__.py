"""Label smoothing with a factor that may be negative (arXiv 2310.06549)."""
