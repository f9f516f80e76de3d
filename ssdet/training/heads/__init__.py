"""Heads on stored features, graph networks on detections, and the linear probe."""
