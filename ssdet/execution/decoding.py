"""Decoding of training batches in Ray tasks, in order, on CPUs of any node.

The samples of a batch are drawn before it is decoded, so neither the node nor the time of decoding
nor retries change it.
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
"""CPUs of a task: with a whole one, a full node has no room for a driver beside its decoders."""

AHEAD = 4
"""Batches per decoder that are being decoded or queued for the trainer."""


def decode_batches(
    dataset: Dataset, indices: Iterable[list[Any]], decoders: int
) -> Iterator[Batch]:
    """Batches of the samples at each list of indices, decoded by `decoders` tasks at a time.

    Where this process has a GPU, tasks run on nodes without one, if there are any. A task whose
    node dies is retried three times. ValueError where Ray is not initialised; errors of a task are
    raised here as RayTaskError.
    """
    import ray

    if not ray.is_initialized():
        raise ValueError(
            f"decoders={decoders}: they are tasks of Ray, which is not initialised here: run the "
            "study by its command, initialise Ray first, or use loaders, which need none"
        )
    return _stream(dataset, iter(indices), decoders)


def _stream(dataset: Dataset, indices: Iterator[list[Any]], decoders: int) -> Iterator[Batch]:
    # Not Ray Data: it bounds the queue by bytes and reserves some for running tasks, so that with 8
    # batches per decoder it ran one of four decoders.
    import ray

    # SPREAD also keeps tasks out of the trial's placement group, which has no room for them.
    decode = ray.remote(_decode).options(
        num_cpus=DECODER_CPU, label_selector=_nodes(), scheduling_strategy="SPREAD"
    )
    shared = [ray.put(dataset)]  # a task gets the reference in a list, and reads it once a process
    ordered, running = deque[Any](), list[Any]()
    try:
        while True:
            if running:
                running = ray.wait(running, num_returns=len(running), timeout=0)[1]
            room = min(decoders - len(running), AHEAD * decoders - len(ordered))
            started = [decode.remote(shared, batch) for batch in islice(indices, room)]
            running += started
            ordered += started
            if not ordered:
                return
            if ordered[0] in running:
                ray.wait(running, num_returns=1)
            else:
                pictures, rest = ray.get(ordered.popleft())
                # Copied, since Ray's shared memory must not be written to.
                yield replace(rest, clips_BTHWC=torch.from_numpy(pictures.copy()))
    finally:
        if ray.is_initialized():
            for task in running:
                ray.cancel(task)


def _nodes() -> dict[str, str] | None:
    """Label selector of decoders: where the trainer has a GPU, nodes without GPUs."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    with_gpu = [node["NodeID"] for node in nodes if node["Resources"].get("GPU")]
    if not ray.get_gpu_ids() or len(with_gpu) == len(nodes):
        return None
    return {"ray.io/node-id": f"!in({','.join(with_gpu)})"}


def _decode(shared: list[Any], indices: list[Any]) -> tuple[np.ndarray, Batch]:
    """One batch: its pictures as an array, which Ray passes without a copy, and the rest."""
    torch.set_num_threads(1)
    dataset = _dataset(shared[0])
    batch = collate([dataset[index] for index in indices])
    return batch.clips_BTHWC.numpy(), replace(batch, clips_BTHWC=batch.clips_BTHWC[:0].clone())


@lru_cache(maxsize=1)
def _dataset(shared: Any) -> Any:
    """The data set, read once by a process that decodes many batches."""
    import ray

    return ray.get(shared)
