"""Attacks that reconstruct a client's records from the update that it shares in federated learning; pure torch."""
