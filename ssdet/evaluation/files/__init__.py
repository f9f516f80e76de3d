"""Prediction files of other tools and of official evaluations."""
