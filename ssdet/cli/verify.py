"""`ssdet verify`: recompute the table of a proof bundle from the predictions in it."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Options:
    """Recompute the table of a proof bundle on this machine's CPU, without its store and data."""

    bundle: Annotated[Path, tyro.conf.Positional]
    """File that `ssdet results bundle` wrote."""
    json: bool = False
    """Print JSON."""


def command(arguments: list[str]) -> int:
    """Exit status 0 where the table inside is what its predictions give, 1 where it is not or the
    file is damaged, 2 for wrong usage."""
    options = tyro.cli(
        Options, args=arguments, prog="ssdet verify", config=(tyro.conf.FlagCreatePairsOff,)
    )
    from ssdet.results.proof.verify import verify

    try:
        found = verify(options.bundle)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.json:
        print(json.dumps({**asdict(found), "holds": found.holds}, indent=1))
    else:
        print(found.told)
    return 0 if found.holds else 1
