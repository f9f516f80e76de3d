"""Figures of a study: scores, differences, trade-off, gains by class, curves, timelines.

Each function writes one file and returns its path, whose suffix is the format (png, svg, pdf).
Equal results give equal bytes. Colours are never the only distinction: markers, hatches or line
styles repeat it.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssdet.results.figures.figure_data import ClassGain, Curve, Track
from ssdet.results.tables.columns import p_text
from ssdet.results.tables.result_table import READOUTS, Cell, ResultTable
from ssdet.system.drawing import COLOURS, DASHES, GREY, MARKERS, save
from ssdet.system.text_files import printable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VALIDATED = {"pretrain": " (share of clips)", "finetune": " (score of whole videos)"}


def write_figure(table: ResultTable, path: Path) -> Path:
    """Each arm's score in both read-outs: bars are means over seeds, dots are single seeds."""
    readouts = _readouts(table)
    rows = table.rows
    figure, panels = _panels(4.6 * len(readouts), 1.2 + 0.42 * len(rows), 1, len(readouts))
    for panel, readout in zip(panels[0], readouts, strict=True):
        for place, row in enumerate(rows):
            cell = row.cells.get(readout)
            if cell is None:
                why = f"needs {row.needs}" if row.needs else "no such read-out"
                panel.annotate(why, (0, place), (4, 0), textcoords="offset points", va="center",
                               fontsize=8, style="italic", color="#555")  # fmt: skip
                continue
            colour = GREY if row.arm == table.baseline else COLOURS[0]
            panel.barh(place, 100 * cell.mean, color=colour, height=0.62)
            seeds = [100 * score for score in cell.scores.values()]
            panel.plot(seeds, [place] * len(seeds), "o", color="#111", mec="white", mew=0.4, ms=4)
            panel.annotate(
                f"{100 * cell.mean:.1f}", (0, place), (4, 0), textcoords="offset points",
                va="center", color="black" if colour == GREY else "white", fontsize=8,
            )  # fmt: skip
        panel.set_title(READOUTS[readout], fontsize=10)
        panel.set_xlabel(f"mAP in percent ({table.protocol})", fontsize=8)
    _name_rows(panels[0], [row.label for row in rows])
    figure.suptitle(table.title, fontsize=11)
    return save(figure, path)


def write_forest(table: ResultTable, path: Path) -> Path:
    """Differences from the baseline with intervals, and differences too small for the seeds.

    Filled where the p-value after Holm's correction is at most 0.05.
    """
    readouts = [name for name in _readouts(table) if any(_differs(table, name))]
    if not readouts:
        raise ValueError(f"table {table.study!r}: no arm is compared with the baseline")
    rows = [row for row in table.rows if any(c.difference for c in row.cells.values())]
    figure, panels = _panels(5.2 * len(readouts), 1.5 + 0.42 * len(rows), 1, len(readouts))
    for panel, readout in zip(panels[0], readouts, strict=True):
        panel.axvline(0, color="#444", lw=0.8)
        panel.use_sticky_edges = False
        for place, row in enumerate(rows):
            if (cell := row.cells.get(readout)) is not None:
                _forest_row(panel, place, cell)
        panel.set_title(READOUTS[readout], fontsize=10)
        panel.set_xlabel("difference in points, 95 % interval", fontsize=8)
        panel.margins(x=0.06)
    _name_rows(panels[0], [row.label for row in rows])
    baseline = next(row.label for row in table.rows if row.arm == table.baseline)
    other = "each row's own baseline" if table.several_baselines else f"“{baseline}”"
    figure.suptitle(f"{table.title}: difference from {other}", fontsize=11)
    figure.supxlabel(
        "filled: p ≤ 0.05 after Holm's correction; grey: smaller than these seeds can detect",
        fontsize=7.5,
    )
    return save(figure, path)


def _differs(table: ResultTable, readout: str) -> list[bool]:
    return [row.cells[readout].difference is not None for row in table.rows if readout in row.cells]


def _forest_row(panel: "Axes", place: int, cell: Cell) -> None:
    if (d := cell.difference) is None or cell.p_adjusted is None:
        return
    if cell.detectable is not None:
        # With few seeds the band may be so wide that intervals would shrink to dots.
        reach = min(100 * cell.detectable, 2 * max(abs(100 * d.low), abs(100 * d.high)))
        panel.barh(place, 2 * reach, left=-reach, height=0.5, color="#e4e6e9", zorder=0)
    low, middle, high = 100 * d.low, 100 * d.difference, 100 * d.high
    filled = cell.p_adjusted <= 0.05
    panel.plot([low, high], [place, place], color=COLOURS[0], lw=1.8, solid_capstyle="butt")
    panel.plot(middle, place, "o", color=COLOURS[0], mfc=COLOURS[0] if filled else "white", ms=7)
    panel.annotate(
        f"{middle:+.1f}, p {'' if cell.p_adjusted < 0.0005 else '= '}{p_text(cell.p_adjusted)}",
        (middle, place), (0, 8), textcoords="offset points", ha="center", fontsize=7,
    )  # fmt: skip


def write_tradeoff(tracks: Sequence[Track], path: Path, title: str = "") -> Path:
    """mAP against GFLOPs (multiply-adds, as the paper counts), an arrow from step to step.

    Measured points are filled, quoted ones hollow and labelled as quoted. Source: Figure 2.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    if not tracks:
        raise ValueError("no track to draw: give at least one network's points")
    figure, panels = _panels(7.2, 4.6, 1, 1)
    panel = panels[0][0]
    for track, colour in zip(tracks, cycle(COLOURS)):
        fill = "white" if track.quoted else colour
        for (x, y), (next_x, next_y) in zip(track.points, track.points[1:], strict=False):
            panel.annotate("", (next_x, next_y), (x, y), zorder=1, arrowprops={
                "arrowstyle": "-|>", "color": colour, "lw": 1.3, "shrinkA": 5, "shrinkB": 5,
                "linestyle": "--" if track.quoted else "-"})  # fmt: skip
        for (x, y), marker in zip(track.points, cycle(MARKERS)):
            panel.plot(x, y, marker, color=colour, mfc=fill, ms=8, mew=1.5, zorder=3)
        name = f"{track.label} (quoted)" if track.quoted else track.label
        falls = len(track.points) > 1 and track.points[1][1] < track.points[0][1]
        panel.annotate(name, track.points[0], (0, 10 if falls else -16),
                       textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
    values = [x for track in tracks for x, _ in track.points]
    if max(values) > 4 * min(values) > 0:
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
    panel.margins(0.14, 0.16)
    panel.set_xlabel("GFLOPs (10⁹ multiply-adds of convolutions, one clip)", fontsize=9)
    panel.set_ylabel("mAP in percent", fontsize=9)
    panel.grid(alpha=0.25)
    _legend_of_steps(panel, tracks)
    sources = dict.fromkeys(track.source for track in tracks if track.quoted and track.source)
    if sources:
        figure.supxlabel(f"hollow: quoted from {'; '.join(sources)}", fontsize=7.5)
    panel.set_title(title, fontsize=11)
    return save(figure, path)


def _legend_of_steps(panel: "Axes", tracks: Sequence[Track]) -> None:
    from matplotlib.lines import Line2D

    steps = max((track.steps for track in tracks), key=len)
    handles = [
        Line2D([], [], marker=marker, color="#333", ls="", label=step)
        for step, marker in zip(steps, cycle(MARKERS))
    ]
    panel.legend(handles=handles, fontsize=8, frameon=False, loc="best")


def write_class_gains(
    gains: Sequence[ClassGain], path: Path, title: str = "", most: int = 40
) -> Path:
    """Gain in average precision of every class, sorted, with the class's positive frames.

    Of more than `most` classes the largest gains and losses are drawn, half of each. Bars are
    means over seeds, dots are single seeds; losses are hatched.
    """
    if not gains:
        raise ValueError("no class has a positive frame in both arms: there is no gain to draw")
    ordered = sorted(gains, key=lambda gain: (-gain.mean, gain.name))
    left_out = max(0, len(ordered) - most)
    if left_out:
        ordered = ordered[: most // 2] + ordered[-(most // 2) :]
    figure, panels = _panels(6.4, 1.3 + 0.24 * len(ordered), 1, 1)
    panel = panels[0][0]
    for place, gain in enumerate(ordered):
        won = gain.mean >= 0
        panel.barh(place, 100 * gain.mean, height=0.7, color=COLOURS[0 if won else 1],
                   hatch="" if won else "////", edgecolor="white", lw=0)  # fmt: skip
        values = [100 * value for value in gain.seeds]
        panel.plot(values, [place] * len(values), "o", color="#111", mec="white", mew=0.4, ms=3.5)
    panel.axvline(0, color="#444", lw=0.8)
    right = panel.secondary_yaxis("right")
    right.set_yticks(range(len(ordered)), [f"{gain.positives:,}" for gain in ordered], fontsize=7)
    right.set_ylabel("positive frames", fontsize=8)
    right.tick_params(length=0)
    _name_rows([panel], [gain.name for gain in ordered], 7.5)
    omitted = f" ({left_out} classes in between are left out)" if left_out else ""
    panel.set_xlabel(f"difference of average precision in points{omitted}", fontsize=8)
    panel.set_title(title, fontsize=10)
    return save(figure, path)


def write_curves(curves: Sequence[Curve], path: Path, title: str = "") -> Path:
    """Loss and validation score by optimiser step, one row of panels per kind of stage.

    Arms differ in colour and line style; every seed is one line.
    """
    if not curves:
        raise ValueError("no stage has logged a step: run the study first")
    kinds = list(dict.fromkeys(curve.kind for curve in curves))
    fields = list(dict.fromkeys(curve.field for curve in curves))
    arms = list(dict.fromkeys(curve.arm for curve in curves))
    figure, panels = _panels(4.8 * len(fields), 2.9 * len(kinds) + 0.8, len(kinds), len(fields))
    looks = dict(zip(arms, zip(cycle(COLOURS), cycle(DASHES)), strict=False))
    for curve in curves:
        panel = panels[kinds.index(curve.kind)][fields.index(curve.field)]
        colour, dash = looks[curve.arm]
        label = curve.arm if curve.seed == min(c.seed for c in curves) else None
        few = len(curve.steps) <= 3
        panel.plot(curve.steps, curve.values, color=colour, ls=dash, lw=1.1, label=label,
                   marker="o" if few else "", ms=3.5)  # fmt: skip
    for kind, line in zip(kinds, panels, strict=True):
        for name, panel in zip(fields, line, strict=True):
            unit = VALIDATED.get(kind.split(",")[0], "") if name == "validation" else ""
            panel.set_title(f"{kind}: {name}{unit}", fontsize=9)
            panel.set_xlabel("step", fontsize=8)
            panel.grid(alpha=0.25)
    legend: dict[str, Artist] = {}
    for panel in (panel for line in panels for panel in line):
        legend |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.suptitle(title, fontsize=11)
    figure.legend(handles=list(legend.values()), labels=list(legend), loc="outside lower center",
                  fontsize=8, ncols=min(4, len(legend)), frameon=False, handlelength=4)  # fmt: skip
    return save(figure, path)


def write_timeline(
    truth_TK: np.ndarray,
    scores_TK: Mapping[str, np.ndarray],
    classes: Sequence[str],
    fps: float,
    path: Path,
    title: str = "",
    most: int = 16,
) -> Path:
    """Truth and predictions of one video, classes by time: black bars, and shades 0 (white) to 1.

    It shows the classes of the truth and those with a probability of 0.5 or more, at most `most`;
    without any, the five with the highest probabilities. `scores_TK`: probabilities [T, K] by
    label. ValueError for a shape other than the truth's.
    """
    for label, scores in scores_TK.items():
        if scores.shape != truth_TK.shape:
            shapes = f"{tuple(scores.shape)}, expected {tuple(truth_TK.shape)}"
            raise ValueError(f"scores of {label!r}: shape {shapes} of the truth")
    shown = _classes_to_show(truth_TK, scores_TK, most)
    strips = 1 + len(scores_TK)
    figure, panels = _panels(8.4, 1.5 + 0.17 * (strips + 0.8) * len(shown), 1, 1)
    panel = panels[0][0]
    seconds = len(truth_TK) / fps
    shades = None
    for place, k in enumerate(shown):
        top = place * (strips + 0.8)
        runs = [(start / fps, (stop - start) / fps) for start, stop in _runs(truth_TK[:, k])]
        panel.broken_barh(runs, (top + 0.12, 0.76), color="black")
        for strip, scores in enumerate(scores_TK.values(), 1):
            line = np.asarray(scores[None, :, k], np.float32)
            shades = panel.imshow(
                line, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest",
                extent=(0, seconds, top + strip + 1, top + strip),
            )  # fmt: skip
        panel.axhspan(top, top + strips, fill=False, ec="#bbb", lw=0.6)
    panel.set_xlim(0, seconds)
    panel.set_ylim(len(shown) * (strips + 0.8), -0.4)
    middle = [place * (strips + 0.8) + strips / 2 for place in range(len(shown))]
    panel.set_yticks(middle, [printable(classes[k]) for k in shown], fontsize=8)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("seconds", fontsize=8)
    order = ", ".join(["truth (black)", *scores_TK])
    panel.set_title(f"{title}\nfrom top to bottom: {order}".strip(), fontsize=9)
    if shades is not None:
        figure.colorbar(shades, ax=panel, pad=0.01, label="probability", fraction=0.03)
    return save(figure, path)


def _classes_to_show(
    truth_TK: np.ndarray, scores_TK: Mapping[str, np.ndarray], most: int
) -> list[int]:
    best_K = np.max([np.max(s, axis=0) for s in scores_TK.values()] or [truth_TK.any(0)], axis=0)
    rank = sorted(range(truth_TK.shape[1]), key=lambda k: (not truth_TK[:, k].any(), -best_K[k]))
    wanted = [k for k in rank if truth_TK[:, k].any() or best_K[k] >= 0.5]
    return sorted((wanted or rank[:5])[:most])


def _runs(hits_T: np.ndarray) -> list[tuple[int, int]]:
    """First frame, and the frame after the last, of every run of hits."""
    edges = np.flatnonzero(np.diff(np.r_[0, np.asarray(hits_T, int), 0]))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _readouts(table: ResultTable) -> list[str]:
    return [name for name in READOUTS if any(name in row.cells for row in table.rows)]


def _panels(
    width: float, height: float, rows: int, columns: int
) -> "tuple[Figure, list[list[Axes]]]":
    """A figure, independent of pyplot's global state, and its panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels: Any = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    return figure, panels.tolist()


def _name_rows(panels: Sequence["Axes"], labels: Sequence[str], size: float = 9) -> None:
    """Set the same rows, from top to bottom, in every panel, with labels at the first."""
    for panel in panels:
        panel.set_ylim(len(labels) - 0.4, -0.6)
        shown = [*map(printable, labels)] if panel is panels[0] else []
        panel.set_yticks(range(len(labels)), shown, fontsize=size)
        panel.tick_params(axis="y", length=0)
