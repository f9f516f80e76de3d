"""Weights from files: layouts, published weights, download and import."""
