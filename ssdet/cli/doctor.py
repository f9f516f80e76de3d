"""`ssdet doctor`: whether this machine, or every node of a Ray cluster, is fit to run studies."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssdet.system.console import plain_console

if TYPE_CHECKING:
    from ssdet.execution.doctor.findings import Finding

COLUMNS = 6
"""Machines that the table has room for; those with a problem come first."""


@dataclass(frozen=True)
class Options:
    """Check this machine, or with --cluster every node of a Ray cluster: versions, GPUs, memory,
    disk, decoding, clocks, and whether all read and write the same store."""

    cluster: bool = False
    """Check every node of the cluster of --address or RAY_ADDRESS, from one of its nodes."""
    address: str | None = None
    """Ray cluster (host:port, or auto on a node of it); implies --cluster."""
    store: str = os.environ.get("SSDET_STORE", "runs")
    """Store to read and write, a folder or a URI (SSDET_STORE)."""
    data: str | None = None
    """A file or folder of data, or its URI, that all must see and read."""
    timeout: float = 120.0
    """Seconds that a node has to answer."""
    json: bool = False
    """Print JSON: whether all is well, and every finding."""


def command(arguments: list[str]) -> int:
    """Exit status 0 where all is well, 1 where something is not, 2 for wrong usage."""
    config = (tyro.conf.FlagCreatePairsOff,)
    options = tyro.cli(Options, args=arguments, prog="ssdet doctor", config=config)
    try:
        found = _found(options)
    except ImportError as error:
        way_out = "pip install --constraint constraints.txt --editable . (README.md)"
        print(f"PROBLEM this machine: {error}\n  way out: {way_out}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    fine = all(finding.ok for finding in found)
    if options.json:
        findings = [asdict(finding) for finding in found]
        print(json.dumps({"ok": fine, "findings": findings}, indent=1))
    else:
        show(found, plain_console())
    return 0 if fine else 1


def _found(options: Options) -> "list[Finding]":
    """ValueError for what cannot be asked, ConnectionError where no cluster answers, ImportError
    where a package of this machine is missing or broken."""
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
        print(session.summary(), file=sys.stderr)
        return examine(options.store, data, cluster=True, limit=options.timeout)


def show(found: "Sequence[Finding]", out: Console) -> None:
    """A table of checks by machine, and below it each problem with its way out."""
    bad = [finding for finding in found if not finding.ok]
    nodes = list(dict.fromkeys(f.node for f in [*found[:1], *bad, *found]))
    made = Table()
    made.add_column("check")
    for node in nodes[:COLUMNS]:
        made.add_column(Text(node), overflow="fold")
    cells = {(f.check, f.node): Text(f.found, "" if f.ok else "bold red") for f in found}
    for check in dict.fromkeys(f.check for f in found):
        made.add_row(check, *(cells.get((check, node), Text("")) for node in nodes[:COLUMNS]))
    out.print(made)
    if len(nodes) > COLUMNS:
        out.print(f"{len(nodes) - COLUMNS} more nodes are in --json and, where need be, below")
    for f in bad:
        text = f"PROBLEM {f.node}, {f.check}: {f.found}\n  way out: {f.way_out}"
        out.print(text, soft_wrap=True, markup=False)
    if not bad:
        out.print("all is well")
