"""Files behind a real S3 API and a proxy that breaks things, read as if they were here."""

import hashlib
import io
import os
import random

import numpy as np
import pytest

from ssdet.data.datasets.load import load_manifest
from ssdet.data.storage import cache as remote_cache
from ssdet.data.storage import filesystem as remote
from ssdet.data.storage.filesystem import Remote, RemoteError, Stamp, is_remote, join, parent
from ssdet.data.video.reader import CorruptVideo, probe, read_clip


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch) -> None:
    """Another machine than other tests': a cache of its own; and no long waits."""
    monkeypatch.setenv("SSDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "DELAYS", (0.01,))
    for known in (remote_cache._stamps, remote_cache._copies, remote_cache._mirrors):
        known.clear()


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def pushed(place: Remote, name: str, data: bytes, tmp_path) -> None:
    (tmp_path / "source").write_bytes(data)
    with open(tmp_path / "source", "rb") as file:
        place.push(file, name)


@pytest.mark.parametrize("uri", ["s3://b/x", "gs://b/x", "hdfs://h:8020/x"])
def test_other_file_systems_are_told_by_their_scheme(uri) -> None:
    assert is_remote(uri) and join(f"{uri}?a=b", "y", "z") == f"{uri}/y/z?a=b"
    assert parent(f"{uri}?a=b") == (f"{uri[:-2]}?a=b", "x")


@pytest.mark.parametrize("path", ["runs", "/runs", "file:///runs", "a:b", "://x"])
def test_paths_of_this_machine_are_not_remote(path) -> None:
    assert not is_remote(path)


@pytest.mark.parametrize("kind", ["s3", "fsspec"])
def test_what_is_written_is_listed_read_and_removed(bucket, tmp_path, kind) -> None:
    folder = f"fsspec+memory://{bucket.name}/a b" if kind == "fsspec" else bucket.uri("a b")
    place = Remote(folder)
    assert place.list() == {} and not place.exists() and place.stat("x") is None
    place.write("x", b"1")
    place.write("x", b"22")
    large = noise(11_000_000)
    pushed(place, "d/e/large", large, tmp_path)
    assert {name: s.size for name, s in place.list(deep=True).items()} == {
        "x": 2, "d/e/large": len(large)}  # fmt: skip
    assert [*place.list()] == ["x"] and place.exists() and place.list("none") == {}
    assert place.read("x") == b"22" and isinstance(place.stat("x"), Stamp)
    place.fetch("d/e/large", tmp_path / "here" / "large", hashlib.sha256(large).hexdigest())
    assert (tmp_path / "here" / "large").read_bytes() == large
    assert os.listdir(tmp_path / "here") == ["large"]
    with place.open("d/e/large") as file:
        file.seek(5_000_000)
        assert file.read(10) == large[5_000_000:5_000_010]
    place.delete("x")
    place.delete("x")
    with pytest.raises(FileNotFoundError):
        place.read("x")
    with pytest.raises(FileNotFoundError):
        place.fetch("x", tmp_path / "y")


@pytest.mark.parametrize("how", ["error", "truncate", "shut"])
def test_a_read_that_fails_is_tried_again(bucket, tmp_path, how) -> None:
    data = noise(300_000)
    Remote(bucket.uri()).write("x", data)
    with bucket.proxy.failing("GET", "/x", how, times=2) as fault:
        Remote(bucket.uri()).fetch("x", tmp_path / "x")
    assert fault.met == 2 and (tmp_path / "x").read_bytes() == data


@pytest.mark.parametrize("how", ["short", "flip"])
def test_a_torn_download_is_noticed_and_fetched_again(bucket, tmp_path, how) -> None:
    data = noise(300_000)
    Remote(bucket.uri()).write("x", data)
    with bucket.proxy.failing("GET", "/x", how, times=1) as fault:
        Remote(bucket.uri()).fetch("x", tmp_path / "x", hashlib.sha256(data).hexdigest())
    assert fault.met == 1 and (tmp_path / "x").read_bytes() == data


def test_what_never_arrives_whole_is_no_file(bucket, tmp_path) -> None:
    Remote(bucket.uri()).write("x", b"data")
    wrong = hashlib.sha256(b"dato").hexdigest()
    with (
        bucket.proxy.failing("GET", "/x", "flip"),
        pytest.raises(RemoteError, match="cannot fetch s3://.*/x.*after 2 attempts.*checksum"),
    ):
        Remote(bucket.uri()).fetch("x", tmp_path / "here" / "x", wrong)
    assert not os.listdir(tmp_path / "here")


@pytest.mark.parametrize("how", ["error", "cut"])
def test_an_upload_that_dies_midway_shows_nothing(bucket, tmp_path, monkeypatch, how) -> None:
    monkeypatch.setattr(remote, "DELAYS", ())
    place, data = Remote(bucket.uri("p")), noise(11_000_000)  # several parts
    with (
        bucket.proxy.failing("PUT", "partNumber=2", how),
        pytest.raises(RemoteError, match="cannot write s3://.*/p/x"),
    ):
        pushed(place, "x", data, tmp_path)
    assert bucket.objects() == {}
    pushed(place, "x", data, tmp_path)
    assert bucket.objects() == {"p/x": len(data)}


def test_a_write_that_was_obeyed_but_not_confirmed_is_no_harm(bucket) -> None:
    with bucket.proxy.failing("PUT", "/x", "shut", times=1) as fault:
        Remote(bucket.uri()).write("x", b"data")
    assert fault.met == 1 and Remote(bucket.uri()).read("x") == b"data"


def test_a_server_that_stalls_is_given_up(bucket) -> None:
    Remote(bucket.uri()).write("x", b"data")
    with bucket.proxy.failing("GET", "/x", "stall", times=1):
        assert Remote(bucket.uri()).read("x") == b"data"


def test_no_such_bucket_is_said_at_once(bucket) -> None:
    uri = bucket.uri().replace(bucket.name, "nobodys-bucket")
    with pytest.raises(RemoteError, match="nobodys-bucket.*no such bucket: create it"):
        Remote(uri).list()


def test_missing_rights_are_said_with_a_way_out(bucket) -> None:
    Remote(bucket.uri()).write("x", b"1")

    def refuse(request):
        request.answer(403, [], b"<Error><Code>AccessDenied</Code></Error>")

    bucket.proxy.pass_on = refuse
    with pytest.raises(RemoteError, match="access denied.*AWS_ACCESS_KEY_ID"):
        Remote(bucket.uri()).read("x")


@pytest.mark.parametrize(
    "uri, said",
    [
        ("s3://key:secret@b/x", "credentials in a URI"),
        ("s3:///x", "expected s3://BUCKET_OR_HOST"),
        ("s3://b/x?colour=red", "colour"),
        ("ftp://host/x", "ftp"),
    ],
)
def test_what_is_no_place_is_refused(uri, said) -> None:
    with pytest.raises(ValueError, match=said) as error:
        Remote(uri).list()
    assert "secret" not in str(error.value)


@pytest.fixture
def clip(bucket, shapes):
    """A rendered video here, and its URI."""
    path = sorted((shapes / "downstream" / "videos").iterdir())[0]
    with open(path, "rb") as file:
        Remote(bucket.uri("my videos")).push(file, path.name)
    return path, bucket.uri(f"my videos/{path.name}")


def test_a_clip_is_the_same_from_afar_and_fetched_once(bucket, clip) -> None:
    path, uri = clip
    for frames in ([0, 7, 3], [5], range(20)):
        np.testing.assert_array_equal(read_clip(uri, frames), read_clip(path, frames))
    assert probe(uri) == probe(path)
    read = [size for how, name, size in bucket.proxy.seen if how == "GET" and ".mp4" in name]
    assert sum(read) <= path.stat().st_size + 1000


def test_a_clip_is_read_in_ranges_where_the_disk_has_no_room(clip, monkeypatch, tmp_path) -> None:
    path, uri = clip
    monkeypatch.setattr(remote_cache, "RESERVED_BYTES", 1 << 60)
    np.testing.assert_array_equal(read_clip(uri, [9, 2]), read_clip(path, [9, 2]))
    assert probe(uri) == probe(path)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_broken_file_and_a_broken_line_are_told_apart(bucket, clip, monkeypatch) -> None:
    path, uri = clip
    Remote(bucket.uri("my videos")).write("cut.mp4", path.read_bytes()[:2000])
    Remote(bucket.uri("my videos")).write("text.mp4", b"no video at all")
    for name in ("cut.mp4", "text.mp4"):
        with pytest.raises(CorruptVideo, match=f"s3://.*{name}"):
            read_clip(bucket.uri(f"my videos/{name}"), [30])
    monkeypatch.setattr(remote, "DELAYS", ())
    with bucket.proxy.failing("GET", ".mp4", "shut"), pytest.raises(RemoteError):
        read_clip(uri, [0])
    with pytest.raises(FileNotFoundError, match="none.mp4"):
        read_clip(bucket.uri("none.mp4"), [0])


def put_folder(bucket, folder, prefix: str) -> None:
    client = bucket.client()
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            client.put_object(Bucket=bucket.name, Key=key, Body=path.read_bytes())


def test_a_data_set_is_the_same_from_afar(bucket, shapes) -> None:
    put_folder(bucket, shapes, "data")
    for format, part, annotation in (
        ("segments", "downstream", "annotations.json"),
        ("kinetics", "upstream", "annotations.csv"),
    ):
        here = load_manifest(format, shapes / part / annotation, shapes / part / "videos")
        there = load_manifest(
            format, bucket.uri(f"data/{part}/{annotation}"), bucket.uri(f"data/{part}/videos")
        )
        assert there.fingerprint == here.fingerprint and there == here.__class__(
            **{**vars_of(here), "videos": there.videos}
        )
        video = there.videos[0]
        assert video.path.startswith(f"s3://{bucket.name}/data/{part}/videos/")
        np.testing.assert_array_equal(
            read_clip(video.path, [0, 5]), read_clip(here.videos[0].path, [0, 5])
        )


def vars_of(manifest) -> dict:
    names = ("name", "classes", "videos", "missing", "missing_splits", "notes")
    return {name: getattr(manifest, name) for name in names}


def test_missing_videos_are_counted_and_new_annotations_seen(bucket, shapes) -> None:
    put_folder(bucket, shapes / "downstream", "d")
    gone = sorted(key for key in bucket.objects("d/videos"))[3]
    bucket.client().delete_object(Bucket=bucket.name, Key=gone)
    uris = bucket.uri("d/annotations.json"), bucket.uri("d/videos")
    manifest = load_manifest("segments", *uris)
    assert manifest.missing == (gone.rpartition("/")[2].removesuffix(".mp4"),)
    assert len(manifest.videos) == len(bucket.objects("d/videos"))
    Remote(bucket.uri("d")).write("annotations.json", b"{}")
    remote_cache._stamps.clear()  # as in the next process
    remote_cache._copies.clear()
    assert not load_manifest("segments", *uris).videos


def test_a_folder_that_is_not_there_is_said(bucket) -> None:
    with pytest.raises(FileNotFoundError, match="s3://.*/nothing"):
        load_manifest("kinetics", bucket.uri("nothing"))


def test_a_process_that_was_forked_reads_on_its_own(bucket, clip) -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    path, uri = clip
    read_clip(uri, [0])
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        found = pool.submit(Remote(uri).read).result(timeout=60)
    assert found == path.read_bytes()


def test_bytes_are_pushed_from_where_the_file_is_whole(bucket, tmp_path) -> None:
    assert remote.checksum(io.BytesIO(b"abc")) == hashlib.sha256(b"abc").hexdigest()
