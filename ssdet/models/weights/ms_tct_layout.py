"""Layout of MS-TCT's published weights."""

import re

from torch import nn

from ssdet.models.weights.loading import State, register_layout


@register_layout("ms_tct", lambda state: "Temporal_Mixer.linear_f1.proj.weight" in state)
def _from_published(state: State, model: nn.Module) -> State:
    """Names of the published code, where stages and rates count from 1."""
    return {_own(name): value for name, value in state.items()}


_NAMES = (
    (r"^TemporalEncoder\.Temporal_Merging_Block(\d)\.proj\.", r"stages.#\1.merge."),
    (r"^TemporalEncoder\.Temporal_Merging_Block(\d)\.norm\.", r"stages.#\1.merge_norm."),
    (r"^TemporalEncoder\.block(\d)\.", r"stages.#\1.blocks."),
    (r"^TemporalEncoder\.norm(\d)\.", r"stages.#\1.norm."),
    (r"\.Global_Relational_Block\.", ".attention."),
    (r"\.Local_Relational_Block\.linear1\.", ".local.expand."),
    (r"\.Local_Relational_Block\.TC\.", ".local.conv."),
    (r"\.Local_Relational_Block\.linear2\.", ".local.reduce."),
    (r"^Temporal_Mixer\.linear_f(\d)\.proj\.", r"mixer.project.#\1."),
    (r"^Temporal_Mixer\.linear(\d)\.", r"mixer.cross.#\1."),
    (r"^Classfication_Module\.linear_fuse\.", "fuse."),
    (r"^Classfication_Module\.linear_pred\.", "classes.steps."),
    (r"^Classfication_Module\.hm\.0\.", "spread."),
    (r"^Classfication_Module\.hm\.2\.", "classes.heat."),
)


def _own(name: str) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"#(\d)", lambda found: str(int(found[1]) - 1), name)
