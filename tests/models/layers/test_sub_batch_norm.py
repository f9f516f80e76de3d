import pytest
import torch
import torch.distributed as dist
from torch import nn

from ssdet.models.layers import sub_batch_norm as norms
from ssdet.models.layers.sub_batch_norm import (
    SubBatchNorm3d,
    gather_splits,
    scatter_splits,
    splits_for,
)


def batch(samples=8, channels=3, seed=0):
    x = torch.randn(samples, channels, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    return 2 * x + torch.arange(samples).view(-1, 1, 1, 1, 1)


def test_golden(golden):
    reference = golden("subbn")
    norm = SubBatchNorm3d(3, splits=2)
    x = torch.from_numpy(reference["x"])
    torch.testing.assert_close(norm(x), torch.from_numpy(reference["y_train"]), rtol=0, atol=1e-5)
    norm.eval()
    torch.testing.assert_close(norm(x), torch.from_numpy(reference["y_eval"]), rtol=0, atol=1e-5)
    for ours, theirs in (
        ("split_mean", "split_mean"),
        ("split_var", "split_var"),
        ("running_mean", "agg_mean"),
        ("running_var", "agg_var"),
    ):
        expected = torch.from_numpy(reference[theirs])
        torch.testing.assert_close(getattr(norm, ours), expected, rtol=1e-5, atol=1e-6)


def test_split_k_is_every_nth_sample():
    x, norm = batch(), SubBatchNorm3d(3, splits=4)
    y = norm(x)
    for split in range(4):
        part = x[split::4]
        mean, var = part.mean((0, 2, 3, 4)), part.var((0, 2, 3, 4), unbiased=False)
        by_hand = (part - mean.view(-1, 1, 1, 1)) / (var + 1e-5).sqrt().view(-1, 1, 1, 1)
        torch.testing.assert_close(y[split::4], by_hand, rtol=1e-4, atol=1e-5)


def test_one_split_is_batch_norm():
    ours, theirs = SubBatchNorm3d(3), nn.BatchNorm3d(3)
    for seed in range(3):
        x = batch(seed=seed)
        torch.testing.assert_close(ours(x), theirs(x))
    ours.eval()
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 3


def test_evaluation_uses_the_splits_taken_together():
    norm = SubBatchNorm3d(3, splits=4)
    norm.momentum = 1.0
    x = batch()
    norm(x)
    norm.eval()
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3, 4)))
    within = x.unflatten(0, (2, 4)).var((0, 3, 4, 5)).mean(0)
    between = x.unflatten(0, (2, 4)).mean((0, 3, 4, 5)).var(0, unbiased=False)
    torch.testing.assert_close(norm.running_var, within + between)


def test_plain_state_dict_loads_strictly_and_survives_evaluation():
    plain = nn.BatchNorm3d(3)
    plain(batch())
    norm = SubBatchNorm3d(3, splits=4)
    norm.load_state_dict(plain.state_dict(), strict=True)
    norm.eval()
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var)


def test_state_saved_in_training_evaluates_by_its_splits():
    norm, again = SubBatchNorm3d(3, splits=2), SubBatchNorm3d(3, splits=2)
    norm(batch())
    again.load_state_dict(norm.state_dict())
    norm.eval()
    again.eval()
    assert torch.equal(again.running_var, norm.running_var)
    assert (again.running_var != 1).all()


def test_running_statistics_can_be_kept():
    norm = SubBatchNorm3d(3, splits=2)
    norm(batch())
    norm.keep_running()
    norm.eval()
    assert (norm.running_mean == 0).all()


def test_batch_that_does_not_divide():
    with pytest.raises(ValueError, match=r"6 samples.*4 splits.*set_splits"):
        SubBatchNorm3d(3, splits=4)(batch(6))


@pytest.mark.parametrize(("samples", "splits"), [(1, 1), (5, 1), (8, 1), (16, 2), (64, 8)])
def test_splits_for(samples, splits):
    assert splits_for(samples) == splits


def test_splits_for_a_batch_that_is_no_multiple():
    with pytest.raises(ValueError, match="use 16 or 24 samples"):
        splits_for(20)


def test_two_processes_are_one_run(monkeypatch):
    whole = nn.Sequential(SubBatchNorm3d(3, splits=4), nn.ReLU(), SubBatchNorm3d(3, splits=4))
    halves = [
        nn.Sequential(SubBatchNorm3d(3, splits=2), nn.ReLU(), SubBatchNorm3d(3, splits=2))
        for _ in range(2)
    ]
    for seed in range(2):
        x = batch(8, seed=seed)
        y = whole(x)
        for rank, half in enumerate(halves):
            torch.testing.assert_close(half(x[rank::2]), y[rank::2], rtol=1e-5, atol=1e-5)

    sent = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(dist, "all_gather", lambda ranks, local, group: sent.append(local))
    for half in halves:
        gather_splits(half)

    def receive(ranks, local, group):
        for place, values in zip(ranks, sent, strict=True):
            place.copy_(values)

    monkeypatch.setattr(dist, "all_gather", receive)
    gathered = gather_splits(halves[0])
    norms.aggregate_splits(halves[1])
    whole.eval()
    expected = whole.state_dict()
    assert list(gathered) == list(expected)
    for name, value in gathered.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(halves[1][2].running_var, expected["2.running_var"])
    for rank, half in enumerate(halves):
        part = scatter_splits(gathered, rank, 2)
        assert torch.equal(part["0.split_var"], half[0].split_var)


def test_splits_that_cannot_be_shared():
    state = SubBatchNorm3d(3, splits=4).state_dict()
    with pytest.raises(ValueError, match="4 splits cannot be shared by 3 processes"):
        scatter_splits(state, 0, 3)


def test_gathering_alone_gives_what_evaluation_would_use():
    norm = SubBatchNorm3d(3, splits=4)
    norm(batch())
    state = gather_splits(norm)
    norm.eval()
    assert all(torch.equal(value, state[name]) for name, value in norm.state_dict().items())
