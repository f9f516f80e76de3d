"""Networks of a run assembled into one, from clips to scores of frames."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssdet.stages.job import LAST
from ssdet.studies.graph.identity import Stage, StageLocator
from ssdet.studies.graph.lineage import FINE_STREAM, named_stages
from ssdet.studies.network_costs import row_width, with_fine_stream
from ssdet.training import checkpoint
from ssdet.training.heads.feature_heads import build_head
from ssdet.training.loop import network

State = Mapping[str, Tensor]


class BackboneWithHead(nn.Module):
    """Clips [B, C, T, H, W] -> logits [B, K, T] by a model of another network's features."""

    takes: ClassVar[str] = "clips"

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        features_BDT: Tensor = self.backbone.features(clips_BCTHW)  # type: ignore[operator]
        batch, _, steps = features_BDT.shape
        logits_BKT: Tensor = self.head(
            features_BDT, torch.full((batch,), steps, device=features_BDT.device)
        )
        return logits_BKT


def assemble(end: Stage, classes: int, find: StageLocator) -> nn.Module:
    """The network of the stage that scored a run, on the CPU and in evaluation mode.

    Of two streams the fine one sees the clips of each pass, where the run had its features of the
    whole video: the same where one pass is the video, but for the rounding of files.
    ValueError for an ensemble, and for weights that do not fit.
    """
    found = named_stages(end)
    if "finetune" not in found:
        raise ValueError(f"{end.id} is of several networks: assemble each of {end.parents}")
    tuned = found["finetune"]
    model = network(with_fine_stream(tuned.recipe), classes)
    state = _weights(tuned, find)
    if FINE_STREAM + "finetune" in found:
        fine = _weights(found[FINE_STREAM + "finetune"], find)
        state = {**{f"fine.{name}": value for name, value in fine.items()}, **state}
    _load(model, state, tuned.id)
    if "head" in found:
        recipe, weights = found["head"].recipe, _weights(found["head"], find)
        scorer = build_head(recipe, row_width(tuned.recipe, found["features"].recipe), classes)
        _load(scorer, weights, found["head"].id)
        return BackboneWithHead(model, scorer).eval()
    return model.eval()


def _weights(stage: Stage, find: StageLocator) -> dict[str, Tensor]:
    return checkpoint.load_weights(find(stage.id, LAST) / LAST)


def _load(model: nn.Module, state: State, stage: str) -> None:
    """Statistics of splits are of training alone, and are left as they are."""
    needed = {name for name in model.state_dict() if ".split_" not in name}
    if missing := sorted(needed - state.keys()):
        raise ValueError(f"{stage}: its checkpoint lacks {len(missing)} tensors, as {missing[0]}")
    model.load_state_dict({name: state[name] for name in needed}, strict=False)
