"""Protocols: how predictions become a score, one file each."""
