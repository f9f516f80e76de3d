"""Names of videos in files of other tools, against the ids of an annotation."""

import unicodedata

import pytest

from ssdet.data.datasets.video_names import VideoNames


@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("abc", "abc"),
        ("abc.webm", "abc"),
        ("abc.MP4", "abc"),
        ("v_abc", "abc"),
        ("v_abc.mkv", "abc"),
        ("videos/test/abc.mp4", "abc"),
        ("C:\\videos\\abc.avi", "abc"),
        ("v_x", "v_x"),
        ("x", "v_x"),
        ("clip.mov", "clip.mov"),
        ("clip", "clip.mov"),
        ("clip.avi", "clip.mov"),
        ("train/run", "train/run"),
        ("train/run.mp4", "train/run"),
        ("run", None),
        ("video.1", "video.1"),
        ("video.2", None),
        ("abcd", None),
        ("", None),
    ],
)
def test_a_name_means_one_annotated_video(name, video) -> None:
    ids = ["abc", "v_x", "clip.mov", "train/run", "video.1"]
    assert VideoNames(ids).find(name) == video


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_both_unicode_normalisations_are_one_name(form) -> None:
    video = unicodedata.normalize(form, "vidéo_Ålesund")
    names = VideoNames([video])
    for other in ("NFC", "NFD"):
        assert names.find(unicodedata.normalize(other, "vidéo_Ålesund.mp4")) == video


def test_the_exact_id_comes_first_and_two_readings_are_refused() -> None:
    names = VideoNames(["a.mp4", "a.avi", "b", "v_b"])
    assert names.find("a.avi") == "a.avi" and names.find("v_b") == "v_b" and names.find("b") == "b"
    with pytest.raises(ValueError, match=r"'a' can be 'a.avi' or 'a.mp4'"):
        names.find("a")
