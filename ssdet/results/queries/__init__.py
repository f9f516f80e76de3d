"""Queries of a store: index, runs, comparison, ensembles."""
