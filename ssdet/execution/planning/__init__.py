"""Time, cost and simulated clusters of a plan, before it runs."""
