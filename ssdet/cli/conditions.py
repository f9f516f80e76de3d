"""Conditions on runs as a command line gives them: `--where augment=mixup seed=0`."""

import json
from collections.abc import Sequence
from typing import Any


def conditions(texts: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
    """Values by column, numbers and words told apart; ValueError for what is not COLUMN=VALUE."""
    return dict(_condition(text, columns) for text in texts)


def _condition(text: str, columns: Sequence[str]) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found:
        raise ValueError(f"--where {text}: expected COLUMN=VALUE; columns: {', '.join(columns)}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
