"""A table as readers see it: columns, sub-headings, ranks, marks and footnotes, still no format."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from ssdet.data.loading.recipe import DENSE
from ssdet.results.tables.result_table import COSTS, READOUTS, Cell, ResultTable, Row

MARKS = "†‡§¶"
VERDICT = "verdict"
AGAINST = "compared with"
COST_TITLES = {"parameters": "parameters (M)", "macs": "GMACs", "pflops": "pretraining PFLOPs"}
COST_UNITS = {"parameters": 1e6, "macs": 1e9, "pflops": 1.0}


@dataclass(frozen=True)
class FormattedCell:
    """What one cell says."""

    text: str = ""
    rank: str = ""
    """best, second or nothing, within its column."""
    runs: tuple[str, ...] = ()
    """Stages whose predictions the number was computed from."""


@dataclass(frozen=True)
class FormattedRow:
    """One arm."""

    label: str
    mark: str
    """Points to a footnote of this arm."""
    entries: tuple[FormattedCell, ...]


@dataclass(frozen=True)
class RowGroup:
    """Arms under one sub-heading."""

    heading: str
    lines: tuple[FormattedRow, ...]


@dataclass(frozen=True)
class FormattedTable:
    """A table of texts; `header` and every line's entries have one item a column."""

    study: str
    title: str
    header: tuple[str, ...]
    """Columns after the arms' own."""
    blocks: tuple[RowGroup, ...]
    notes: tuple[tuple[str, str], ...]
    """Mark (or nothing) and text of each footnote."""


@dataclass(frozen=True)
class Column:
    """One column: its title, and how an arm's entry is made."""

    title: str
    entry: Callable[[Row], FormattedCell]
    value: Callable[[Row], float | None] | None = None
    """What arms are ranked by, the higher the better; None where they are not ranked."""


def formatted_table(table: ResultTable) -> FormattedTable:
    """The table as its study lays it out; a column in which no arm has anything is left out."""
    columns = [c for c in _columns(table) if any(c.entry(row).text for row in table.rows)]
    ranks = [_ranks(table.rows, column) for column in columns]
    marks = _marks(table.rows)
    lines = {}
    for row in table.rows:
        entries = [
            FormattedCell(entry.text, rank.get(row.arm, ""), entry.runs)
            for entry, rank in zip([c.entry(row) for c in columns], ranks, strict=True)
        ]
        if row.needs:
            entries[0] = FormattedCell(f"needs {row.needs}: not built yet")
        lines[row.arm] = FormattedRow(row.label, marks.get(_fault(row), ""), tuple(entries))
    return FormattedTable(
        table.study,
        table.title,
        tuple(column.title for column in columns),
        _blocks(lines, table.layout.groups),
        tuple([("", note) for note in _notes(table)] + [(m, why) for why, m in marks.items()]),
    )


def narrow(shown: FormattedTable) -> FormattedTable:
    """The same with the verdicts as footnotes: they are sentences, and widen a table threefold."""
    kept = [place for place, title in enumerate(shown.header) if title != VERDICT]
    blocks = tuple(
        replace(
            block,
            lines=tuple(
                replace(line, entries=tuple(line.entries[place] for place in kept))
                for line in block.lines
            ),
        )
        for block in shown.blocks
    )
    verdicts = []
    for place, title in enumerate(shown.header):
        if title == VERDICT:
            lines = [line for block in shown.blocks for line in block.lines]
            said = [f"{n.label}: {n.entries[place].text}" for n in lines if n.entries[place].text]
            titles = (title.rpartition(", ")[2] for title in reversed(shown.header[:place]))
            readout = next(title for title in titles if title in READOUTS.values())
            verdicts.append(("", f"Verdicts, {readout}. {'. '.join(said)}."))
    header = tuple(shown.header[place] for place in kept)
    return replace(shown, header=header, blocks=blocks, notes=(*verdicts, *shown.notes))


def _blocks(
    lines: Mapping[str, FormattedRow], groups: Mapping[str, tuple[str, ...]]
) -> tuple[RowGroup, ...]:
    grouped = {arm for arms in groups.values() for arm in arms}
    blocks = [RowGroup("", tuple(line for arm, line in lines.items() if arm not in grouped))]
    for heading, arms in groups.items():
        blocks.append(RowGroup(heading, tuple(line for arm, line in lines.items() if arm in arms)))
    return tuple(block for block in blocks if block.lines)


def _columns(table: ResultTable) -> list[Column]:
    columns: list[Column] = []
    wanted = table.layout.columns
    against = _against_column(table)
    for name in wanted:
        if name in READOUTS:
            columns.append(_score_column(name, score_title(table.protocol)))
            if "difference" in wanted:
                columns += against + _difference_columns(name, table.baseline)
                against = []
        elif name == "quoted":
            columns.append(
                Column(
                    "paper (quoted)",
                    lambda row: FormattedCell("" if row.quoted is None else f"{row.quoted:.2f}"),
                )
            )
        elif name == "seeds":
            columns.append(Column("seeds", _seeds))
        elif name in COSTS:
            columns.append(_cost_column(name))
    return columns


def score_title(protocol: str) -> str:
    """What a score is called: mAP, or the id of another protocol without its version."""
    return "mAP" if protocol == DENSE else protocol.rpartition("/")[0]


def _score_column(readout: str, title: str) -> Column:
    def entry(row: Row) -> FormattedCell:
        if (cell := row.cells.get(readout)) is None:
            return FormattedCell()
        spread = "" if cell.sd is None else f" ± {100 * cell.sd:.2f}"
        return FormattedCell(f"{100 * cell.mean:.2f}{spread}", runs=tuple(cell.runs.values()))

    def value(row: Row) -> float | None:
        cell = row.cells.get(readout)
        return None if cell is None else round(100 * cell.mean, 2)

    return Column(f"{title}, {READOUTS[readout]}", entry, value)


def _against_column(table: ResultTable) -> list[Column]:
    """What each arm is compared with, where it is not the same for all."""
    if not table.several_baselines:
        return []
    labels = {row.arm: row.label for row in table.rows}

    def entry(row: Row) -> FormattedCell:
        differs = any(cell.difference for cell in row.cells.values())
        return FormattedCell(labels[row.against] if differs else "")

    return [Column(AGAINST, entry)]


def _difference_columns(readout: str, baseline: str) -> list[Column]:
    def column(title: str, text: Callable[[Cell], str], of_baseline: str = "") -> Column:
        def entry(row: Row) -> FormattedCell:
            cell = row.cells.get(readout)
            if cell is None or cell.difference is None:
                return FormattedCell(of_baseline if cell and row.arm == baseline else "")
            return FormattedCell(text(cell))

        return Column(title, entry)

    return [
        column("difference [95 %]", difference_text, "baseline"),
        column("p (Holm)", lambda cell: p_text(cell.p_adjusted)),
        column(VERDICT, lambda cell: cell.verdict),
    ]


def label_against(table: ResultTable, row: Row) -> str:
    """What an arm is called where only its difference is told: with what it is compared with,
    where that is not the baseline."""
    if row.against in ("", table.baseline):
        return row.label
    other = next(one.label for one in table.rows if one.arm == row.against)
    return f"{row.label} (against “{other}”)"


def difference_text(cell: Cell) -> str:
    """Difference and interval in percent; nothing for the baseline."""
    if (d := cell.difference) is None:
        return ""
    return f"{100 * d.difference:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"


def p_text(value: float | None) -> str:
    """A p-value with three decimals."""
    if value is None:
        return ""
    return "< 0.001" if value < 0.0005 else f"{value:.3f}"


def _seeds(row: Row) -> FormattedCell:
    counts = [len(cell.scores) for cell in row.cells.values()]
    return FormattedCell(str(counts[0]) if counts else "")


def _cost_column(name: str) -> Column:
    def entry(row: Row) -> FormattedCell:
        cost = row.costs.get(name)
        return FormattedCell("" if cost is None else f"{cost / COST_UNITS[name]:.4g}")

    return Column(COST_TITLES[name], entry)


def _ranks(rows: Iterable[Row], column: Column) -> dict[str, str]:
    """best and second by arm, single networks and ensembles apart; nothing where one is alone."""
    ranks: dict[str, str] = {}
    if column.value is None:
        return ranks
    for ensembles in (False, True):
        values = {r.arm: column.value(r) for r in rows if r.ensemble is ensembles}
        order = sorted({v for v in values.values() if v is not None}, reverse=True)
        if len([v for v in values.values() if v is not None]) < 2:
            continue
        for rank, value in zip(("best", "second"), order, strict=False):
            ranks |= {arm: rank for arm, v in values.items() if v == value}
    return ranks


def _fault(row: Row) -> str:
    """What is wrong with the coverage of an arm's runs, empty for nothing."""
    parts = list(row.training)
    if row.unreadable:
        listed = ", ".join(f"{name} ({why})" for name, why in sorted(row.unreadable.items())[:5])
        more = ", …" if len(row.unreadable) > 5 else ""
        count = len(row.unreadable)
        parts.append(
            f"{count} video{'s' if count > 1 else ''} could not be read; in training other clips "
            f"stood in: {listed}{more}"
        )
    return "; ".join(parts)


def _marks(rows: Iterable[Row]) -> dict[str, str]:
    """Mark of each kind of fault: †, ‡, §, ¶, ††, …"""
    faults = dict.fromkeys(fault for row in rows if (fault := _fault(row)))
    return {
        fault: MARKS[index % len(MARKS)] * (index // len(MARKS) + 1)
        for index, fault in enumerate(faults)
    }


def footnotes(table: ResultTable) -> list[str]:
    """Verdicts, and what one has to know to read the numbers; marks in front of their texts."""
    return [f"{mark} {text}".strip() for mark, text in narrow(formatted_table(table)).notes]


def _notes(table: ResultTable) -> list[str]:
    shown = table.layout.columns
    spread = "one seed" if table.seeds == 1 else f"mean ± standard deviation of {table.seeds} seeds"
    notes = [
        f"Protocol {table.protocol} on the test split: {table.videos_scored} of "
        f"{table.videos_expected} videos, {table.frames} frames. {score_title(table.protocol)} in "
        f"percent, {spread}."
    ]
    if "difference" in shown:
        notes += _comparison_notes(table)
    notes.append(
        "Bold: highest measured score of its column; underlined: second. Ensembles are ranked "
        "apart from single networks. A rank is no evidence of a difference."
    )
    if costs := [name for name in COSTS if name in shown]:
        notes.append(_cost_note(costs))
    if any(row.needs for row in table.rows):
        notes.append(
            "“needs …”: declared, but the network that it needs is not built, so it was not run."
        )
    if "quoted" in shown and any(row.quoted is not None for row in table.rows):
        notes.append(f"Quoted, not measured here: {table.source}")
    return notes


def _comparison_notes(table: ResultTable) -> list[str]:
    labels = {row.arm: row.label for row in table.rows}
    compared = {
        name: sum(row.cells[r].difference is not None for row in table.rows if r in row.cells)
        for r, name in READOUTS.items()
        if r in table.layout.columns
    }
    rows = ", ".join(f"{name} {count}" for name, count in compared.items() if count)
    other, family = f"“{labels[table.baseline]}”", ""
    if table.several_baselines:
        other, family = f"the arm under “{AGAINST}”", ", one family whatever they are compared with"
    return [
        f"Difference from {other} in points with a 95 % interval: paired bootstrap, "
        f"{table.resamples} resamples of videos and seeds.",
        "p: two-sided, from the same resamples, after Holm's correction over the rows that are "
        f"compared within a read-out ({rows}){family}.",
        f"Verdict: at the 5 % level after that correction.{_detectable(table)}",
        *_lacking(table),
    ]


def _lacking(table: ResultTable) -> list[str]:
    """Arms that have a score, but nothing to be compared with."""
    rows = {row.arm: row for row in table.rows}
    return [
        f"“{row.label}” is compared with nothing: “{other.label}” needs {other.needs}."
        for row in table.rows
        if row.cells and row.against and (other := rows[row.against]).needs
    ]


def _detectable(table: ResultTable) -> str:
    parts = []
    for readout, name in READOUTS.items():
        found = [100 * d for r in table.rows if (d := _smallest(r, readout)) is not None]
        if found and readout in table.layout.columns:
            span = f"{min(found):.1f}"
            if f"{max(found):.1f}" != span:
                span += f" to {max(found):.1f}"
            parts.append(f"{name} {span}")
    if not parts:
        return ""
    said = ", ".join(parts)
    return f" What these seeds detect with a power of 80 %, in points: {said}."


def _smallest(row: Row, readout: str) -> float | None:
    return row.cells[readout].detectable if readout in row.cells else None


def _cost_note(costs: list[str]) -> str:
    meanings = {
        "parameters": "parameters: learnable weights of the fine-tuned network",
        "macs": "GMACs: multiply-adds of its convolutions on one clip, in 10⁹ (the paper's FLOPs)",
        "pflops": "pretraining PFLOPs: those of all clips of its pretraining, forward, in 10¹⁵",
    }
    said = "; ".join(meanings[name] for name in costs)
    return said[0].upper() + said[1:] + ". An ensemble costs what its members cost."
