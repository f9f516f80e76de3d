"""What is seen of a machine: the same data, and a decoder that shows other pictures."""

import pytest

from ssdet.execution.doctor.node import decode, fingerprint


def test_data_is_the_same_where_names_and_content_are(tmp_path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "a.csv").write_text("1")
        (folder / "b.csv").write_text("2")
    assert fingerprint(str(one)) == fingerprint(str(two))
    assert fingerprint(str(one / "a.csv")) != fingerprint(str(one / "b.csv"))
    (two / "a.csv").write_text("3")
    assert fingerprint(str(one)) != fingerprint(str(two))
    (one / "c.csv").touch()
    assert "3 entries" in fingerprint(str(one))
    with pytest.raises(FileNotFoundError):
        fingerprint(str(tmp_path / "three"))


def test_a_decoder_that_shows_other_pictures_is_found_out(monkeypatch) -> None:
    from ssdet.data.video import reader as video

    read = video.read_clip
    monkeypatch.setattr(video, "read_clip", lambda *_: 255 - read(*_))
    with pytest.raises(ValueError, match="off by"):
        decode()
