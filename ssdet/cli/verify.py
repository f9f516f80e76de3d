"""`ssdet verify`: recompute the table of a proof bundle from the predictions in it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ssdet.cli.shared import AsJson, note, parse, print_json, report_errors


@dataclass(frozen=True)
class Options:
    """Recompute the table of a proof bundle on this machine's CPU, without its store and data."""

    bundle: Annotated[Path, tyro.conf.Positional]
    """File that `ssdet results bundle` wrote."""
    as_json: AsJson = False


@report_errors()
def command(arguments: list[str]) -> int:
    """Return status 0 where the table follows from the predictions, 1 where it does not or the
    file is damaged, 2 for wrong usage."""
    options = parse(Options, arguments, "ssdet verify")
    from ssdet.results.proof.verify import verify

    verification = verify(options.bundle)
    for warning in verification.warnings:
        note(f"warning: {warning}")
    if options.as_json:
        print_json({**asdict(verification), "holds": verification.holds})
    else:
        print(verification.summary)
    return 0 if verification.holds else 1
