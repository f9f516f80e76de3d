"""Batches from decoders are those of the trainer's own process, wherever and whenever decoded."""

import json
import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from ray.exceptions import RayTaskError

from ssdet.data import load_manifest
from ssdet.data.loading.batches import Batch, batches
from ssdet.data.loading.clips import ClipRecipe, Clips
from ssdet.data.loading.frame_rate import ResampledReader
from ssdet.data.loading.frame_readers import Decoder
from ssdet.execution.decoding import AHEAD, decode_batches
from ssdet.training import OptimRecipe, TrainRecipe, multigrid

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ClipRecipe(frames=8, stride=3, size=16, short_side=(18, 24), flip=0.5)


@pytest.fixture(scope="module")
def clips(shapes: Path) -> Clips:
    """Untrimmed videos, one of which is no video."""
    train = load_manifest("moving_shapes", shapes, split="downstream").split("train")
    broken = replace(train.videos[1], path=__file__)
    videos = (train.videos[0], broken, *train.videos[2:])
    return Clips(replace(train, videos=videos), ResampledReader(Decoder(20), 9.0), RECIPE, seed=3)


def assert_equal(found: Batch, expected: Batch) -> None:
    for field in fields(Batch):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(theirs, torch.Tensor):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), field.name
        else:
            assert ours == theirs, field.name


@pytest.mark.parametrize(("start", "rank", "world"), [(0, 0, 1), (3, 1, 2)])
def test_what_arrives_is_what_one_process_reads(ray_session, clips, start, rank, world) -> None:
    expected = list(batches(clips, 12, start, 8, rank, world))
    found = list(
        batches(clips, 12, start, 8, rank, world, decode=partial(decode_batches, decoders=2))
    )
    assert len(found) == len(expected) == 8 - start
    for ours, theirs in zip(found, expected, strict=True):
        assert_equal(ours, theirs)
    assert any(batch.replaced for batch in found)
    found[0].clips_BTHWC.fill_(0)  # it is the trainer's own


def test_multigrid_changes_shapes_as_ever(ray_session, shapes) -> None:
    train = load_manifest("moving_shapes", shapes, split="upstream").split("train")
    clips = Clips(train, Decoder(), RECIPE, seed=3)
    recipe = TrainRecipe("pretrain", clip=RECIPE, multigrid=True, optim=OptimRecipe(10, batch=2))
    found = list(multigrid.batches(clips, recipe, 3, decode=partial(decode_batches, decoders=2)))
    assert len({batch.clips_BTHWC.shape for batch in found}) > 2
    for ours, theirs in zip(found, multigrid.batches(clips, recipe, 3), strict=True):
        assert_equal(ours, theirs)


def test_what_a_task_raises_arrives(ray_session, clips) -> None:
    videos = tuple(replace(video, path=__file__) for video in clips.manifest.videos)
    hopeless = Clips(replace(clips.manifest, videos=videos), Decoder(), RECIPE, 0)
    with pytest.raises(RayTaskError, match="RuntimeError: .*100 videos in a row cannot be read"):
        next(batches(hopeless, 2, 0, 2, 0, 1, decode=partial(decode_batches, decoders=1)))


class Slow(torch.utils.data.Dataset):
    """Samples that take their time, and leave a mark when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, place: int) -> dict:
        (self.folder / str(place)).touch()
        time.sleep(0.05)
        label = torch.ones(1, 1)
        return {"clip": torch.zeros(1, 1, 1, 3, dtype=torch.uint8), "targets": label,
                "mask": label[0] > 0, "position": place, "replaced": {}, "video": "",
                "start": 0}  # fmt: skip


def test_no_more_lies_ahead_than_was_said_and_a_stream_that_is_left_ends(
    ray_session, tmp_path
) -> None:
    found = decode_batches(Slow(tmp_path), ([place] for place in range(100)), 1)
    for place in range(3):
        assert next(found).positions_B.tolist() == [place]
        time.sleep(1)
    asked = len([*tmp_path.iterdir()])
    assert 3 < asked <= 3 + AHEAD  # while the trainer worked
    found.close()
    time.sleep(1)
    assert len([*tmp_path.iterdir()]) <= asked + 1


ALONE = """
import sys
from functools import partial
from ssdet.data.loading.batches import batches
from ssdet.data.loading.clips import ClipRecipe, Clips
from ssdet.execution.decoding import decode_batches
from ssdet.data.datasets.manifest import Manifest, Video
clips = Clips(Manifest("few", ("a",), (Video("v", "", "train", label=0),)), None, ClipRecipe(), 0)
try:
    batches(clips, 2, 0, 2, 0, 1, decode=partial(decode_batches, decoders=1))
except ValueError as error:
    sys.exit(str(error))
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=paths, capture_output=True, text=True)


def test_without_ray_it_says_so() -> None:
    assert "not initialised here" in python(ALONE).stderr


CLUSTER = """
import json, sys, time
from pathlib import Path
import ray
import torch
from ray.cluster_utils import Cluster
from ssdet.execution.decoding import decode_batches

folder = Path(sys.argv[1])

class Numbers(torch.utils.data.Dataset):
    def __getitem__(self, place):
        time.sleep(0.1)
        clip = torch.full((100, 10, 10, 3), place, dtype=torch.uint8)
        node, label = ray.get_runtime_context().get_node_id(), torch.ones(1, 1)
        return {"clip": clip, "targets": label, "mask": label[0] > 0, "position": place,
                "replaced": {}, "video": node, "start": 0}

@ray.remote(num_cpus=1, num_gpus=1)
def train():
    rows = []
    for batch in decode_batches(Numbers(), ([n, n + 1] for n in range(0, 60, 2)), 2):
        pixels = batch.clips_BTHWC[:, 0, 0, 0, 0].tolist()
        rows.append((batch.positions_B.tolist(), pixels, batch.videos[0]))
        if len(rows) == 5:
            (folder / "asked").write_text(batch.videos[0])
            while not (folder / "killed").exists():
                time.sleep(0.1)
    return rows

small = {"num_cpus": 2, "object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**small, "num_cpus": 3, "num_gpus": 1})
others = {node.node_id: node for node in (cluster.add_node(**small), cluster.add_node(**small))}
ray.init(address=cluster.address, log_to_driver=False)
training = train.remote()
while not (folder / "asked").exists():
    ray.wait([training], timeout=0.1)
time.sleep(1)
killed = (folder / "asked").read_text()
cluster.remove_node(others[killed], allow_graceful=False)
(folder / "killed").touch()
seen = {"rows": ray.get(training), "others": list(others), "killed": killed}
(folder / "seen").write_text(json.dumps(seen))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_decoding_node_dies(tmp_path) -> None:
    """The trainer's node has a GPU and two free cores; two others decode, and one is killed while
    batches that it has decoded wait for the trainer."""
    done = python(CLUSTER, str(tmp_path))
    assert done.returncode == 0, done.stderr
    seen = json.loads((tmp_path / "seen").read_text())
    assert [positions for positions, _, _ in seen["rows"]] == [[n, n + 1] for n in range(0, 60, 2)]
    assert all(positions == pixels for positions, pixels, _ in seen["rows"])
    nodes = [node for _, _, node in seen["rows"]]
    assert {*nodes} == {*seen["others"]}
    assert {*nodes[-5:]} == {*seen["others"]} - {seen["killed"]}
