"""Choices that options of commands name; importing them loads no framework."""

from typing import Literal

Method = Literal["mean_probability", "mean_logit", "rank_mean", "weighted"]
"""How the scores of an ensemble's members are combined."""
Videos = Literal["equal", "common"]
"""Whether members of an ensemble must have the same videos, or their common ones are combined."""
