"""Structural checks: what a model's outputs and its split say by themselves, before any attack is fitted."""
