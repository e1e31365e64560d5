"""Attacks on models that work only on pictures edited with a key; pure torch."""
