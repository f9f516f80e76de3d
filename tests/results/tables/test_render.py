"""What readers see: ranks, marks and escapes in every format, checked with other parsers."""

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from ssdet.cli.experiment import write_results
from ssdet.evaluation.statistics.bootstrap import BootstrapResult
from ssdet.results.tables.columns import footnotes, formatted_table, narrow
from ssdet.results.tables.render import console_table, html, latex, markdown, markdown_text
from ssdet.results.tables.result_table import Cell, ResultTable, Row
from ssdet.studies import Store, Table


def cell(mean: float, name: str, difference: float | None = None, verdict: str = "better") -> Cell:
    scores = {0: mean - 0.01, 1: mean + 0.01}
    runs = {seed: f"predict-{name}{seed}" for seed in scores}
    if difference is None:
        return Cell(scores, None, runs)
    result = BootstrapResult(difference, difference - 0.02, difference + 0.02, 0.01, 99, 0.95, 0.0)
    return Cell(scores, result, runs, 0.03, 1.5, 0.015, verdict)


ROWS = (
    Row("cls", "base & line", {"finetuned": cell(0.5, "a")}, 17.28, costs={"macs": 4.7449e9}),
    Row("mix", "Mix_Up 100%", {"finetuned": cell(0.6, "b", 0.1)}, 19.18, costs={"macs": 4.7449e9},
        unreadable={"V1": "no <stream>"}),
    Row("cut", "Cut|Mix", {"finetuned": cell(0.4, "c", -0.1, "worse, a & b")}, None),
    Row("slow", "two streams", {}, None, needs="slowfast_det"),
    Row("both", "both", {"finetuned": cell(0.7, "d", 0.2)}, None, True),
    Row("control", "control", {"finetuned": cell(0.65, "e", 0.15)}, None, True),
)  # fmt: skip
LAYOUT = Table(
    columns=("finetuned", "difference", "quoted", "seeds", "macs"),
    groups={"ours (one network)": ("mix", "cut", "slow"), "ensembles": ("both", "control")},
)
TABLE = ResultTable(
    "a_study", "50% of $_#{x}^~\\ <b>", "cls", ROWS, "dense_map/v1", 8, 8, 384, 2, 99,
    "Table 1, `half`.", {}, LAYOUT,
)  # fmt: skip


def test_singles_and_ensembles_are_ranked_apart() -> None:
    shown = formatted_table(TABLE)
    ranks = {line.label: line.entries[0].rank for block in shown.blocks for line in block.lines}
    assert ranks == {
        "base & line": "second", "Mix_Up 100%": "best", "Cut|Mix": "", "two streams": "",
        "both": "best", "control": "second",
    }  # fmt: skip


def test_rows_stand_under_their_headings() -> None:
    blocks = [(b.heading, [line.label for line in b.lines]) for b in formatted_table(TABLE).blocks]
    assert blocks == [
        ("", ["base & line"]),
        ("ours (one network)", ["Mix_Up 100%", "Cut|Mix", "two streams"]),
        ("ensembles", ["both", "control"]),
    ]


def test_columns_are_those_of_the_layout() -> None:
    header = ["mAP, fine-tuned", "difference [95 %]", "p (Holm)", "verdict", "paper (quoted)"]
    assert list(formatted_table(TABLE).header) == [*header, "seeds", "GMACs"]
    fewer = replace(TABLE, layout=Table(columns=("seeds", "finetuned", "probe")))
    assert formatted_table(fewer).header == ("seeds", "mAP, fine-tuned")  # nobody has a probe


def test_equal_numbers_share_a_rank() -> None:
    rows = (ROWS[1], replace(ROWS[1], arm="twin", label="twin"), *ROWS[:1])
    lines = formatted_table(replace(TABLE, rows=rows, layout=Table())).blocks[0].lines
    assert [line.entries[0].rank for line in lines] == ["best", "best", "second"]


def test_markdown_is_a_table_of_equal_rows() -> None:
    text = markdown(TABLE)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]
    assert {len(row) for row in cells} == {8} and len(rows) == 2 + 2 + 6
    by_arm = {row[0].strip(): row[1].strip() for row in cells}
    assert by_arm["Mix_Up 100% †"] == "**60.00 ± 1.41**"
    assert by_arm["base & line"] == "<ins>50.00 ± 1.41</ins>"
    assert by_arm["Cut\\|Mix"] == "40.00 ± 1.41"
    assert by_arm["two streams"].startswith("needs slowfast_det")
    assert "| +10.00 [+8.00, +12.00] | 0.030 | better |" in text
    assert "- † 1 video could not be read" in text


SPECIAL = (
    "<b>x</b>", "*x*", "_x_", "take_out", "__x__", "~~x~~", "a | b", r"a \* b", "$x$", "&lt;b",
    "[x](y)", "[+1.0, +2.0]", "R&D", "a > b", "# 1", "Straße\udcdf", "{x}", "![x](y)",
)  # fmt: skip


def read_markdown(text: str) -> list[str]:
    """What a reader of GitHub's Markdown sees of every cell, heading and item."""
    inlines = [t for t in MarkdownIt("gfm-like", {"linkify": False}).parse(text) if t.children]
    return ["".join(c.content for c in t.children or () if c.content) for t in inlines]


def test_markdown_shows_names_as_they_are() -> None:
    rows = [replace(ROWS[0], arm=f"a{k}", label=name) for k, name in enumerate(SPECIAL)]
    table = replace(TABLE, rows=(*ROWS[:1], *rows), title="50 % of $_<b>_$", layout=Table())
    seen = read_markdown(markdown(table))
    assert seen[0] == "50 % of $_<b>_$" and "half" in seen[-1]
    assert set(SPECIAL) <= set(seen)


def test_code_is_the_only_markup_of_a_name() -> None:
    assert markdown_text("`a|b` <i>`c*`") == r"`a\|b` \<i>`c*`"


def test_files_take_names_of_bytes(tmp_path) -> None:
    table = replace(TABLE, title=SPECIAL[-3])
    write_results(table, Store.open(tmp_path))
    for name in ("table.md", "table.tex", "table.html"):
        assert "udcdf" in next(tmp_path.rglob(name)).read_text(encoding="utf-8")


def test_latex_holds_no_raw_special_character() -> None:
    text = latex(TABLE)
    begun = re.findall(r"\\begin\{(\w+\*?)\}", text)
    assert begun == ["table*", "tabular"]
    assert re.findall(r"\\end\{(\w+\*?)\}", text) == begun[::-1]
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    full = [row for row in rows if "multicolumn" not in row]
    columns = len(re.search(r"@\{\}(l r*|lr*)@\{\}", text).group(1))  # type: ignore[union-attr]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in full} == {columns - 1}
    assert all(f"multicolumn{{{columns}}}" in row for row in rows if row not in full)
    assert r"\textbf{60.00 $\pm$ 1.41}" in text and r"\underline{50.00 $\pm$ 1.41}" in text
    assert r"base \& line" in text and r"Mix\_Up 100\% $\dagger$" in text
    bare = re.sub(r"\\[a-z]+|\\[\\{}&%$#_S]|\$[^$]*\$", "", text.split("\n", 1)[1])
    bare = bare.replace("{!}{%\n", "{!}{\n")  # the line's end, on purpose
    assert not set(bare) & set("#$%_^~\\") and bare.count("{") == bare.count("}")
    assert "worse, a \\& b" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX on this machine")
def test_latex_compiles(tmp_path) -> None:
    head = "\\documentclass[twocolumn]{article}\n\\usepackage{booktabs,graphicx}\n"
    body = f"\\begin{{document}}\n{latex(TABLE)}\\end{{document}}\n"
    (tmp_path / "doc.tex").write_text(head + body)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "doc.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "Missing character" not in done.stdout


class Reader(HTMLParser):
    """Open tags with their attributes; fails where tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_html_cells_lead_to_their_runs() -> None:
    reader = Reader()
    reader.feed(html(TABLE))
    assert not reader.open and TABLE.title in reader.texts and "worse, a & b" in reader.texts
    linked = [
        values["data-runs"] for tag, values in reader.tags if tag == "td" and "data-runs" in values
    ]
    assert linked == [f"predict-{name}0 predict-{name}1" for name in "abcde"]
    targets = [values["href"] for tag, values in reader.tags if tag == "a"]
    assert targets == [f"#run-predict-{name}0" for name in "abcde"]
    heads = [values.get("scope") for tag, values in reader.tags if tag == "th"]
    assert heads.count("col") == 8 and heads.count("row") == 6 and heads.count("rowgroup") == 2
    assert [v["id"] for t, v in reader.tags if t == "figure"] == ["table-a_study"]


def test_a_narrow_console_loses_no_digit() -> None:
    for width in (60, 200):
        console = Console(width=width, record=True, file=StringIO())
        console.print(console_table(TABLE))
        text = console.export_text()
        assert "…" not in text and all(len(line) <= width for line in text.splitlines())
        assert re.search(r"60\.00.*±", text, re.DOTALL)
    assert "+10.00 [+8.00, +12.00]" in text and "needs slowfast_det" in text


def test_a_study_leaves_its_table_in_every_format(tmp_path) -> None:
    store = Store.open(tmp_path)
    folder = write_results(TABLE, store)
    names = ["figure.png", "table.csv", "table.html", "table.md", "table.tex"]
    assert sorted(path.name for path in folder.iterdir()) == names
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_results(TABLE, store)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_verdicts_and_footnotes_follow_a_console_table() -> None:
    notes = footnotes(TABLE)
    assert notes[0].startswith("Verdicts, fine-tuned. Mix_Up 100%: better. Cut|Mix: worse, a & b.")
    joined = " ".join(notes)
    for said in ("8 of 8 videos", "Holm", "95 % interval", "fine-tuned 4", "power of 80 %",
                 "Bold: highest", "GMACs", "Quoted, not measured here: Table 1"):  # fmt: skip
        assert said in joined
    assert "verdict" not in narrow(formatted_table(TABLE)).header
