"""Layouts of published weights of Super-Events, TGM and PDAN."""

import re

from torch import nn

from ssdet.models.weights.loading import State, register_layout

_TWICE = {"sup": "super_event", "sup2": "super_event2", "pf": "per_frame"}
"""Modules that the published code registers under a second name."""
_EVENTS = ("super_event", "super_event2", "cls_wts", "sup_mat")


@register_layout("tgm", lambda state: "sub_event1.soft_attn" in state)
def _from_tgm(state: State, model: nn.Module) -> State:
    """Names of TGM's code, with Super-Events or without: layers count from 1."""
    return {
        re.sub(r"^sub_event(\d+)", lambda found: f"layers.{int(found[1]) - 1}", name): value
        for name, value in _from_super_events(state, model).items()
    }


@register_layout("super_events", lambda state: "cls_wts" in state)
def _from_super_events(state: State, model: nn.Module) -> State:
    """Names of Super-Events' code, whose classifier is a convolution over T, H and W."""
    converted: State = {}
    for name, value in state.items():
        module, dot, rest = name.partition(".")
        module = _TWICE.get(module, module)
        own = f"events.{module}" if module in _EVENTS else module
        if own == "per_frame" and rest == "weight":
            value = value.flatten(1)[..., None]
        converted[own + dot + rest] = value
    return converted


@register_layout("pdan", lambda state: "stage1.conv_1x1.weight" in state)
def _from_pdan(state: State, model: nn.Module) -> State:
    """Names of PDAN's code, which are those of `ssdet.models.networks.pdan`."""
    return state
