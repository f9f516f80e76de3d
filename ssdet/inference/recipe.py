"""Recipe of prediction over whole videos."""

from dataclasses import dataclass, field

from ssdet.data.loading.recipe import ClipRecipe


@dataclass(frozen=True)
class PredictRecipe:
    """Clips and windows in which a network reads whole videos."""

    clip: ClipRecipe = field(default_factory=ClipRecipe)
    window: int = 256
    """Maximum clip frames in one pass; longer videos are cut into equal parts."""
    overlap: bool = False
    """Let each pass read `temporal_context` of the network beyond its part on each side: scores are
    then those of one pass. A network with unlimited or unknown context gets an eighth of the
    window: no part then ends in padding, but scores depend on the window."""
