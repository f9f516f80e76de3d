"""Rendering of the report page: a template, a style sheet and a script in one HTML file."""

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ssdet.system.text_files import printable

IN_SCRIPT = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}
"""Characters that could end a script element or a JavaScript string, as JSON escapes."""


def render(**values: Any) -> str:
    """HTML of the page, which loads nothing; values other than `Markup` are escaped."""
    loader = PackageLoader("ssdet.results.report", "")
    pages = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    pages.globals |= {"embedded": embedded}
    style, script = _asset("page.css"), _asset("viewer.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    page = pages.get_template("page.html.j2")
    return printable(page.render(style=style, script=script, policy=policy, **values)) + "\n"


def embedded(value: Mapping[str, Any]) -> Markup:
    """JSON that cannot end the script element around it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup("".join(IN_SCRIPT.get(c, c) for c in text))


def _asset(name: str) -> Markup:
    return Markup(files("ssdet.results.report").joinpath(name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
