"""Recipes as JSON: fields added later, excluded fields, names of files."""

from dataclasses import dataclass, field

import pytest

from ssdet.system.recipe_json import ADDED_LATER, EXCLUDED_FROM_ID, from_json, named_by, to_json


@dataclass(frozen=True)
class Inner:
    depth: int = 1
    extra: str = field(default="off", metadata=ADDED_LATER)


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    weights: str = field(default="", metadata=named_by(str.upper))
    color: str = field(default="red", metadata=EXCLUDED_FROM_ID)


def test_a_field_added_later_shows_only_where_it_is_not_at_its_default() -> None:
    assert to_json(Inner()) == {"depth": 1}
    assert to_json(Outer(Inner(extra="on")))["inner"] == {"depth": 1, "extra": "on"}
    assert from_json(Inner, {"depth": 1}) == Inner()


def test_excluded_fields_and_names_of_files() -> None:
    assert to_json(Outer(weights="file", color="blue")) == {
        "inner": {"depth": 1}, "weights": "FILE",
    }  # fmt: skip


def test_unknown_fields_are_named_with_their_path() -> None:
    with pytest.raises(ValueError, match=r"Outer has no field inner\.dept"):
        from_json(Outer, {"inner": {"dept": 2}})
