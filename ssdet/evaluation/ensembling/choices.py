"""Literal types of ensemble options, importable without loading a framework."""

from typing import Literal

Method = Literal["mean_probability", "mean_logit", "rank_mean", "weighted"]
"""How the members' scores are combined."""
Videos = Literal["equal", "common"]
"""Whether members must have the same videos, or their common ones are combined."""
