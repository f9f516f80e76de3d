"""Ensembles of prediction sets: alignment, combination, selection of members."""
