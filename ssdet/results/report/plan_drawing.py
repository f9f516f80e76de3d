"""Drawing of a plan: arms are rows, stages boxes; seeds share a box, arms share stages."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from ssdet.results.report.stage_entries import labels
from ssdet.studies.graph.identity import Stage
from ssdet.studies.graph.lineage import ancestry
from ssdet.studies.graph.plan import Plan
from ssdet.system.recipe_json import to_json

LABEL, BOX, COLUMN, HEIGHT, LANE = 200, 158, 196, 24, 30
"""Widths of an arm's name, of a box, of a column; height of a box and of a lane, in pixels."""
LETTERS = 25
"""Of a line of an arm's name."""

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Node:
    """Stages that differ in seeds only."""

    kind: str
    stages: tuple[str, ...]
    arms: tuple[str, ...]
    """Labels of the arms that use it, other than through an ensemble."""
    parents: tuple[int, ...]
    """Indices in the list of nodes, all smaller than this node's."""
    column: int
    row: int
    """Index of the first of these arms."""

    @property
    def shared(self) -> bool:
        return len(self.arms) > 1

    @property
    def text(self) -> str:
        times = f" ×{len(self.stages)}" if len(self.stages) > 1 else ""
        return f"{self.kind}{times}" + (f", {len(self.arms)} arms" if self.shared else "")


@dataclass(frozen=True)
class Box:
    """A node and the top left corner of its box."""

    node: Node
    x: int
    y: int


@dataclass(frozen=True)
class Label:
    """An arm's name, and the missing network of an arm without boxes."""

    text: str
    y: int
    """Middle of its lanes."""
    needs: str = ""

    @property
    def lines(self) -> list[str]:
        return wrap(self.text, LETTERS, max_lines=2, placeholder=" …", break_long_words=True)


@dataclass(frozen=True)
class Drawing:
    """Boxes, connecting lines and names, in pixels."""

    width: int
    height: int
    labels: tuple[Label, ...]
    boxes: tuple[Box, ...]
    lines: tuple[str, ...]
    """SVG paths, from right to left side."""
    rules: tuple[int, ...]
    """Vertical positions between arms."""
    left: int = LABEL
    """Left edge of the first column of boxes."""


def nodes(plan: Plan) -> list[Node]:
    """The stages of a plan without their seeds, parents first."""
    keys: dict[str, Key] = {}
    stages: dict[Key, list[Stage]] = {}
    for name, stage in plan.stages.items():
        keys[name] = _key(stage, keys)
        stages.setdefault(keys[name], []).append(stage)
    users: dict[Key, dict[str, int]] = {key: {} for key in stages}
    names, columns = labels(plan.study), _columns(plan)
    for row, arm in enumerate(plan.study.arms):
        for run in plan.of(arm.name):
            for end in filter(None, (run.predict, run.probe)):
                for stage in [end] if end.kind == "ensemble" else ancestry(end):
                    users[keys[stage.id]].setdefault(names[arm.name], row)
    indices = {key: index for index, key in enumerate(stages)}
    result = []
    for key, group in stages.items():
        parents = dict.fromkeys(indices[keys[p.id]] for stage in group for p in stage.parents)
        ids = tuple(stage.id for stage in group)
        column, row = columns[group[0].id], min(users[key].values())
        result.append(Node(group[0].kind, ids, tuple(users[key]), tuple(parents), column, row))
    return result


def _key(stage: Stage, keys: Mapping[str, Key]) -> Key:
    """Key that is equal for stages that differ in their own and their parents' seeds only."""
    recipe = json.dumps(_seedless(to_json(stage.recipe)), sort_keys=True)
    return stage.kind, recipe, frozenset(keys[parent.id] for parent in stage.parents)


def _seedless(values: Any) -> Any:
    if not isinstance(values, Mapping):
        return values
    return {name: _seedless(value) for name, value in values.items() if name != "seed"}


def _columns(plan: Plan) -> dict[str, int]:
    """Column by stage, counted from the right by the number of later stages; a probe is in the
    column of the first fine-tuning."""
    after: dict[str, int] = {}
    for name, stage in reversed(plan.stages.items()):
        after.setdefault(name, 0)
        if stage.kind != "probe":
            for parent in stage.parents:
                after[parent.id] = max(after.get(parent.id, 0), after[name] + 1)
    last = max(after.values(), default=0)
    columns = {name: last - later for name, later in after.items()}
    tuned = [columns[name] for name, stage in plan.stages.items() if stage.kind == "finetune"]
    for name, stage in plan.stages.items():
        if stage.kind == "probe":
            columns[name] = min(tuned, default=last)
    return columns


def draw(plan: Plan, nodes: list[Node]) -> Drawing:
    """Layout of the drawing; a box is in the row of the first arm that uses it."""
    lanes = 2 if any(node.kind == "probe" for node in nodes) else 1
    height = lanes * LANE + 14
    boxes = [
        Box(
            node,
            LABEL + node.column * COLUMN,
            node.row * height + 10 + (LANE if node.kind == "probe" else 0),
        )
        for node in nodes
    ]
    names = labels(plan.study)
    titles = tuple(
        Label(names[arm.name], row * height + height // 2, plan.missing(arm))
        for row, arm in enumerate(plan.study.arms)
    )
    lines = tuple(_line(boxes[p], box) for box in boxes for p in box.node.parents)
    columns = 1 + max(node.column for node in nodes)
    total = len(plan.study.arms) * height
    rules = tuple(row * height for row in range(1, len(plan.study.arms)))
    width = LABEL + columns * COLUMN - (COLUMN - BOX) + 4
    return Drawing(width, total, titles, tuple(boxes), lines, rules)


def _line(start: Box, end: Box) -> str:
    x0, y0 = start.x + BOX, start.y + HEIGHT // 2
    x1, y1 = end.x, end.y + HEIGHT // 2
    middle = x1 - (COLUMN - BOX) // 2 if x1 > x0 else x0
    return f"M{x0} {y0}C{middle} {y0} {middle} {y1} {x1} {y1}"
