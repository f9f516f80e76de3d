"""Proof bundles: writing and checking."""
