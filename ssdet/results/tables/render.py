"""A table for readers: console, Markdown, LaTeX and HTML."""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich.table import Table as RichTable
from rich.text import Text

from ssdet.results.tables.columns import (
    VERDICT,
    FormattedCell,
    FormattedRow,
    RowGroup,
    formatted_table,
    narrow,
)
from ssdet.results.tables.result_table import ResultTable
from ssdet.system.safe_files import write_text

CONSOLE_STYLES = {"best": "bold", "second": "underline", "": ""}
CODE = re.compile(r"`([^`]+)`")


def console_table(table: ResultTable) -> RichTable:
    """For a terminal, where a narrow one breaks lines but loses no digit; verdicts and footnotes
    are printed after it (`layout.footnotes`)."""
    shown = narrow(formatted_table(table))
    made = RichTable(title=Text(shown.title))
    made.add_column("arm", overflow="fold")
    for title in shown.header:
        made.add_column(Text(title), justify="right", overflow="fold")
    for block in shown.blocks:
        if block.heading:
            made.add_section()
            made.add_row(Text(block.heading, "italic"))
        for line in block.lines:
            texts = [Text(entry.text, CONSOLE_STYLES[entry.rank]) for entry in line.entries]
            made.add_row(Text(f"{line.label} {line.mark}".rstrip()), *texts)
    return made


def write_markdown(table: ResultTable, path: Path) -> None:
    """The table as Markdown with its footnotes."""
    write_text(path, markdown(table))


def markdown(table: ResultTable) -> str:
    """A pipe table under its title, footnotes as a list; the best is bold, the second <ins>."""
    shown = formatted_table(table)
    rule = ["---", *("---" if title == VERDICT else "---:" for title in shown.header)]
    lines = [f"# {markdown_text(shown.title)}", "", _piped(["arm", *shown.header]), _piped(rule)]
    for block in shown.blocks:
        if block.heading:
            lines.append(_piped([f"*{markdown_text(block.heading)}*", *[""] * len(shown.header)]))
        for line in block.lines:
            label = markdown_text(f"{line.label} {line.mark}".rstrip())
            lines.append(_piped([label, *(_marked(entry) for entry in line.entries)]))
    notes = [f"- {markdown_text(f'{mark} {note}'.strip())}" for mark, note in shown.notes]
    return "\n".join([*lines, "", *notes, ""])


def _marked(entry: FormattedCell) -> str:
    text = markdown_text(entry.text)
    return {"best": f"**{text}**", "second": f"<ins>{text}</ins>"}.get(entry.rank, text)


MARKDOWN = re.compile(r"[\\|*<~$]|&(?=#?\w+;)|\](?=\()|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown takes for markup inside a line or a cell; underscores within words are none."""


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, in one line, but for code in backticks.

    Inside code only the pipe is escaped, which would end the cell.
    """
    parts = CODE.split(" ".join(text.split()))
    return "".join(
        f"`{part.replace('|', chr(92) + '|')}`" if place % 2 else MARKDOWN.sub(r"\\\g<0>", part)
        for place, part in enumerate(parts)
    )


def _piped(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


LATEX = {
    "`": r"\textasciigrave{}", "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$",
    "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"$<$", ">": r"$>$", "|": r"$|$", "±": r"$\pm$", "×": r"$\times$", "−": r"$-$",
    "†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"\S{}", "¶": r"\P{}", "…": r"\ldots{}",
    "“": "``", "”": "''", "’": "'", "–": "--", "→": r"$\to$", "≥": r"$\ge$", "≤": r"$\le$",
    "½": r"$\frac12$", "δ": r"$\delta$", "α": r"$\alpha$", "⁹": r"\textsuperscript{9}",
    "¹": r"\textsuperscript{1}", "⁵": r"\textsuperscript{5}", "[": "{[}", "]": "{]}", "\u00a0": "~",
}  # fmt: skip
"""What TeX would read as a command, or may have no letter for."""


def write_latex(table: ResultTable, path: Path) -> None:
    """The table as LaTeX, to be read by \\input."""
    write_text(path, latex(table))


def latex(table: ResultTable) -> str:
    """A `table*` for booktabs and graphicx, shrunk where it is wider than the page.

    The best is \\textbf, the second \\underline; verdicts and footnotes stand below.
    """
    shown = narrow(formatted_table(table))
    lines = [
        "% \\usepackage{booktabs,graphicx}",
        "\\begin{table*}",
        "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}",
        f"\\caption{{{_tex(shown.title)}}}",
        f"\\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', shown.study)}}}",
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
        f"\\begin{{tabular}}{{@{{}}l{'r' * len(shown.header)}@{{}}}}",
        "\\toprule",
        " & ".join(["arm", *map(_tex, shown.header)]) + r" \\",
    ]
    for block in shown.blocks:
        lines += ["\\midrule", *_latex_rows(block, len(shown.header) + 1)]
    lines += ["\\bottomrule", "\\end{tabular}}", "", "\\medskip\\raggedright"]
    for mark, note in shown.notes:
        lines.append(f"{_tex(f'{mark} {note}'.strip())}\\par")
    return "\n".join([*lines, "\\end{table*}", ""])


def _latex_rows(block: RowGroup, columns: int) -> list[str]:
    rows = []
    if block.heading:
        rows.append(f"\\multicolumn{{{columns}}}{{@{{}}l}}{{\\emph{{{_tex(block.heading)}}}}} \\\\")
    for line in block.lines:
        texts = [_tex(f"{line.label} {line.mark}".rstrip())]
        for entry in line.entries:
            command = {"best": "\\textbf", "second": "\\underline"}.get(entry.rank)
            text = _tex(entry.text)
            texts.append(f"{command}{{{text}}}" if command else text)
        rows.append(" & ".join(texts) + r" \\")
    return rows


def _tex(text: str) -> str:
    parts = CODE.split(" ".join(text.split()))
    escaped = ["".join(LATEX.get(c, c) for c in part) for part in parts]
    return "".join(f"\\texttt{{{p}}}" if i % 2 else p for i, p in enumerate(escaped))


def write_html(table: ResultTable, path: Path) -> None:
    """The table as an HTML fragment."""
    write_text(path, html(table))


def html(table: ResultTable) -> str:
    """A `figure` of class `result-table`: caption, table, footnotes; no style of its own.

    A cell that was measured has the class of its rank, the ids of its runs in `data-runs`, and a
    link to `#run-ID` of the first of them.
    """
    shown = formatted_table(table)
    heads = "".join(f'<th scope="col">{_html(title)}</th>' for title in ("arm", *shown.header))
    bodies = [_html_block(block, len(shown.header) + 1) for block in shown.blocks]
    notes = [
        f"<li>{f'<sup>{mark}</sup> ' if mark else ''}{_html(note)}</li>"
        for mark, note in shown.notes
    ]
    return "\n".join(
        [
            f'<figure class="result-table" id="table-{escape(shown.study)}">',
            f"<table>\n<caption>{_html(shown.title)}</caption>",
            f"<thead>\n<tr>{heads}</tr>\n</thead>",
            *bodies,
            '</table>\n<figcaption>\n<ul class="notes">',
            *notes,
            "</ul>\n</figcaption>\n</figure>\n",
        ]
    )


def _html_block(block: RowGroup, columns: int) -> str:
    rows = []
    if block.heading:
        rows.append(
            f'<tr><th scope="rowgroup" colspan="{columns}">{_html(block.heading)}</th></tr>'
        )
    rows += [_html_line(line) for line in block.lines]
    return "\n".join(["<tbody>", *rows, "</tbody>"])


def _html_line(line: FormattedRow) -> str:
    mark = f"<sup>{line.mark}</sup>" if line.mark else ""
    cells = "".join(_html_cell(entry) for entry in line.entries)
    return f'<tr><th scope="row">{_html(line.label)}{mark}</th>{cells}</tr>'


def _html_cell(entry: FormattedCell) -> str:
    text = _html(entry.text)
    if entry.rank:
        tag = {"best": "strong", "second": "u"}[entry.rank]
        text = f"<{tag}>{text}</{tag}>"
    attributes = f' class="{entry.rank}"' if entry.rank else ""
    if entry.runs:
        attributes += f' data-runs="{escape(" ".join(entry.runs))}"'
        text = f'<a href="#run-{escape(entry.runs[0])}">{text}</a>'
    return f"<td{attributes}>{text}</td>"


def _html(text: str) -> str:
    return CODE.sub(r"<code>\1</code>", escape(text))
