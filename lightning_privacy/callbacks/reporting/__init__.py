"""Callbacks that tell what a run does: plain progress lines, charts, step time, a stop at a loss that is no number."""
