"""Contract checks of networks."""

import copy
import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssdet.augment import mixed_at
from ssdet.models import create
from ssdet.models.registry import options_of
from ssdet.testing.expect import close, expect, no_global_draws, seeded

Arguments = tuple[Any, ...]
Inputs = Callable[[int, int, torch.Generator], Arguments]
"""(batch, steps, generator) -> arguments of `forward`, the first element of the batch the longest;
tensors, or tuples of tensors, with the batch in front."""

CLASSES = 5
STEPS = (8, 7, 1)
SIZE = 32
HALF_SLACK = {torch.float16: 0.02, torch.bfloat16: 0.1}
"""Share of the logits' norm by which those of autocast may differ: 2^-11 or 2^-8 a step, some
dozen deep."""


def check_model(
    name: str,
    *,
    inputs: Inputs | None = None,
    steps: Sequence[int] = STEPS,
    unreached: Collection[str] = (),
    **options: Any,
) -> None:
    """Raise AssertionError unless a registered network, with these options, fulfils the contract.

    Its class attribute `takes` is the kind of its input: "clips" [B, C, T, 32, 32], "features"
    [B, D, T] with lengths [B], or "detections", for which `inputs` must make small ones. `steps`:
    tested lengths T. `unreached`: prefixes of parameters that no logit depends on.
    """
    weights_come_from_the_generator(name, options)
    model = create(name, CLASSES, generator=seeded(0), **options).eval()
    case = Case(name, model, inputs or inputs_of(name, model, options))
    for count in steps:
        logits_for_every_step(case, count)
    longest = max(steps)
    evaluation_is_repeatable(case, longest)
    batch_elements_are_independent(case, longest)
    weights_save_and_load(case, longest, create(name, CLASSES, generator=seeded(1), **options))
    classifier_is_named(case, create(name, CLASSES + 2, generator=seeded(0), **options))
    groups_hold_every_parameter(case)
    if _takes(name, model) == "clips":
        clips_are_classified(case, longest)
        levels_can_be_mixed(case, longest)
    if _takes(name, model) == "features":
        exact = {"padding": "exact"} if "padding" in options_of(name) else {}
        padded = create(name, CLASSES, generator=seeded(0), **{**options, **exact}).eval()
        padding_changes_nothing(Case(name, padded, case.inputs), longest)
    classifier_is_replaced(case, longest)
    half_precision_is_close(case, longest)
    gradients_reach_every_parameter(case, longest, tuple(unreached))


@dataclass(frozen=True)
class Case:
    """A network under test, in evaluation mode, and the factory of its inputs."""

    name: str
    model: Any
    inputs: Inputs

    def arguments(self, batch: int, steps: int) -> Arguments:
        return self.inputs(batch, steps, seeded(batch * 1000 + steps))

    @torch.no_grad()
    def scores(self, arguments: Arguments) -> Tensor:
        found: Tensor = self.model(*arguments)
        return found

    def expect(self, condition: object, message: str) -> None:
        expect(condition, f"model {self.name!r}: {message}")


def _takes(name: str, model: nn.Module) -> str:
    takes = getattr(model, "takes", None)
    kinds = ("clips", "features", "detections")
    told = f"model {name!r}: {type(model).__name__}.takes is {takes!r}, expected one of {kinds}"
    expect(takes in kinds, told)
    return str(takes)


def inputs_of(name: str, model: nn.Module, options: dict[str, Any]) -> Inputs:
    """Makes random clips or features for a network; AssertionError for one of detections."""
    takes = _takes(name, model)
    expect(takes != "detections", f"model {name!r}: pass inputs=, which makes small detections")
    width, channels = options.get("in_features", 432), getattr(model, "in_channels", None)
    channels = channels or options.get("in_channels", 3)

    def features(batch: int, steps: int, generator: torch.Generator) -> Arguments:
        lengths = [max(1, steps - 3 * b) for b in range(batch)]
        return torch.randn(batch, width, steps, generator=generator), torch.tensor(lengths)

    def clips(batch: int, steps: int, generator: torch.Generator) -> Arguments:
        return (torch.randn(batch, channels, steps, SIZE, SIZE, generator=generator),)

    return features if takes == "features" else clips


def weights_come_from_the_generator(name: str, options: dict[str, Any]) -> None:
    """Equal generators give equal weights, and the global generator does not change."""
    with no_global_draws(f"model {name!r}: create(generator=...)"):
        states = [create(name, CLASSES, generator=seeded(s), **options) for s in (0, 0, 1)]
    same, again, other = ([*model.state_dict().values()] for model in states)
    equal = all(torch.equal(a, b) for a, b in zip(same, again, strict=True))
    expect(equal, f"model {name!r}: equal generators give different weights")
    differ = any(not torch.equal(a, b) for a, b in zip(same, other, strict=True))
    expect(differ, f"model {name!r}: other generators give the same weights")


def logits_for_every_step(case: Case, steps: int) -> None:
    """Finite float32 logits [B, K, T], also for a batch of one."""
    for batch in (2, 1):
        logits = case.scores(case.arguments(batch, steps))
        found = f"logits {tuple(logits.shape)} {logits.dtype} for {batch} x {steps} steps"
        right = logits.shape == (batch, CLASSES, steps) and logits.dtype == torch.float32
        case.expect(right, f"{found}, expected ({batch}, {CLASSES}, {steps}) torch.float32")
        case.expect(logits.isfinite().all(), f"{found} are not finite")


def evaluation_is_repeatable(case: Case, steps: int) -> None:
    """Evaluation is repeatable, draws nothing and does not modify its inputs; training is
    repeatable with torch's seed."""
    arguments, fresh = case.arguments(2, steps), case.arguments(2, steps)
    with no_global_draws(f"model {case.name!r}: evaluation"):
        first, second = case.scores(arguments), case.scores(arguments)
    case.expect(torch.equal(first, second), "evaluation gives other logits the second time")
    untouched = zip(_tensors(arguments), _tensors(fresh), strict=True)
    case.expect(all(torch.equal(a, b) for a, b in untouched), "forward writes into its inputs")
    runs = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            runs.append(copy.deepcopy(case.model).train()(*arguments))
    case.expect(torch.equal(*runs), "training differs with the same seed of torch")


def batch_elements_are_independent(case: Case, steps: int) -> None:
    """In evaluation an element has the same logits alone and in a batch."""
    arguments = case.arguments(2, steps)
    alone = case.scores(_first(arguments))
    case.expect(
        close(alone, case.scores(arguments)[:1]), "logits depend on the others of the batch"
    )


def weights_save_and_load(case: Case, steps: int, other: nn.Module) -> None:
    """A state dict, through a file, makes any network of these options this one."""
    file = io.BytesIO()
    torch.save(case.model.state_dict(), file)
    file.seek(0)
    other.eval().load_state_dict(torch.load(file, weights_only=True))
    arguments = case.arguments(2, steps)
    again = Case(case.name, other, case.inputs).scores(arguments)
    told = "loaded weights score differently: something learned or drawn is not in the state dict"
    case.expect(torch.equal(again, case.scores(arguments)), told)


def classifier_is_named(case: Case, wider: nn.Module) -> None:
    """`classifier` (a prefix, or several) names the parameters whose shape depends on the classes;
    or `fresh` does, in networks of two streams, with all that a stream's checkpoint lacks.

    Networks of features, which never start from one with other classes, need not have it.
    """
    shapes = {name: tensor.shape for name, tensor in wider.state_dict().items()}
    state = case.model.state_dict()
    differ = [name for name, tensor in state.items() if shapes.get(name) != tensor.shape]
    case.expect(shapes.keys() == state.keys() and differ, "the classes change more than shapes")
    prefix = getattr(case.model, "classifier", None)
    if prefix is not None or case.model.takes == "clips":
        told = f"classifier is {prefix!r}, expected the prefix of {differ}"
        named = all(name.startswith(_of_classes(case.model)) for name in differ)
        case.expect(prefix and named, told)


def classifier_is_replaced(case: Case, steps: int) -> None:
    """`reset_classifier`, where there is one, changes the classes and nothing else."""
    if not hasattr(case.model, "reset_classifier"):
        return
    model = copy.deepcopy(case.model)
    with no_global_draws(f"model {case.name!r}: reset_classifier(generator=...)"):
        model.reset_classifier(CLASSES + 1, seeded(2))
    logits = Case(case.name, model, case.inputs).scores(case.arguments(2, steps))
    case.expect(logits.shape[1] == CLASSES + 1, f"{logits.shape[1]} classes after reset_classifier")
    prefixes, state = _of_classes(case.model), case.model.state_dict()
    for name, tensor in model.state_dict().items():
        unchanged = name.startswith(prefixes) or torch.equal(tensor, state[name])
        case.expect(unchanged, f"reset_classifier changes {name}")


def _of_classes(model: Any) -> tuple[str, ...]:
    prefixes = getattr(model, "classifier", None) or ()
    prefixes = (prefixes,) if isinstance(prefixes, str) else prefixes
    return (*prefixes, *getattr(model, "fresh", ()))


def groups_hold_every_parameter(case: Case) -> None:
    """Head and backbone parameters, where they are told apart, are all parameters, each once."""
    if not hasattr(case.model, "head_parameters"):
        return
    groups = [*case.model.head_parameters(), *case.model.backbone_parameters()]
    every = sorted(map(id, case.model.parameters()))
    case.expect(
        sorted(map(id, groups)) == every, "head and backbone are not all parameters, each once"
    )


@torch.no_grad()
def clips_are_classified(case: Case, steps: int) -> None:
    """`classify` gives [B, K], `features` [B, D, T]."""
    arguments = case.arguments(2, steps)
    scores, features = case.model.classify(*arguments), case.model.features(*arguments)
    case.expect(scores.shape == (2, CLASSES), f"classify gives {tuple(scores.shape)}, not [B, K]")
    right = features.dim() == 3 and features.shape[::2] == (2, steps)
    case.expect(right, f"features are {tuple(features.shape)}, expected [2, D, {steps}]")


def levels_can_be_mixed(case: Case, steps: int) -> None:
    """The input and what each of `layers` puts out are [B, C, T, H, W], in every frame."""
    if not hasattr(case.model, "layers"):
        return  # such a network cannot be pretrained with augmentations
    for level in range(len(case.model.layers) + 1):
        seen: list[Tensor] = []
        with mixed_at(case.model, level, partial(_kept, seen)):
            case.scores(case.arguments(2, steps))
        shapes = [tuple(x_BCTHW.shape) for x_BCTHW in seen]
        right = len(seen) == 1 and len(shapes[0]) == 5 and shapes[0][::2][:2] == (2, steps)
        case.expect(
            right, f"level {level} of layers gives {shapes}, expected one of {steps} frames"
        )


def padding_changes_nothing(case: Case, steps: int) -> None:
    """Steps of a sequence have the logits that it has alone, whatever its padding holds.

    With padding="exact", where a network has that option.
    """
    features_BDT = case.arguments(3, steps)[0]
    lengths = [steps, max(1, steps - 3), 1]
    noisy_BDT = features_BDT.clone()
    for row, length in zip(noisy_BDT, lengths, strict=True):
        row[:, length:] = 100.0
    scores, noisy = (case.scores((x, torch.tensor(lengths))) for x in (features_BDT, noisy_BDT))
    for b, length in enumerate(lengths):
        alone = case.scores((features_BDT[b : b + 1, :, :length], torch.tensor([length])))[0]
        for found in (scores, noisy):
            told = f"padding changes the steps of a sequence of {length} by up to "
            valid = found[b, :, :length]
            case.expect(close(valid, alone), f"{told}{float((valid - alone).abs().max()):.3g}")


def half_precision_is_close(case: Case, steps: int) -> None:
    """Autocast to float16 and to bfloat16 gives nearly the same logits."""
    arguments = case.arguments(2, steps)
    whole = case.scores(arguments)
    for dtype, slack in HALF_SLACK.items():
        with torch.autocast("cpu", dtype=dtype):
            half = case.scores(arguments).float()
        off = float((half - whole).norm() / whole.norm().clamp(min=1e-6))
        case.expect(off <= slack, f"{dtype} is off by {off:.3g} of the logits' norm")


def gradients_reach_every_parameter(case: Case, steps: int, unreached: tuple[str, ...]) -> None:
    """Training gives every parameter a finite gradient, in float32 and under autocast."""
    arguments = case.arguments(2, steps)
    for dtype in (torch.float32, *HALF_SLACK):
        model = copy.deepcopy(case.model).train()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype in HALF_SLACK):
            logits = model(*arguments)
        weights = torch.randn(logits.shape, generator=seeded(3))
        (logits.float() * weights).sum().backward()
        for name, parameter in model.named_parameters():
            reached, told = parameter.grad is not None, name.startswith(unreached)
            case.expect(reached or told or not parameter.requires_grad, f"no gradient of {name}")
            case.expect(not (reached and told), f"{name} has a gradient: it is not `unreached`")
            finite = not reached or parameter.grad.isfinite().all()
            case.expect(finite, f"the gradient of {name} in {dtype} is not finite")


def _kept(seen: list[Tensor], x: Tensor) -> Tensor:
    seen.append(x)
    return x


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def _first(value: Any) -> Any:
    """The first element of a batch."""
    if isinstance(value, tuple):
        parts = [_first(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value[:1] if isinstance(value, Tensor) else value
