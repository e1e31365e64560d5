"""Adversarial inversion training: a model and a decoder that play against each other (CVPR 2022, arXiv 1909.04126)."""
