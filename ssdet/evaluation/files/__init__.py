"""Files of predictions of other tools and of official evaluations."""
