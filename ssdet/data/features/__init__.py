"""Stored features of videos and object detections."""
