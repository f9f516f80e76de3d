"""Names with values as a command line gives them: `--where augment=mixup seed=0`."""

import json
from collections.abc import Sequence
from typing import Any


def conditions(texts: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
    """Values by name, numbers and words told apart; ValueError for what is not NAME=VALUE."""
    return dict(_condition(text, columns) for text in texts)


def _condition(text: str, columns: Sequence[str]) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found:
        raise ValueError(f"{text}: expected NAME=VALUE; names: {', '.join(columns)}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
