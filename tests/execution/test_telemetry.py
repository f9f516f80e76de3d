"""What those who watch from outside can see."""

import json
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray import cloudpickle
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from ssdet.execution.telemetry import GAUGES, NAMESPACE, TAGS, Telemetry, running_class
from ssdet.execution.tuner import trackers
from ssdet.studies import Arm, Study, classification, plan
from ssdet.studies.data import moving_shapes
from ssdet.studies.presets import preset

ROOT = Path(__file__).resolve().parents[2]
STEP = {"step": 10, "steps": 40, "loss": 0.5, "lr": 0.1, "clips_per_second": 88.0}


@pytest.fixture(scope="module")
def planned(shapes):
    arms = (Arm("cls", classification), Arm("same/again", classification), Arm("det"))
    base = preset("smoke")
    data = moving_shapes(base.shapes)
    return plan(Study("watched", arms, seeds=(3,), base=base.experiment, data=data))


def scalars(path: Path) -> list[tuple[str, int, float]]:
    """(name, step, value) of an event file, read record by record."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event()
        event.ParseFromString(data[12 : 12 + length])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    return found


def test_a_stage_is_told_to_files_and_to_an_actor_of_its_name(planned, ray_session, tmp_path):
    import ray

    told = Telemetry(planned, tmp_path, actors=True)
    stage = next(name for name in planned.stages if name.startswith("pretrain"))
    told.update(stage, STEP)
    told.update(stage, {"step": 20, "validation": 0.25})
    actor = ray.get_actor("watched: pretrain cls+same/again seed 3", namespace=NAMESPACE)
    state = ray.get(actor.get.remote(), timeout=60)
    assert state["validation"] == 0.25 and state["loss"] == 0.5
    assert state["arm"] == "cls+same/again"
    told.update(stage, {"finished": True})
    (file,) = tmp_path.glob("watched/*/events*")
    assert file.parent.name == f"pretrain-cls+same_again-seed3-{stage[-6:]}"
    assert scalars(file) == [
        ("loss", 10, 0.5), ("lr", 10, pytest.approx(0.1)), ("clips_per_second", 10, 88.0),
        ("validation", 20, 0.25),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="watched"):
        ray.get_actor("watched: pretrain cls+same/again seed 3", namespace=NAMESPACE)
    told.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's disk that is always full")
def test_a_full_disk_costs_curves_and_nothing_else(
    planned, ray_session, tmp_path, monkeypatch, caplog
) -> None:
    one, two = list(planned.stages)[:2]
    told = Telemetry(planned, tmp_path, actors=False)
    writer = EventsWriter(str(tmp_path / "events"))
    writer._py_recordio_writer._writer.close()
    writer._py_recordio_writer._writer = Path("/dev/full").open("wb")  # noqa: SIM115
    monkeypatch.setattr(told, "_open", lambda stage: writer)
    told.update(one, STEP)
    told.update(one, {"finished": True})  # what is closed is written
    told.update(two, STEP)
    told.close()
    (warning,) = caplog.messages
    assert "no more curves" in warning and "No space left on device" in warning


def test_gauges_are_set_again_and_again_while_a_stage_runs(planned, tmp_path, monkeypatch) -> None:
    """Ray 2.60 exports a gauge for 20 seconds after it was set, and reports may be rarer."""
    seen: list[tuple[str, float, str]] = []

    class Recorder:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            seen.append((self.name, value, tags["stage"]))

    monkeypatch.setattr("ray.util.metrics.Gauge", Recorder)
    monkeypatch.setattr("ssdet.execution.telemetry.SECONDS_BETWEEN_GAUGES", 0.01)
    ended, going = list(planned.stages)[:2]
    told = Telemetry(planned, tmp_path, actors=False)
    told.update(going, STEP)
    told.update(going, {"step": 20, "validation": 0.25})
    told.update(ended, STEP)
    told.update(ended, {"finished": True})
    seen.clear()
    expected = {"running": 1.0, "step": 20.0, "loss": 0.5, "validation": 0.25}
    latest = {(f"ssdet_{name}", value, going) for name, value in expected.items()}
    deadline = time.monotonic() + 30
    while not latest <= set(seen) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert latest <= set(seen) and ended not in {stage for _, _, stage in seen}
    told.close()
    assert seen[-1] == ("ssdet_running", 0.0, going)


def test_the_actor_of_a_stage_needs_nothing_of_this_package() -> None:
    code = """
import pickle, sys
made = pickle.load(sys.stdin.buffer)("cls seed 3")
made.put({"loss": 0.5})
print(made, made.get(), [name for name in ("ssdet", "torch") if name in sys.modules])
"""
    shipped = cloudpickle.dumps(running_class())
    told = subprocess.run(
        [sys.executable, "-c", code], input=shipped, capture_output=True, check=True
    )
    assert told.stdout.decode().split("\n")[0] == "cls seed 3 {'loss': 0.5} []"


def test_stages_that_report_nothing_leave_no_files(planned, ray_session, tmp_path) -> None:
    told = Telemetry(planned, tmp_path, actors=False)
    for stage in planned.stages:
        told.update(stage, {"training_iteration": 1})
        told.update(stage, {"error": "gone"})
    told.close()
    assert not list(tmp_path.rglob("*"))


def test_the_shipped_dashboard_asks_for_gauges_that_exist() -> None:
    text = (ROOT / "clusters" / "grafana.json").read_text()
    asked = set(re.findall(r"ray_ssdet_(\w+)", text))
    assert asked - {"running"} <= GAUGES.keys() and {"loss", "validation", "running"} <= asked
    board = json.loads(text)
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    labels = set(re.findall(r"(\w+)=~", " ".join(expressions)))
    # Ray adds labels of its own; both sides of an operator must have lost them to match.
    grouped = set(re.findall(r"max by \((.*?)\)", " ".join(expressions)))
    assert grouped == {", ".join(TAGS)} and text.count("ray_ssdet_") - 3 == sum(
        expression.count("max by") for expression in expressions
    )
    assert labels <= {*TAGS} and len({panel["id"] for panel in board["panels"]}) == len(
        board["panels"]
    )


def test_trackers_that_are_unknown_or_absent_are_refused() -> None:
    with pytest.raises(ValueError, match="choose mlflow or wandb"):
        trackers(["tensorbored"], "study")
    with pytest.raises(ImportError, match="pip install mlflow"):
        trackers(["mlflow"], "study")
