"""Import of the user's checkpoints into the cache, by name and under ssdet's tensor names."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ssdet.data.storage.build_once import build_once
from ssdet.data.storage.cache import cache_folder
from ssdet.models.registry import create
from ssdet.models.weights import published
from ssdet.models.weights.loading import LoadReport, State, find_network, load_weights, read_state


@dataclass(frozen=True)
class Imported:
    """Imported weights and their origin."""

    name: str
    model: str
    """Network of `ssdet.models`, with `options` and `classes`."""
    options: dict[str, Any]
    classes: int
    layout: str
    """Layout of the original file, which determines the normalisation of clips."""
    source: str
    """Path of the original file; `sha256` is its hash."""
    sha256: str

    @property
    def file(self) -> Path:
        """Checkpoint for `load_weights`, under the network's own names."""
        return _folder(self.name) / "weights.pt"


def available() -> list[str]:
    """Names of imported weights in this cache."""
    return sorted(path.parent.name for path in _folder("").glob("*/source.json"))


def named(name: str) -> Imported:
    """Imported weights by name. ValueError for an unknown name."""
    if name not in available():
        names = ", ".join(available()) or "none yet"
        raise ValueError(f"no imported weights {name!r}: choose from {names}")
    return Imported(**json.loads((_folder(name) / "source.json").read_text(encoding="utf-8")))


def import_weights(
    file: Path,
    model: str,
    *,
    name: str = "",
    layout: str = "auto",
    options: Mapping[str, Any] | None = None,
    aggregate: bool = False,
) -> tuple[Imported, LoadReport]:
    """Load a checkpoint into a network and store the loaded tensors, as `name` or the file's name.

    options: options of the network, whose number of classes is that of the file. layout, aggregate:
    as in `load_weights`. Idempotent. ValueError if the file does not fit the network or is not safe
    to read (`load_weights`), or other weights have this name.
    """
    name = _checked(name or file.stem)
    given: dict[str, Any] = json.loads(json.dumps(dict(options or {})))
    where, state = read_state(file)
    classes = classes_in(state, model, given, layout, where)
    network = create(model, classes, generator=torch.Generator(), **given)
    report = load_weights(network, file, layout, aggregate)
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    source = str(file.absolute())
    imported = Imported(name, model, given, classes, report.layout, source, digest)
    tensors = network.state_dict()
    loaded = {n: tensors[n] for n in report.loaded if ".split_" not in n}

    def build(work: Path) -> None:
        description = asdict(imported)
        torch.save({"model": loaded, "imported": description}, work / "weights.pt")
        (work / "source.json").write_text(json.dumps(description, indent=1), encoding="utf-8")

    build_once(_folder(name), build)
    existing = named(name)
    if replace(existing, source=source) != imported:
        raise ValueError(
            f"{name!r} is {existing.model} of {existing.source} already: choose another --name, or "
            f"remove {_folder(name)}"
        )
    return existing, report


def classes_in(
    state: State, model: str, options: Mapping[str, Any], layout: str, where: str
) -> int:
    """Number of classes of a network with these options whose classifier the tensors fit.

    ValueError for none or several numbers.
    """
    with torch.device("meta"):
        with_two, with_three = (create(model, count, **options) for count in (2, 3))
    wider = with_three.state_dict()
    tensors = find_network(state, with_two, layout, where).tensors
    counts = {
        # Sizes are linear in the number of classes, with an offset for some: 2D + K inputs.
        (size - two) / (three - two) + 2
        for key, tensor in with_two.state_dict().items()
        if key in tensors and tensors[key].ndim == tensor.ndim
        for size, two, three in zip(tensors[key].shape, tensor.shape, wider[key].shape, strict=True)
        if two != three
    }
    if len(counts) != 1:
        numbers = " and ".join(f"{count:g}" for count in sorted(counts)) or "no"
        raise ValueError(
            f"{where}: as {model} it has {numbers} classes, expected one number: name the network "
            "of the file, its options, and the layout"
        )
    return int(counts.pop())


_CLASSIFIER = re.compile(
    r"(fc2|pf|per_frame|classify|classes\.steps|labels\.score|readouts\.score\.0|stage1\.conv_out"
    r"|blocks\.\d+\.proj|(rgb\.|flow\.)?logits\.conv3d|Classfication_Module\.linear_pred)\.bias"
    r"|params/Logits/Conv3d_0c_1x1/Conv_0/bias"
)
"""Names of the last bias in all layouts."""


def classes_told(state: State) -> int | None:
    """Number of classes by the biases of known classifiers; None without one, or if they differ."""
    sizes = {tensor.numel() for name, tensor in state.items() if _CLASSIFIER.fullmatch(name)}
    return sizes.pop() if len(sizes) == 1 else None


def parameters_in(state: State) -> int:
    """Number of parameters in tensors; shared storage counts once."""
    statistics = re.compile(r"running_|split_|num_batches_tracked$|^batch_stats/")
    learnable = [tensor for name, tensor in state.items() if not statistics.search(name)]
    sizes = {(t.untyped_storage().data_ptr(), t.storage_offset()): t.numel() for t in learnable}
    return sum(sizes.values())


def _folder(name: str) -> Path:
    return cache_folder() / "weights" / "imported" / name


def _checked(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name):
        raise ValueError(f"name {name!r}: use letters, digits and . _ + - (--name)")
    if name in published.available():
        raise ValueError(f"{name!r} is a published name: choose another (--name)")
    return name
