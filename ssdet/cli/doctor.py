"""`ssdet doctor`: check this machine, or every node of a Ray cluster, before running studies."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssdet.cli import shared
from ssdet.system.console import plain_console

if TYPE_CHECKING:
    from ssdet.execution.doctor.findings import Finding

MAX_COLUMNS = 6
"""Machines in the table; those with a problem come first."""


@dataclass(frozen=True)
class Options:
    """Check this machine, or with --cluster every node of a Ray cluster: versions, GPUs, memory,
    disk, decoding, clocks, and whether all read and write the same store."""

    cluster: bool = False
    """Check every node of the cluster of --address or RAY_ADDRESS, from one of its nodes."""
    address: str | None = None
    """Ray cluster (host:port, or auto on a node of it); implies --cluster."""
    store: shared.StoreOption = field(default_factory=shared.default_store)
    data: str | None = None
    """A file or folder of data, or its URI, that every machine must read."""
    timeout: float = 120.0
    """Seconds after which a node that has not answered is a problem."""
    as_json: shared.AsJson = False


@shared.report_errors()
def command(arguments: list[str]) -> int:
    """Return status 0 where every check passes, 1 where one fails, 2 for wrong usage."""
    options = shared.parse(Options, arguments, "ssdet doctor")
    try:
        findings = _findings(options)
    except ImportError as error:
        way_out = "pip install --constraint constraints.txt --editable . (README.md)"
        shared.note(f"PROBLEM this machine: {error}\n  way out: {way_out}")
        return 1
    fine = all(finding.ok for finding in findings)
    if options.as_json:
        shared.print_json({"ok": fine, "findings": [asdict(finding) for finding in findings]})
    else:
        show(findings, plain_console())
    return 0 if fine else 1


@shared.wrong_usage(ValueError)
def _findings(options: Options) -> "list[Finding]":
    """UsageError for wrong options, ConnectionError where no cluster answers, ImportError where a
    package of this machine is missing or broken."""
    from ssdet.data.storage.filesystem import is_remote
    from ssdet.execution.doctor.checks import examine
    from ssdet.execution.session import connect

    if options.timeout <= 0:
        raise ValueError(f"--timeout {options.timeout:g}: expected seconds above 0")
    data = options.data
    if data is not None and not is_remote(data):
        data = str(Path(data).expanduser().absolute())
    if not options.cluster and options.address is None:
        return examine(options.store, data)
    address = options.address or os.environ.get("RAY_ADDRESS")
    if address is None:
        raise ValueError("--cluster: which? give --address host:port (auto on a node of it)")
    with connect(address) as session:
        shared.note(session.summary())
        return examine(options.store, data, cluster=True, limit=options.timeout)


def show(findings: "Sequence[Finding]", out: Console) -> None:
    """Print a table of checks by machine, and below it each problem with its way out."""
    problems = [finding for finding in findings if not finding.ok]
    nodes = list(dict.fromkeys(f.node for f in [*findings[:1], *problems, *findings]))
    table = Table("check")
    for node in nodes[:MAX_COLUMNS]:
        table.add_column(Text(node), overflow="fold")
    cells = {(f.check, f.node): Text(f.found, "" if f.ok else "bold red") for f in findings}
    for check in dict.fromkeys(f.check for f in findings):
        table.add_row(check, *(cells.get((check, node), Text("")) for node in nodes[:MAX_COLUMNS]))
    out.print(table)
    if len(nodes) > MAX_COLUMNS:
        out.print(f"{len(nodes) - MAX_COLUMNS} more nodes are in --json; their problems are below")
    for f in problems:
        text = f"PROBLEM {f.node}, {f.check}: {f.found}\n  way out: {f.way_out}"
        out.print(text, soft_wrap=True, markup=False)
    if not problems:
        out.print("all is well")
