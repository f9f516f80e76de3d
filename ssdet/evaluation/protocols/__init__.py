"""Protocols: ways to compute a score from predictions."""
