"""Weights from files: layouts, published weights, download, import."""
