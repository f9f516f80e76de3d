"""Batches decoded by Ray Data: tasks on CPUs of any node, in order, for a trainer elsewhere.

A row is what one batch is made of, and nothing else decides what is in it: who decodes it, when,
and how often it is tried again change nothing.
"""

import logging
import pickle
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ssdet.data.clips import Batch, collate

DECODER_CPU = 0.99
"""With a whole one, a full node has no room for a driver beside its decoders."""

STRETCH = 1000
"""Batches that Ray Data is given at once; it lists all of its rows before the first."""

AHEAD = 2
"""Batches per decoder that may lie ahead of the trainer, as far as Ray Data keeps to it."""

Row = dict[str, np.ndarray]


def stream(
    dataset: Dataset, places: Iterable[list[Any]], decoders: int, size: int
) -> Iterator[Batch]:
    """The samples of a data set at these places, a batch for each, decoded by `decoders` tasks.

    Where this process has a GPU, they run on nodes without one, if there are any. size: bytes of
    the pictures of a batch. ValueError where Ray is not initialised.
    """
    import ray

    if not ray.is_initialized():
        raise ValueError(
            f"decoders={decoders}: they are tasks of Ray, which is not initialised here: run the "
            "study by its command, initialise Ray first, or use loaders, which need none"
        )
    return _stream(dataset, iter(places), decoders, size)


def _stream(
    dataset: Dataset, places: Iterator[list[Any]], decoders: int, size: int
) -> Iterator[Batch]:
    import ray

    shared = ray.put(dataset)
    while stretch := list(islice(places, STRETCH)):
        with closing(_decoded(shared, stretch, decoders, size)) as rows:
            yield from map(_unpacked, rows)


def _decoded(shared: Any, places: list[list[Any]], decoders: int, size: int) -> Any:
    """Iterator of rows, which ends its tasks when it is closed."""
    from ray import data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    room = AHEAD * (decoders + 1) * size
    context.execution_options.resource_limits = data.ExecutionResources(object_store_memory=room)
    with data.DataContext.current(context):
        rows = [{"places": pickle.dumps(batch)} for batch in places]
        decoded = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            partial(_decode, shared=shared),
            batch_size=1,
            compute=data.TaskPoolStrategy(decoders),
            num_cpus=DECODER_CPU,
            label_selector=_nodes(),
        )
        return iter(decoded.iter_batches(batch_size=None, batch_format="numpy"))


def _nodes() -> dict[str, str] | None:
    """Where a trainer on a GPU wants its decoders: on none of the nodes that have GPUs."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    owners = [node["NodeID"] for node in nodes if node["Resources"].get("GPU")]
    if not ray.get_gpu_ids() or len(owners) == len(nodes):
        return None
    return {"ray.io/node-id": f"!in({','.join(owners)})"}


def _decode(row: Row, shared: Any) -> Row:
    """One batch: its pictures as an array that is not copied, and all else."""
    torch.set_num_threads(1)
    dataset = _dataset(shared)
    batch = collate([dataset[place] for place in pickle.loads(row["places"][0])])
    rest = np.empty(1, object)
    rest[0] = pickle.dumps(replace(batch, clips_BTHWC=batch.clips_BTHWC[:0]))
    return {"pictures": batch.clips_BTHWC.numpy()[None], "rest": rest}


@lru_cache(maxsize=1)
def _dataset(shared: Any) -> Any:
    """The data set once a process, which decodes many batches."""
    import ray

    return ray.get(shared)


def _unpacked(row: Row) -> Batch:
    # A copy: what Ray holds is shared, and must not be written to.
    pictures = torch.from_numpy(row["pictures"][0].copy())
    return replace(pickle.loads(row["rest"][0]), clips_BTHWC=pictures)
