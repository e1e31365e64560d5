"""Adapters to real federated engines (Flower, NVIDIA FLARE): what stays with a client, and what may leave.

Aggregation, transport and rounds are the engines'. Here are the client's side of a round with Lightning, the private state
that outlives it, and the check of everything that is about to leave.
"""
