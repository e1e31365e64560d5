"""Audits: attacks on a model during or after training. They change nothing in it."""
