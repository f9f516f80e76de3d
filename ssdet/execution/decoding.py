"""Batches decoded by tasks of Ray, on CPUs of any node, in order, for a trainer elsewhere.

What a batch is made of is decided before, and nothing else decides what is in it: who decodes it,
when, and how often it is tried again change nothing.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ssdet.data.loading.batches import Batch, collate

DECODER_CPU = 0.99
"""With a whole one, a full node has no room for a driver beside its decoders."""

AHEAD = 4
"""Batches per decoder that are being decoded or wait for the trainer."""


def decode_batches(dataset: Dataset, places: Iterable[list[Any]], decoders: int) -> Iterator[Batch]:
    """The samples of a data set at these places, a batch for each, decoded by `decoders` tasks at a
    time.

    Where this process has a GPU, they run on nodes without one, if there are any. A task whose
    node dies is tried again, three times. ValueError where Ray is not initialised; what a task
    raises is raised here, as RayTaskError.
    """
    import ray

    if not ray.is_initialized():
        raise ValueError(
            f"decoders={decoders}: they are tasks of Ray, which is not initialised here: run the "
            "study by its command, initialise Ray first, or use loaders, which need none"
        )
    return _stream(dataset, iter(places), decoders)


def _stream(dataset: Dataset, places: Iterator[list[Any]], decoders: int) -> Iterator[Batch]:
    # Not Ray Data: it bounds what lies ahead by bytes, and with 8 batches per decoder it ran one of
    # four decoders, since it sets bytes aside for what tasks may yet deliver.
    import ray

    # SPREAD also keeps them out of a trial's own place, which has no room for them.
    decode = ray.remote(_decode).options(
        num_cpus=DECODER_CPU, label_selector=_nodes(), scheduling_strategy="SPREAD"
    )
    shared = [ray.put(dataset)]  # in a list, a task gets the reference, and reads it once a process
    ordered, running = deque[Any](), list[Any]()
    try:
        while True:
            if running:
                running = ray.wait(running, num_returns=len(running), timeout=0)[1]
            room = min(decoders - len(running), AHEAD * decoders - len(ordered))
            started = [decode.remote(shared, batch) for batch in islice(places, room)]
            running += started
            ordered += started
            if not ordered:
                return
            if ordered[0] in running:
                ray.wait(running, num_returns=1)
            else:
                yield _whole(*ray.get(ordered.popleft()))
    finally:
        if ray.is_initialized():
            for task in running:
                ray.cancel(task)


def _nodes() -> dict[str, str] | None:
    """Where a trainer on a GPU wants its decoders: on none of the nodes that have GPUs."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    owners = [node["NodeID"] for node in nodes if node["Resources"].get("GPU")]
    if not ray.get_gpu_ids() or len(owners) == len(nodes):
        return None
    return {"ray.io/node-id": f"!in({','.join(owners)})"}


def _decode(shared: list[Any], places: list[Any]) -> tuple[np.ndarray, Batch]:
    """One batch: its pictures as an array, which Ray does not copy, and all else."""
    torch.set_num_threads(1)
    dataset = _dataset(shared[0])
    batch = collate([dataset[place] for place in places])
    return batch.clips_BTHWC.numpy(), replace(batch, clips_BTHWC=batch.clips_BTHWC[:0].clone())


@lru_cache(maxsize=1)
def _dataset(shared: Any) -> Any:
    """The data set once a process, which decodes many batches."""
    import ray

    return ray.get(shared)


def _whole(pictures: np.ndarray, rest: Batch) -> Batch:
    # A copy: what Ray holds is shared, and must not be written to.
    return replace(rest, clips_BTHWC=torch.from_numpy(pictures.copy()))
