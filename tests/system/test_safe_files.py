"""Files of a store appear whole, and no symbolic link leads out of it."""

import os
import threading
from pathlib import Path

import pytest

from ssdet.system.safe_files import (
    LinkError,
    below,
    file_lock,
    is_locked,
    make_folder,
    open_lock,
    refuse_links,
    remove,
    replacing,
    text_file,
    write_bytes,
    write_json,
    write_text,
)  # fmt: skip


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file outside of the store `tmp_path/store`."""
    (tmp_path / "store").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("keep")
    return tmp_path / "outside" / "file"


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path) -> None:
    path = tmp_path / "table.csv"
    write_text(path, "old\n")
    with text_file(path) as file:
        file.write("new \udcdf")
        assert path.read_text() == "old\n"
    assert path.read_text() == "new \\udcdf"
    with pytest.raises(ZeroDivisionError), replacing(path) as work:
        work.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "new \\udcdf"
    write_json(path, {"a": 1})
    assert path.read_bytes() == b'{\n "a": 1\n}' and [*tmp_path.iterdir()] == [path]


def test_threads_that_write_the_same_file_leave_one_of_theirs(tmp_path) -> None:
    path = tmp_path / "x"
    contents = [bytes([number]) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=write_bytes, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("target", ["outside/file", "outside/missing"])
def test_no_file_is_written_through_a_link(tmp_path, outside, target) -> None:
    link = tmp_path / "store" / "table.csv"
    link.symlink_to(tmp_path / target)
    with pytest.raises(LinkError, match=f"{link} is a symbolic link to .*Remove the link"):
        write_text(link, "new")
    with pytest.raises(LinkError, match="put the target itself"):
        open_lock(link)
    assert outside.read_text() == "keep" and [*outside.parent.iterdir()] == [outside]
    assert link.is_symlink()


def test_a_lock_is_neither_emptied_nor_followed(tmp_path, outside) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path) and not path.exists()
    path.write_text("kept")
    with file_lock(path):
        assert is_locked(path)
        with pytest.raises(BlockingIOError), file_lock(path, wait=False):
            pass
    assert not is_locked(path) and path.read_text() == "kept"
    link = tmp_path / "link"
    link.symlink_to(outside)
    with pytest.raises(LinkError), file_lock(link):
        pass
    with pytest.raises(LinkError):
        is_locked(link)


def test_folders_are_made_beside_links_not_behind_them(tmp_path, outside) -> None:
    root = tmp_path / "store"
    assert make_folder(root, "a", "b") == make_folder(root, "a", "b") == root / "a" / "b"
    (root / "a" / "link").symlink_to(outside.parent)
    with pytest.raises(LinkError, match="a/link is a symbolic link"):
        make_folder(root, "a", "link", "c")
    with pytest.raises(LinkError):
        refuse_links(root, root / "a" / "link" / "file")
    refuse_links(root, root / "a" / "b" / "missing")
    assert [*outside.parent.iterdir()] == [outside]
    for name in ("", ".", "..", "a/b", "a\0"):
        with pytest.raises(ValueError, match="no name of a folder"):
            make_folder(root, name)


def test_a_folder_is_removed_with_its_links_and_without_their_targets(tmp_path, outside) -> None:
    root = tmp_path / "store"
    folder = make_folder(root, "stages", "x")
    (folder / "file").write_text("1")
    (folder / "to_file").symlink_to(outside)
    (folder / "to_folder").symlink_to(outside.parent)
    remove(root, folder)
    assert not folder.exists() and not [*(root / "trash").iterdir()]
    assert outside.read_text() == "keep"
    (make_folder(root, "trash", "left") / "file").write_text("2")
    remove(root, root / "trash" / "left")
    assert not [*(root / "trash").iterdir()]
    with pytest.raises(FileNotFoundError):
        remove(root, folder)


@pytest.mark.parametrize("link", ["stages", "stages/x", "trash", "stages/x/file"])
def test_nothing_is_removed_through_a_link(tmp_path, outside, link) -> None:
    root = tmp_path / "store"
    make_folder(root, "stages")
    path = root / "stages" / "x"
    if link == "stages":
        (root / "stages").rmdir()
        (outside.parent / "x").mkdir()
    elif link != "stages/x":
        make_folder(root, "stages", "x")
    if link == "stages/x/file":
        path = path / "file"
    (root / link).symlink_to(outside.parent)
    before = sorted(outside.parent.rglob("*"))
    with pytest.raises(LinkError, match=f"{root / link} is a symbolic link to {outside.parent}"):
        remove(root, path)
    assert sorted(outside.parent.rglob("*")) == before and outside.read_text() == "keep"
    assert os.path.lexists(path)


def test_what_lies_elsewhere_is_not_removed(tmp_path, outside) -> None:
    root = tmp_path / "store"
    for path in (outside, root / ".." / "outside" / "file"):
        with pytest.raises(ValueError, match=r"not in the subpath|leads out"):
            remove(root, path)
    assert below(root, "a/b") == root / "a" / "b"
    for name in ("", "/x", "a/../../x", "a\0"):
        with pytest.raises(ValueError, match="leads out"):
            below(root, name)
    assert outside.exists()


def test_the_root_may_be_reached_through_links(tmp_path, outside) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "store")
    root = tmp_path / "link"
    write_bytes(make_folder(root, "a") / "file", b"1")
    remove(root, root / "a")
    assert not (tmp_path / "store" / "a").exists()
