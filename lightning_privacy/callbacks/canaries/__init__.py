"""The audit of planted canaries."""
