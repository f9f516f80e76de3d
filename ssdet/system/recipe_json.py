"""Conversion of recipes (frozen dataclasses) to and from JSON values, the source of stage ids."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

ADDED_LATER = {"added_later": True}
"""Metadata of a field that was added after a release: at its default it is left out of the JSON, so
that ids of finished stages do not change."""
EXCLUDED_FROM_ID = {"excluded_from_id": True}
"""Metadata of a field that does not change results: it is left out of the JSON."""


def named_by(name_of: Callable[[str], str]) -> dict[str, Any]:
    """Metadata of a field that may be a path: its JSON is `name_of(value)`, which does not depend
    on the file's folder."""
    return {"named_by": name_of}


Recipe = TypeVar("Recipe")
_ADAPTERS: dict[type, "TypeAdapter[Any]"] = {}


def to_json(recipe: Any) -> dict[str, Any]:
    """Recipe as JSON values, without fields that are `ADDED_LATER` and at their default, or
    `EXCLUDED_FROM_ID`.

    A file is identified by its content, not by its path (`named_by`); FileNotFoundError where it
    is missing.
    """
    values = _adapter(type(recipe)).dump_python(recipe, mode="json")
    _reduce(recipe, values)
    return values


def _adapter(kind: type) -> "TypeAdapter[Any]":
    """Cached: a plan has thousands of recipes of few types, and building an adapter is slow."""
    from pydantic import TypeAdapter

    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _reduce(recipe: Any, values: dict[str, Any]) -> None:
    for entry in fields(recipe):
        value = getattr(recipe, entry.name)
        at_default = entry.metadata.get("added_later") and value == entry.default
        if at_default or entry.metadata.get("excluded_from_id"):
            del values[entry.name]
        elif name_of := entry.metadata.get("named_by"):
            values[entry.name] = name_of(value)
        elif is_dataclass(value):
            _reduce(value, values[entry.name])


def from_json(kind: type[Recipe], values: Mapping[str, Any]) -> Recipe:
    """Recipe from `to_json` values; ValueError names unknown or ill-typed fields."""
    recipe: Recipe = _adapter(kind).validate_python(values)
    if unknown := _unknown(asdict(recipe), values):  # type: ignore[call-overload]
        raise ValueError(f"{kind.__name__} has no field {', '.join(unknown)}")
    return recipe


def _unknown(fields_of: Mapping[str, Any], values: Mapping[str, Any], at: str = "") -> list[str]:
    unknown = []
    for name, value in values.items():
        if name not in fields_of:
            unknown.append(at + name)
        elif isinstance(value, Mapping) and not name.endswith("options"):
            unknown += _unknown(fields_of[name], value, f"{at}{name}.")
    return unknown
