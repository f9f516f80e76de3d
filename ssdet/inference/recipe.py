"""The recipe of prediction over whole videos."""

from dataclasses import dataclass, field

from ssdet.data.loading.recipe import ClipRecipe


@dataclass(frozen=True)
class PredictRecipe:
    """How a network is slid over whole videos."""

    clip: ClipRecipe = field(default_factory=ClipRecipe)
    window: int = 256
    """Most clip frames in one pass; longer videos are cut into equal parts."""
    overlap: bool = False
    """Let each pass read as far beyond its part as the network sees (its `temporal_context`): the
    scores are then those of one pass. A network that sees everything, or does not say how far, gets
    an eighth of the window: no part then ends in padding, but its scores depend on the window."""
