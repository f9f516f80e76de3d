"""Proof bundles: complete, silent about the machine, the same for the same results, and checked."""

import getpass
import hashlib
import json
import re
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from ssdet import results
from ssdet.cli.__main__ import main
from ssdet.evaluation import PredictionSet, PredictionWriter
from ssdet.results.proof.bundle import write_bundle
from ssdet.results.proof.verify import verify
from ssdet.results.tables.result_table import result_table, write_csv
from ssdet.studies.graph.record import write_record
from ssdet.system.safe_files import write_json


@pytest.fixture(scope="module")
def packed(made, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "proof.zip"
    return write_bundle(results.open(made.store.root), "ablate_cutmix", out)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def zipped(path: Path, content: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in content.items():
            file.writestr(name, data)
    return path


def repacked(path: Path, content: dict[str, bytes], **fields) -> Path:
    """A bundle whose manifest fits what is in it: all that a forger can do."""
    manifest = json.loads(content.pop("manifest.json")) | fields
    manifest["members"] = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in content.items()
    }
    return zipped(path, {"manifest.json": json.dumps(manifest).encode(), **content})


def test_the_table_follows_from_the_bundle_alone(made, packed, tmp_path) -> None:
    write_csv(result_table(made.plan, made.store), tmp_path / "table.csv")
    found = verify(packed)
    assert found.holds and not found.warnings and (found.runs, found.sets) == (21, 21)
    assert found.table.encode() == (tmp_path / "table.csv").read_bytes()
    assert members(packed)["table.csv"] == (tmp_path / "table.csv").read_bytes()


def test_it_needs_neither_store_nor_data(packed, monkeypatch, tmp_path) -> None:
    from ssdet.studies import Data

    def gone(*_):
        raise AssertionError("looked for the data set")

    monkeypatch.setattr(Data, "reader", gone)
    monkeypatch.setattr(Data, "split", gone)
    monkeypatch.chdir(tmp_path)
    assert main(["verify", str(packed)]) == 0
    assert not list(tmp_path.iterdir())


def test_every_member_is_in_the_manifest_with_its_hash(packed) -> None:
    content = members(packed)
    manifest = json.loads(content.pop("manifest.json"))
    assert manifest["members"].keys() == content.keys()
    for name, data in content.items():
        assert manifest["members"][name]["sha256"] == hashlib.sha256(data).hexdigest()
    record = json.loads(content["record.json"])
    assert len(record["stages"]) == 36 and record["stages"].keys() == {
        name[8:-5] for name in content if name.startswith("results/")
    }


def test_labels_are_packed_as_bits(made, packed) -> None:
    content = members(packed)
    told, bits, at = json.loads(content["targets.json"]), content["targets.bits"], 0
    for video, frames in told["videos"]:
        size = -(-frames * 10 // 8)
        rows = np.unpackbits(np.frombuffer(bits[at : at + size], np.uint8))[: frames * 10]
        assert (rows.reshape(frames, 10) == made.targets["test"][video]).all()
        at += size
    assert at == len(bits) and [v for v, _ in told["videos"]] == list(made.targets["test"])


def test_it_names_no_folder_machine_or_user(finished, tmp_path) -> None:
    store, name = finished.store, finished.id("cls")
    reason = f"cannot open '{store.root}/x y/V1.mp4': /mnt/alice/secret/clip.mp4 is no video"
    write_json(store.folder(name) / "DONE", {**store.result(name), "unreadable": {"V9": reason}})
    out = write_bundle(results.open(store.root), "ablate_cutmix", tmp_path / "proof.zip")
    data = out.read_bytes()
    for private in (str(tmp_path), str(Path.home()), "alice", "/mnt", "/tmp"):
        assert private.encode() not in data, private
    assert f"/{getpass.getuser()}/".encode() not in data
    told = json.loads(members(out)[f"results/{name}.json"])["unreadable"]["V9"]
    assert told == "cannot open 'x y/V1.mp4': clip.mp4 is no video"
    assert verify(out).holds


def test_equal_results_are_equal_bytes(made, packed, tmp_path) -> None:
    root = tmp_path / "elsewhere"
    shutil.copytree(made.store.root, root)
    for path in root.glob("index-*.parquet"):
        path.unlink()
    opened = results.open(root)
    write_record(opened.store, made.plan)  # run again later: nothing changes but the time
    out = write_bundle(results.open(root), "ablate_cutmix", tmp_path / "again.zip")
    assert out.read_bytes() == packed.read_bytes()


def test_equal_predictions_are_packed_once(finished, tmp_path) -> None:
    store = finished.store
    one, other = (store.folder(finished.id("cls", seed)) / "predictions" for seed in (0, 1))
    shutil.rmtree(other)
    shutil.copytree(one, other)
    write_json(store.folder(finished.id("cls", 1)) / "DONE", store.result(finished.id("cls", 0)))
    out = write_bundle(results.open(store.root), "ablate_cutmix", tmp_path / "proof.zip")
    found = verify(out)
    assert found.holds and (found.runs, found.sets) == (21, 20)
    assert sum(name.endswith(".f16") for name in members(out)) == 20


def test_an_unfinished_study_is_not_packed(finished, tmp_path) -> None:
    finished.store.remove(finished.id("view", 2))
    with pytest.raises(ValueError, match="seed 2.*not finished"):
        write_bundle(results.open(finished.store.root), "ablate_cutmix", tmp_path / "x.zip")
    assert not list(tmp_path.glob("x.zip*"))


def test_another_scorer_is_told_with_both_hashes(packed, tmp_path, capsys) -> None:
    content = members(packed)
    here = json.loads(content["manifest.json"])["scorer"]
    out = repacked(tmp_path / "x.zip", content, scorer="0" * 64)
    assert main(["verify", str(out)]) == 0
    warning = capsys.readouterr().err
    assert "0" * 64 in warning and here in warning


def test_a_better_number_in_the_table_is_found(packed, tmp_path, capsys) -> None:
    content = members(packed)
    line = content["table.csv"].splitlines()[3]
    mean = line.split(b",")[2]
    content["table.csv"] = content["table.csv"].replace(mean, b"0.999999", 1)
    assert main(["verify", str(repacked(tmp_path / "x.zip", content))]) == 1
    told = capsys.readouterr().out
    assert "does NOT hold" in told and "table.csv line" in told and "0.999999" in told


def test_a_better_reported_score_is_found(made, packed, tmp_path) -> None:
    content, name = members(packed), made.id("view")
    result = json.loads(content[f"results/{name}.json"])
    result["scores"]["test"]["value"] = 0.99
    content[f"results/{name}.json"] = json.dumps(result).encode()
    found = verify(repacked(tmp_path / "x.zip", content))
    assert not found.holds and name in found.differences[0]


def test_better_predictions_are_found(made, packed, tmp_path) -> None:
    content, name = members(packed), made.id("view")
    place = f"predictions/{json.loads(content['manifest.json'])['predictions'][name]}"
    with PredictionWriter(tmp_path / "better", 10) as writer:
        for video, truth in made.targets["test"].items():
            writer.add(video, truth.astype("f4"), 12)
    for file in (tmp_path / "better").iterdir():
        content[f"{place}/{file.name}"] = file.read_bytes()
    found = verify(repacked(tmp_path / "x.zip", content))
    assert len(found.differences) > 1 and name in found.differences[0]


def test_a_single_flipped_bit_is_found(packed, tmp_path) -> None:
    data = bytearray(packed.read_bytes())
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(packed) as file:
        spans = [(info.header_offset, info.file_size) for info in file.infolist()]
    for at in [start + 200 for start, size in spans[:40] if size > 300] + list(
        rng.integers(len(data), size=20)
    ):
        data[at] ^= 4
        (tmp_path / "x.zip").write_bytes(data)
        try:
            assert verify(tmp_path / "x.zip").holds  # where a date or an attribute was hit
            assert members(tmp_path / "x.zip") == members(packed)
        except ValueError as error:
            assert "x.zip" in str(error)
        data[at] ^= 4


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused(packed, tmp_path, share) -> None:
    data = packed.read_bytes()
    (tmp_path / "x.zip").write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match="x.zip: damaged"):
        verify(tmp_path / "x.zip")


@pytest.mark.parametrize(
    "name",
    ["../../evil", "/tmp/evil", "predictions/../../../evil.f16", "results/..\\evil.json", "evil",
     "predictions/0123456789abcdef/.json", "store/stages/x", "results/predict-0123.json"],
)  # fmt: skip
def test_a_member_that_leaves_the_folder_is_refused(packed, tmp_path, name, monkeypatch) -> None:
    out = repacked(tmp_path / "x.zip", {**members(packed), name: b"evil"})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ValueError, match="does not belong in a bundle"):
        verify(out)
    assert [path.name for path in tmp_path.rglob("*")] == ["x.zip"]


def test_a_bomb_is_refused_before_it_goes_off(packed, tmp_path) -> None:
    content = members(packed)
    content["targets.bits"] = bytes(50_000_000)
    manifest = json.loads(content["manifest.json"])
    manifest["members"]["targets.bits"]["size"] = 50_000_000
    content["manifest.json"] = json.dumps(manifest).encode()
    out = zipped(tmp_path / "x.zip", content, zipfile.ZIP_DEFLATED)
    assert out.stat().st_size < 2_000_000
    with pytest.raises(ValueError, match="is compressed"):
        verify(out)


def test_members_that_overlap_are_refused(packed, tmp_path) -> None:
    """Every entry of the directory points to one member: the file unpacks to many times itself."""
    body = bytes(1000)
    name = b"predictions/%016x/0.f16"
    local = struct.pack(
        "<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, zlib.crc32(body), 1000, 1000, 35, 0
    )
    entries = b""
    for number in range(50):
        entry = struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 33, zlib.crc32(body), 1000, 1000,
            len(name % number), 0, 0, 0, 0, 0, 0,
        )  # fmt: skip
        entries += entry + name % number
    start = len(local) + 35 + len(body)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 50, 50, len(entries), start, 0)
    out = tmp_path / "x.zip"
    out.write_bytes(local + name % 0 + b" " * (35 - len(name % 0)) + body + entries + end)
    with pytest.raises(ValueError, match="more bytes than the file has"):
        verify(out)


DAMAGES = {
    "resamples": lambda c: c["m"].update(resamples=10**12),
    "no record": lambda c: c["c"].pop("record.json"),
    "no targets": lambda c: c["c"].update({"targets.bits": b""}),
    "huge targets": lambda c: c["c"].update(
        {"targets.json": b'{"classes": {"upstream": 1, "downstream": 10}, "videos": [["a", 1e18]]}'}
    ),
    "many frames": lambda c: c["c"].update(
        {"targets.json": c["c"]["targets.json"].replace(b"48", b"99999999999")}
    ),
    "deep": lambda c: c["c"].update({"targets.json": b"[" * 100_000}),
    "set outside": lambda c: c["m"].update(
        predictions={k: "../../.." for k in c["m"]["predictions"]}
    ),
    "set absolute": lambda c: c["m"].update(predictions=dict.fromkeys(c["m"]["predictions"], "/")),
    "recipe": lambda c: c["c"].update(
        {"record.json": c["c"]["record.json"].replace(b'"lr": 0.', b'"lr": 1.')}
    ),
    "protocol": lambda c: c["c"].update(
        {k: v.replace(b"dense_map/v1", b"mine/v1") for k, v in c["c"].items() if "results/" in k}
    ),
    "format": lambda c: c["m"].update(format="ssdet-bundle/9"),
    "manifest": lambda c: c["m"].pop("without_paths"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_does_not_hold_together_is_refused(packed, tmp_path, damage, capsys) -> None:
    content = members(packed)
    manifest = json.loads(content["manifest.json"])
    damage({"c": content, "m": manifest})
    content["manifest.json"] = json.dumps(manifest).encode()
    out = repacked(tmp_path / "x.zip", content)
    assert main(["verify", str(out)]) == 1
    assert re.match(r"error: \S*x.zip: ", capsys.readouterr().err)


def test_no_zip_at_all_is_refused(tmp_path) -> None:
    for data in (b"", b"PK", b"a table", zipped(tmp_path / "y.zip", {}).read_bytes()):
        (tmp_path / "x.zip").write_bytes(data)
        with pytest.raises(ValueError, match=r"x\.zip"):
            verify(tmp_path / "x.zip")


def test_predictions_are_read_back_as_they_were(made, packed, tmp_path) -> None:
    with zipfile.ZipFile(packed) as file:
        file.extractall(tmp_path)
    named = json.loads((tmp_path / "manifest.json").read_text())["predictions"]
    name = made.id("pair", 1)
    inside = PredictionSet.open(tmp_path / "predictions" / named[name])
    outside = PredictionSet.open(made.store.folder(name) / "predictions" / "test")
    assert inside.videos == outside.videos
    assert all((inside[video] == outside[video]).all() for video in inside)
