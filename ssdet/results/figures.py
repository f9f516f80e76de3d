"""Figures of a study."""

from pathlib import Path

from ssdet.results.tables import READOUTS, ResultTable


def write_figure(table: ResultTable, path: Path) -> None:
    """Each arm's score in both read-outs: bars are means over seeds, dots are single seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    readouts = [name for name in READOUTS if any(name in row.cells for row in table.rows)]
    height = 1.2 + 0.42 * len(table.rows)
    figure, panels = plt.subplots(
        1, len(readouts), figsize=(4.6 * len(readouts), height), sharey=True, squeeze=False
    )
    for panel, readout in zip(panels[0], readouts, strict=True):
        for place, row in enumerate(table.rows):
            if (cell := row.cells.get(readout)) is None:
                continue
            colour = "#8a8f98" if row.arm == table.baseline else "#3b6fb6"
            panel.barh(place, 100 * cell.mean, color=colour, height=0.62)
            seeds = [100 * score for score in cell.scores.values()]
            panel.plot(seeds, [place] * len(seeds), "o", color="#111", markersize=3)
            panel.annotate(
                f"{100 * cell.mean:.1f}", (0, place), (4, 0), textcoords="offset points",
                va="center", color="white", fontsize=8,
            )  # fmt: skip
        panel.set_title(READOUTS[readout], fontsize=10)
        panel.set_xlabel(f"mAP in percent ({table.protocol})", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_yticks(range(len(table.rows)), [row.label for row in table.rows], fontsize=9)
    panels[0][0].invert_yaxis()
    figure.suptitle(table.title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)
