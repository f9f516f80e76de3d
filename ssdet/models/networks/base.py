"""Base classes of video networks: parameter groups, and networks of stem, stages and head."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ssdet.models.registry import seeded


class VideoNetwork(nn.Module):
    """Clips [B, C, T, H, W] -> logits [B, K, T], one column per input frame."""

    takes: ClassVar[str] = "clips"
    classifier: str | tuple[str, ...]
    """Prefixes of the parameters whose shape depends on the number of classes."""

    @property
    def layers(self) -> list[nn.Module]:
        """Modules whose outputs [B, C, T, H, W] may be mixed (`ssdet.augment.manifold`): without
        any, clips are mixed at the input."""
        return []

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the head, which a recipe may give another learning rate."""
        return (p for name, p in self.named_parameters() if name.startswith(self.classifier))

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters that `head_parameters` does not yield."""
        head = {id(parameter) for parameter in self.head_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in head)


class BlockNetwork(VideoNetwork):
    """A network of `blocks`: the stem, the stages and the head, whose last layer is `proj`.

    Subclasses define `score`.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.classifier = f"blocks.{len(blocks) - 1}.proj."

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        return self.score(self.features(clips_BCTHW))

    def classify(self, clips_BCTHW: Tensor) -> Tensor:
        """Logits [B, K] of whole clips: features are averaged over time before the head."""
        return self.score(self.features(clips_BCTHW).mean(2, keepdim=True)).squeeze(2)

    def features(self, clips_BCTHW: Tensor) -> Tensor:
        """Features [B, D, T]: the input of `score`, one column per frame."""
        x_BCTHW = clips_BCTHW
        for block in self.blocks[:-1]:
            x_BCTHW = block(x_BCTHW)
        return self.pool(x_BCTHW)

    def pool(self, x_BCTHW: Tensor) -> Tensor:
        """Features [B, D, T] of the last stage's output: means over the positions of each frame."""
        return x_BCTHW.mean((3, 4))

    def score(self, features_BDT: Tensor) -> Tensor:
        """Logits [B, K, T] of features."""
        raise NotImplementedError(f"{type(self).__name__}.score")

    @property
    def head(self) -> Any:
        return self.blocks[-1]

    @property
    def layers(self) -> list[nn.Module]:
        """The stages."""
        return list(self.blocks)[1:-1]

    @property
    def temporal_context(self) -> int | None:
        """Frames before and after it that a frame's logits depend on; None: all frames."""
        return sum(m.kernel_size[0] // 2 for m in self.modules() if isinstance(m, nn.Conv3d))

    def reset_classifier(self, num_classes: int, generator: torch.Generator | None = None) -> None:
        """Replace the last layer by a fresh one for `num_classes` classes."""
        old = self.head.proj
        with seeded(generator):
            fresh = nn.Linear(old.in_features, num_classes)
        self.head.proj = fresh.to(old.weight)


def initialise_convolutions(model: nn.Module) -> None:
    """Draw the weights of all 3-D convolutions (He et al. 2015, fan-out)."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
