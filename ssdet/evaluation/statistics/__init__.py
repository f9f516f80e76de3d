"""Uncertainty of scores and of their differences."""
