"""Attacks that reconstruct a model's inputs from what it computes of them; pure torch."""
