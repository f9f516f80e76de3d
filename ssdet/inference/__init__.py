"""Scores and features of every frame of whole videos, in sliding windows."""
