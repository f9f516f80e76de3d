"""Errors that end the run of a study before all its stages are done."""

from collections.abc import Mapping


class StagesFailed(RuntimeError):
    """Some stages failed; `errors` maps their ids to what was raised."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__("\n".join(f"{stage}: {error}" for stage, error in errors.items()))
        self.errors = dict(errors)


class BudgetSpent(RuntimeError):
    """The budget was spent before all stages had run."""
