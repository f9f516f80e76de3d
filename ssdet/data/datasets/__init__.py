"""Manifests of annotated videos, one reader for each format, and the Moving Shapes data set."""
