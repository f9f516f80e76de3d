"""Whatever is registered must train, save and load."""

import pytest
import torch
from torch.nn import functional as F

from ssdet.models import available, create

OPTIONS = {"x3d": {"widths": ((12, 8), (24, 12)), "depths": (1, 2), "stem": 8, "head_dim": 32}}
FEATURE_MODELS = {"linear", "super_events", "tgm", "tgm_super_events", "pdan", "ms_tct"}


def inputs(name: str, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    if name in FEATURE_MODELS:
        return torch.randn(2, 432, 16, generator=generator), torch.tensor([16, 12])
    return (torch.randn(2, 3, 4, 32, 32, generator=generator),)


@pytest.mark.parametrize("name", available())
def test_trains_saves_and_loads(name, tmp_path):
    options = OPTIONS.get(name, {})
    model = create(name, 5, generator=torch.Generator().manual_seed(1), **options)
    batch = inputs(name, 0)
    logits = model(*batch)
    frames = batch[0].shape[2]
    assert logits.shape == (2, 5, frames)
    F.cross_entropy(logits, torch.zeros(2, frames, dtype=torch.long)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again = create(name, 5, **options)
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    model.eval()
    again.eval()
    with torch.no_grad():
        scores, expected = again(*inputs(name, 2)), model(*inputs(name, 2))
    assert torch.equal(scores, expected)


def test_unknown_names_and_options_get_a_hint():
    with pytest.raises(ValueError, match=r"x3d_tni.*did you mean 'x3d_tiny'"):
        create("x3d_tni", 5)
    with pytest.raises(TypeError, match=r"no option 'drop_out'.*did you mean 'dropout'"):
        create("x3d_tiny", 5, drop_out=0.1)
    assert available("x3d_x*") == ["x3d_xl", "x3d_xs"]


def test_weights_come_from_the_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a = create("x3d_tiny", 4, generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    b = create("x3d_tiny", 4, generator=torch.Generator().manual_seed(7))
    c = create("x3d_tiny", 4, generator=torch.Generator().manual_seed(8))
    same = [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(next(a.parameters()), next(c.parameters()))
