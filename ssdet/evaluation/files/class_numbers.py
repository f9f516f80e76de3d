"""Mapping from class labels of a detection file, names or numbers, to annotated classes."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ssdet.evaluation.files.kinds import UnusableFile

FIRST_NUMBER: Mapping[str, int] = {
    "charades": 0, "segments": 0, "moving_shapes": 0, "multithumos": 1,
}  # fmt: skip
"""Number of the first class in annotation formats that number their classes."""
THUMOS14: Mapping[int, str] = {
    7: "BaseballPitch", 9: "BasketballDunk", 12: "Billiards", 21: "CleanAndJerk",
    22: "CliffDiving", 23: "CricketBowling", 24: "CricketShot", 26: "Diving", 31: "FrisbeeCatch",
    33: "GolfSwing", 36: "HammerThrow", 40: "HighJump", 45: "JavelinThrow", 51: "LongJump",
    68: "PoleVault", 79: "Shotput", 85: "SoccerPenalty", 92: "TennisSwing", 93: "ThrowDiscus",
    97: "VolleyballSpiking",
}  # fmt: skip
"""Classes by number in the detection files of the THUMOS'14 kit (its `detclasslist.txt`)."""
_NUMBER = re.compile(r"(c?)(\d{1,9})(?:\.0+)?")


class ClassCodes(NamedTuple):
    """Classes by the labels of a file."""

    codes: dict[str, int]
    """Class from 0 by label; without labels of other classes."""
    rule: str
    """How labels were interpreted, for messages."""


def class_codes(
    labels: Collection[str], classes: Sequence[str], format: str = "", first: int | None = None
) -> ClassCodes:
    """Classes of the labels of a file.

    1. If any label is the name of a class, labels are names.
    2. Otherwise they are numbers, which start at ``first`` if that is given.
    3. With the 20 classes of THUMOS'14 and a number above 20 they are the kit's (7 to 97).
    4. With a 0 and no K (the number of classes) they start at 0, with a K and no 0 at 1.
    5. With neither they start as in the annotation, if it numbers its classes (`FIRST_NUMBER`).

    Raises UnusableFile for ambiguous numbers.
    """
    named = {name: k for k, name in enumerate(classes)}
    matches = {label: match for label in labels if (match := _NUMBER.fullmatch(label))}
    if not matches or not named.keys().isdisjoint(labels):
        return ClassCodes({label: named[label] for label in labels if label in named}, "names")
    numbers = {label: int(match[2]) for label, match in matches.items()}
    if any(match[1] for match in matches.values()):
        first = 0  # Charades' c000 to c156
    if first is None and _numbered_by_kit(numbers.values(), classes):
        kit = {label: named[THUMOS14[n]] for label, n in numbers.items() if n in THUMOS14}
        return ClassCodes(kit, "numbers of the THUMOS'14 kit")
    if first is None:
        first = _first_number({*numbers.values()}, len(classes), FIRST_NUMBER.get(format))
    codes = {label: n - first for label, n in numbers.items() if 0 <= n - first < len(classes)}
    return ClassCodes(codes, f"numbers from {first}")


def _numbered_by_kit(numbers: Collection[int], classes: Sequence[str]) -> bool:
    if {*classes} != {*THUMOS14.values()}:
        return False
    return any(n > len(classes) and n in THUMOS14 for n in numbers)


def _first_number(numbers: Collection[int], classes: int, own: int | None) -> int:
    zero, last = 0 in numbers, classes in numbers
    if zero != last:
        return 0 if zero else 1
    if zero or own is None:
        count = "both 0 and" if zero else "neither 0 nor"
        raise UnusableFile(
            f"its classes are numbers, {count} {classes} among them, of {classes} classes: count "
            "them from 0 or from 1 with --first-class, or write names"
        )
    return own
