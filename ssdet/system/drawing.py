"""Colours, line styles and saving of matplotlib figures."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssdet.system.safe_files import replacing
from ssdet.system.text_files import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Distinguishable for colour-blind readers (Okabe and Ito)."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "os^Dv"
GREY = "#9aa0a8"


def save(figure: "Figure", path: Path) -> Path:
    """Write a figure reproducibly: without date or version, with a back end that needs no display.

    Dollar signs in text are not formulas. ValueError for a format other than PNG, SVG or PDF.
    """
    import matplotlib
    from matplotlib.text import Text

    unwanted = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    if path.suffix not in unwanted:
        raise ValueError(f"{path}: figures are written as {', '.join(unwanted)}")
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(printable(text.get_text()))
    with matplotlib.rc_context({"svg.hashsalt": "ssdet"}), replacing(path) as work:
        how: Any = {"dpi": 150, "metadata": unwanted[path.suffix]}
        figure.savefig(work, format=path.suffix[1:], **how)
    return path
