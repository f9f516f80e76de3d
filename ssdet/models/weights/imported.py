"""Checkpoints of the user's own, kept by name as files of tensors under our names."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssdet.data.storage.build_once import build_once
from ssdet.data.storage.cache import cache_folder
from ssdet.models.registry import create
from ssdet.models.weights import published
from ssdet.models.weights.loading import LoadReport, State, find_network, load_weights, read_state


@dataclass(frozen=True)
class Imported:
    """Weights in the cache, and what they are."""

    name: str
    model: str
    """Network of `ssdet.models` that they are of, with these options."""
    options: dict[str, Any]
    classes: int
    layout: str
    """Layout of the file that they come from, which tells what pictures they are used to."""
    source: str
    """Path of that file, and its hash."""
    sha256: str

    @property
    def file(self) -> Path:
        """A checkpoint that `load_weights` reads, in the network's own names."""
        return _folder(self.name) / "weights.pt"


def available() -> list[str]:
    """Names that have been imported into this cache."""
    return sorted(path.parent.name for path in _folder("").glob("*/source.json"))


def named(name: str) -> Imported:
    """What a name stands for. ValueError for one that was not imported."""
    if name not in available():
        told = ", ".join(available()) or "none yet"
        raise ValueError(f"no imported weights {name!r}: choose from {told}")
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
    """Load a checkpoint into a network and keep what was loaded, by `name` or the file's own.

    options: of the network, whose number of classes is that of the file. layout, aggregate: as in
    `load_weights`. The same import again changes nothing. ValueError where the file does not fit
    the network or is not safe to read (`load_weights`), or the name is not free.
    """
    name = _checked(name or file.stem)
    given: dict[str, Any] = json.loads(json.dumps(dict(options or {})))
    where, state = read_state(file)
    classes = classes_in(state, model, given, layout, where)
    network = create(model, classes, generator=torch.Generator(), **given)
    report = load_weights(network, file, layout, aggregate)
    with open(file, "rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    source = str(file.absolute())
    told = Imported(name, model, given, classes, report.layout, source, found)
    tensors = network.state_dict()
    kept = {n: tensors[n] for n in report.loaded if ".split_" not in n}

    def build(work: Path) -> None:
        torch.save({"model": kept, "imported": asdict(told)}, work / "weights.pt")
        (work / "source.json").write_text(json.dumps(asdict(told), indent=1), encoding="utf-8")

    build_once(_folder(name), build)
    there = named(name)
    if replace(there, source=source) != told:
        raise ValueError(
            f"{name!r} is {there.model} of {there.source} already: choose another --name, or "
            f"remove {_folder(name)}"
        )
    return there, report


def classes_in(
    state: State, model: str, options: Mapping[str, Any], layout: str, where: str
) -> int:
    """How many classes a network of these options must have for tensors to fit its classifier.

    ValueError where they have none, or several numbers.
    """
    with torch.device("meta"):
        few, more = (create(model, count, **options) for count in (2, 3))
    wider = more.state_dict()
    found = find_network(state, few, layout, where).tensors
    counts = {
        # Sizes grow with the classes, some from more than none: 2D + K inputs.
        (size - two) / (three - two) + 2
        for key, tensor in few.state_dict().items()
        if key in found and found[key].ndim == tensor.ndim
        for size, two, three in zip(found[key].shape, tensor.shape, wider[key].shape, strict=True)
        if two != three
    }
    if len(counts) != 1:
        told = " and ".join(f"{count:g}" for count in sorted(counts)) or "no"
        raise ValueError(
            f"{where}: as {model} it has {told} classes, expected one number: name the network "
            "that the file is of, its options, and the layout"
        )
    return int(counts.pop())


_CLASSIFIER = re.compile(
    r"(fc2|pf|per_frame|classify|classes\.steps|labels\.score|readouts\.score\.0|stage1\.conv_out"
    r"|blocks\.\d+\.proj|(rgb\.|flow\.)?logits\.conv3d|Classfication_Module\.linear_pred)\.bias"
    r"|params/Logits/Conv3d_0c_1x1/Conv_0/bias"
)
"""What the last bias is called in our names and in those of the known layouts."""


def classes_told(state: State) -> int | None:
    """How many classes tensors are for, by the names of known classifiers; None if these do not
    tell, or not the same."""
    sizes = {tensor.numel() for name, tensor in state.items() if _CLASSIFIER.fullmatch(name)}
    return sizes.pop() if len(sizes) == 1 else None


def parameters_in(state: State) -> int:
    """Learnable numbers among tensors, each once though two names may share it."""
    statistics = re.compile(r"running_|split_|num_batches_tracked$|^batch_stats/")
    learnt = [tensor for name, tensor in state.items() if not statistics.search(name)]
    return sum({_place(tensor): tensor.numel() for tensor in learnt}.values())


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())


def _folder(name: str) -> Path:
    return cache_folder() / "weights" / "imported" / name


def _checked(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name):
        raise ValueError(f"name {name!r}: use letters, digits and . _ + - (--name)")
    if name in published.available():
        raise ValueError(f"{name!r} is a published name: choose another (--name)")
    return name
