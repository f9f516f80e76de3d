"""The report page in a real browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ssdet.evaluation import PredictionSet


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A real Chromium; tests that need it are skipped where there is none."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"no browser found (looked for {', '.join(names)})")
    with driver.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def shown_at(browser, page: Path, width: int, **how) -> tuple:
    """The page in a window, and what it asked for and complained of."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **how)
    tab = context.new_page()
    faults: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: faults.append(message.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    return tab, faults, asked


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_a_browser_shows_it(browser, page, tmp_path, width, scheme) -> None:
    tab, faults, asked = shown_at(browser, page, width, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.title().startswith("Title </script>")
    slider, strips = tab.locator("#viewer-frame"), tab.locator("#viewer-strips")
    frames = int(slider.get_attribute("max")) + 1
    assert strips.get_attribute("data-frame") == "0"
    slider.focus()
    last = frames - 1
    moves = [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", last)]
    moves += [("ArrowRight", last), ("PageDown", last - 10), ("Home", 0)]
    for key, frame in moves:
        tab.keyboard.press(key)
        assert strips.get_attribute("data-frame") == str(frame), key
    box = strips.bounding_box()
    strips.click(position={"x": box["width"] - 3, "y": box["height"] / 2})
    assert strips.get_attribute("data-frame") == str(last)
    assert f"Frame {frames} of {frames}" in slider.get_attribute("aria-valuetext")
    tab.locator("#viewer-arm").select_option(index=3)  # the ensemble, with two members beside it
    assert tab.locator("#viewer-head th").count() == 2 + 1 + 2 + 1
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate("[...document.images].every((one) => one.naturalWidth > 100)")
    picture = tab.screenshot(full_page=True, path=tmp_path / f"{width}.png")
    assert len(picture) > 50_000
    assert faults == [] and [url for url in asked if not url.startswith("data:")] == [page.as_uri()]


def test_the_shown_scores_are_those_of_the_frame(browser, page, odd, logged) -> None:
    tab, _, _ = shown_at(browser, page, 1280)
    tab.locator("#viewer-arm").select_option(index=1)
    tab.locator("#viewer-seed").select_option(label="2")
    tab.locator("#viewer-video").select_option(index=1)
    tab.locator("#viewer-frame").focus()
    for _ in range(5):
        tab.keyboard.press("ArrowRight")
    video = tab.locator("#viewer-video option:checked").inner_text()
    run = next(run for run in odd.runs if (run.arm, run.seed) == ("view", 2))
    scores = PredictionSet.open(logged.folder(run.predict.id) / "predictions" / "test")[video][5]
    cells = tab.locator("#viewer-scores tr td:nth-child(3)").all_inner_texts()
    assert np.allclose([float(text) for text in cells], scores, atol=0.5 / 255 + 0.005 + 1e-6)


def test_it_can_be_read_without_javascript(browser, page) -> None:
    tab, _, _ = shown_at(browser, page, 375, java_script_enabled=False)
    assert not tab.locator("#viewer").is_visible()
    assert tab.locator("noscript p").is_visible()
    for name in ("summary", "table", "figures", "plan", "fairness", "coverage", "costs", "runs"):
        assert tab.locator(f"#{name} h2").is_visible()
    tab.keyboard.press("Tab")
    assert tab.locator(".skip:focus").count() == 1
