"""BiDO: hidden layers that depend little on the picture and much on the label (arXiv 2206.05483)."""
