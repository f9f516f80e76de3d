"""Combination of prediction sets: equal or weighted means of probabilities, logits or ranks.

Every method maps the members' scores to values and rounds their weighted float32 mean to float16,
block by block.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from ssdet.evaluation.average_precision import SIGN, Array, HistogramAP
from ssdet.evaluation.ensembling.alignment import Alignment, Grid, align
from ssdet.evaluation.ensembling.choices import Method, Videos
from ssdet.evaluation.predictions import PredictionSet, PredictionWriter

METHODS: tuple[Method, ...] = get_args(Method)
CODES = 0x3C00 + 1  # float16 bit patterns of 0 … 1
LOWEST, HIGHEST = 2.0**-26, 1 - 2.0**-13  # a quarter of a float16 step inside 0 and 1


def combine(
    members: Sequence[PredictionSet],
    folder: str | Path,
    method: Method = "mean_probability",
    weights: Sequence[float] | None = None,
    grid: Grid | None = None,
    videos: Videos = "equal",
) -> PredictionSet:
    """Write the combined scores of the members to ``folder`` and open it.

    ``mean_probability``; ``weighted``: the same with ``weights`` (>= 0, sum 1, one a member);
    ``mean_logit``: sigmoid of the mean logit, scores clamped to [2**-26, 1 - 2**-13], so that
    stored 0 and 1 have finite logits and are reproduced; ``rank_mean``: minus the mean fraction of
    the split's frames that score at least as high in the class (average ranks over frames, -1 …
    0: an order, no probability). Logits and ranks take weights too. Frames are those of ``grid``,
    by default the first member's (see `align`). Members are summed in the order of their folders'
    names, so that the order of ``members`` changes no bit. Raises ValueError for members that do
    not fit, altered data, wrong weights, scores outside 0 … 1 (logits and ranks) and a folder that
    is also a member's.
    """
    _check_weights(method, weights, len(members))
    return Combiner(align(members, grid, videos), method).write(folder, weights)


def mean_probability(members: Sequence[PredictionSet], folder: str | Path) -> PredictionSet:
    """Write the mean of the members' probabilities to ``folder`` and open it; see `combine`."""
    return combine(members, folder)


class Combiner:
    """One method over aligned members, any weighting of which is one streamed pass.

    ``rank_mean`` first counts every member's float16 scores per class: 61 kB a class and member
    (10 MB for 157 classes), for any number of frames.
    """

    def __init__(self, aligned: Alignment, method: Method) -> None:
        self.aligned, self.method = aligned, method
        self._tables: list[torch.Tensor] = []
        indices = range(len(aligned.members))
        self._order = sorted(indices, key=lambda i: aligned.members[i].folder.resolve())
        if method == "mean_logit":
            self._tables = [_logits()] * len(indices)
        elif method == "rank_mean":
            self._tables = [_rank_scores(aligned, member) for member in indices]

    def blocks(self, video: str, weights: Sequence[float] | None = None) -> Iterator[torch.Tensor]:
        """Combined float16 scores of one video, [at most 2048, K] at a time.

        Members of weight 0 are not read. Equal weights give the plain mean, bit for bit.
        """
        weights = [1.0] * len(self.aligned.members) if weights is None else weights
        chosen = [member for member in self._order if weights[member]]
        equal = len({weights[member] for member in chosen}) == 1
        for parts in zip(*(self._values(video, member) for member in chosen), strict=True):
            total = torch.zeros(parts[0].shape)
            for member, part in zip(chosen, parts, strict=True):
                total.add_(part, alpha=1 if equal else weights[member])
            if equal:
                total.div_(len(chosen))
            yield (total.sigmoid_() if self.method == "mean_logit" else total).half()

    def _values(self, video: str, member: int) -> Iterator[torch.Tensor]:
        for part in self.aligned.blocks(video, member):
            if not self._tables:
                yield part
                continue
            where = f"{self.aligned.members[member].folder}, video {video!r}"
            yield torch.take(self._tables[member], _cells(part, self._tables[member], where))

    def write(self, folder: str | Path, weights: Sequence[float] | None = None) -> PredictionSet:
        """Write the combined scores of all videos to ``folder`` and open it."""
        folder = Path(folder)
        for member in self.aligned.members:
            if member.folder.resolve() == folder.resolve():
                raise ValueError(
                    f"{folder}: is the folder of a member: write the ensemble elsewhere"
                )
        with PredictionWriter(folder, self.aligned.classes) as writer:
            for video, (_, fps) in self.aligned.grid.items():
                writer.add(video, torch.cat(list(self.blocks(video, weights))), fps)
        return PredictionSet.open(folder)

    def dense_map(
        self, targets: Mapping[str, Array], weights: Sequence[float] | None = None
    ) -> float:
        """The value of `dense_map` of the combined scores, without writing them."""
        self.aligned.check(targets)
        histogram = HistogramAP(self.aligned.classes)
        for video in self.aligned.grid:
            start = 0
            for block in self.blocks(video, weights):
                rows = slice(start, start + len(block))
                histogram.add(block, targets[video][rows], f"video {video!r}")
                start = rows.stop
        ap_K = histogram.average_precision()
        if np.isnan(ap_K).all():
            raise ValueError("no class has a positive frame: check the targets of this split")
        return float(ap_K[~np.isnan(ap_K)].mean())


def _logits() -> torch.Tensor:
    """The logit of every float16 from 0 to 1, [1, CODES]."""
    values = torch.arange(CODES, dtype=torch.int16).view(torch.float16).double()
    return values.clamp(LOWEST, HIGHEST).logit().float()[None]


def _rank_scores(aligned: Alignment, member: int) -> torch.Tensor:
    """Minus the fraction of frames that score at least as high, by class and score, [K, CODES]."""
    counts_KM = torch.zeros(aligned.classes, CODES, dtype=torch.int32)
    for video in aligned.grid:
        where = f"{aligned.members[member].folder}, video {video!r}"
        for part in aligned.blocks(video, member):
            cells = _cells(part, counts_KM, where).flatten()
            ones = torch.ones(1, dtype=torch.int32).expand(cells.shape)
            counts_KM.view(-1).scatter_add_(0, cells, ones)
    frames = sum(frames for frames, _ in aligned.grid.values())
    above_KM = frames - counts_KM.cumsum(1)
    return -((above_KM + (counts_KM + 1) / 2).double() / frames).float()


def _cells(part_NK: torch.Tensor, table: torch.Tensor, where: str) -> torch.Tensor:
    """Flat indices of scores in a table [K or 1, CODES], int64 [N, K]; -0 counts as 0."""
    bits_NK = part_NK.view(torch.int16).long() & 0xFFFF
    codes_NK = torch.where(bits_NK == SIGN, 0, bits_NK)
    if int(codes_NK.max()) >= CODES:
        raise ValueError(f"{where}: a score is outside 0 … 1: logits and ranks need probabilities")
    return codes_NK + torch.arange(len(table)) * CODES


def _check_weights(method: Method, weights: Sequence[float] | None, members: int) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose one of {', '.join(METHODS)}")
    if weights is None:
        if method == "weighted":
            raise ValueError(
                "method='weighted' needs weights, one a member: fit_weights finds some"
            )
        return
    if method == "mean_probability":
        raise ValueError("weights: method='mean_probability' has none, use method='weighted'")
    fits = len(weights) == members and all(weight >= 0 for weight in weights)
    if not fits or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise ValueError(
            f"weights {list(weights)} of {members} members: expected one a member, "
            "none below 0, sum 1"
        )
