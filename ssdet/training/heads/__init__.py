"""Training of heads on stored features and of graph networks on detections."""
