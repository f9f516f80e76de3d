"""The report page, read by a parser that knows nothing of it."""

import base64
import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ssdet.cli.__main__ import main
from ssdet.evaluation import PredictionSet
from ssdet.execution.tuning import Choice
from ssdet.results.report.costs import costs
from ssdet.results.report.page import embedded
from ssdet.results.report.plan_drawing import draw, nodes
from ssdet.results.report.sentences import Outcome, compared, outcomes, warnings
from ssdet.results.report.viewer import quantised, viewer
from ssdet.results.report.writer import write_report
from ssdet.results.tables.result_table import result_table
from ssdet.studies import Arm, Study, Table, augmented, classification, plan, preset
from ssdet.studies.changes import from_checkpoint, scaled_pretraining
from ssdet.studies.graph.audit import audit
from ssdet.studies.graph.plan import Plan
from ssdet.system.safe_files import write_json


@dataclass
class Seen(HTMLParser):
    """What a page holds."""

    text: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    words: str = ""
    inside: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag) -> None:
        self.inside = ""

    def handle_data(self, data) -> None:
        if self.inside == "script":
            self.scripts.append(data)
        elif self.inside != "style":
            self.words += data

    def all(self, name: str) -> list[str]:
        return [
            value or ""
            for _, attributes in self.tags
            for n, value in attributes.items()
            if n == name
        ]

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def seen(page) -> Seen:
    return Seen(page.read_text())


def test_ids_are_unique_and_links_lead_somewhere(seen, made) -> None:
    ids = seen.all("id")
    assert len(ids) == len(set(ids))
    links = [one["href"] for one in seen.of("a")]
    assert links and all(link.startswith("#") and link[1:] in ids for link in links)
    for name in [*seen.all("for"), *seen.all("aria-labelledby"), *seen.all("aria-describedby")]:
        assert name in ids
    scored = {stage.id for run in made.plan.runs for stage in (run.predict, run.probe) if stage}
    assert {f"run-{name}" for name in scored} <= set(ids)
    assert {name for cell in seen.all("data-runs") for name in cell.split()} == scored
    assert {f"stage-{name}" for name in made.plan.stages} <= set(ids)


def test_nothing_is_fetched_and_the_policy_forbids_it(seen, page) -> None:
    assert all(value.startswith("data:") for value in seen.all("src"))
    assert {tag for tag, _ in seen.tags}.isdisjoint({"iframe", "object", "embed", "base", "form"})
    assert [one["href"] for one in seen.of("link")] == ["data:,"]
    assert not [
        a for _, attributes in seen.tags for a in attributes if a == "style" or a[:2] == "on"
    ]
    policy = next(m["content"] for m in seen.of("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; img-src data:;")
    code = [text for text in seen.scripts if "addEventListener" in text]
    digest = base64.b64encode(hashlib.sha256("".join(code).encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    style = re.search(r"<style>(.*?)</style>", page.read_text(), re.S)
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy and "url(" not in style[1]


def test_everything_has_a_name(seen) -> None:
    assert seen.of("html")[0]["lang"] == "en" and seen.of("title")
    labelled = seen.all("for")
    for tag in ("select", "input"):
        assert seen.of(tag) and all(one["id"] in labelled for one in seen.of(tag))
    assert len(seen.of("img")) == 4 and all(len(one["alt"]) > 40 for one in seen.of("img"))
    for one in [*seen.of("canvas"), *(o for o in seen.of("div") if o.get("role") == "region")]:
        assert one.get("aria-label")
    assert all("aria-labelledby" in one for one in seen.of("svg"))
    headings = [int(tag[1]) for tag, _ in seen.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and all(b - a <= 1 for a, b in pairwise(headings))
    assert seen.of("a")[0]["href"] == "#main"


def test_texts_of_users_stay_texts(seen, odd) -> None:
    evil = odd.study.table.source
    assert 'id="evil"' in evil and "evil" not in seen.all("id") and not seen.of("b")
    assert len(seen.of("script")) == 2
    assert f"cls {evil}" in seen.words.replace("\n", " ") and f"Title {evil}" in seen.words
    data = json.loads(seen.scripts[0])
    assert data["classes"][3] == f"3 {evil}"
    assert json.loads(embedded({"V</script>": "<!--\u2028"})) == {"V</script>": "<!--\u2028"}
    assert "<" not in embedded({"V</script>": "<!--"})


def test_the_page_can_be_sent_around(page, logged) -> None:
    assert "alices-laptop" not in page.read_text() and str(logged.root) not in page.read_text()


def test_the_viewer_has_truth_and_scores(made, logged) -> None:
    found = viewer(made.plan, logged, "pair", 3, 10**6)
    assert (found.videos, found.of, found.for_size, found.stepped) == (3, 8, 0, 0)
    video, runs = found.data["videos"][1], found.data["runs"]
    shape = len(video["classes"]), video["frames"]
    raw = np.frombuffer(base64.b64decode(video["truth"]), np.uint8).reshape(shape)
    truth = made.targets["test"][video["id"]]
    assert np.array_equal(raw.T.astype(bool), truth[:, video["classes"]])
    for place, run in enumerate(runs):
        scores = PredictionSet.open(logged.folder(run["id"]) / "predictions" / "test")[video["id"]]
        raw = np.frombuffer(base64.b64decode(video["scores"][place]), np.uint8).reshape(shape)
        assert abs(raw.T / 255 - scores[:, video["classes"]]).max() <= 0.5 / 255 + 1e-6
    pair = next(run for run in runs if run["arm"] == "pair" and run["seed"] == 1)
    members = [(runs[m]["arm"], runs[m]["seed"]) for m in pair["members"]]
    assert members == [("classification", 1), ("view", 1)]
    assert video["pictures"]["uri"].startswith("data:image/jpeg;base64,")


def test_scores_are_rounded_to_the_nearest_of_256() -> None:
    assert quantised(np.array([0, 0.0019, 0.00197, 0.5, 0.999, 1.0])).tolist() == [
        0,
        0,
        1,
        128,
        255,
        255,
    ]


def test_what_does_not_fit_is_left_out(made, logged) -> None:
    whole = viewer(made.plan, logged, "view", 8, 10**7)
    videos = whole.data["videos"]
    assert (whole.videos, whole.for_size, whole.without_pictures) == (8, 0, 0)
    scores = [200 + len(one["truth"]) + sum(map(len, one["scores"])) for one in videos]
    tight = viewer(made.plan, logged, "view", 8, sum(scores) + len(videos[0]["pictures"]["uri"]))
    assert (tight.videos, tight.for_size, tight.without_pictures) == (8, 0, 7)
    short = viewer(made.plan, logged, "view", 8, sum(scores[:3]) + 10)
    assert (short.videos, short.for_size, short.without_pictures) == (3, 5, 3)
    assert [one["id"] for one in short.data["videos"]] == [one["id"] for one in videos[:3]]
    few = viewer(made.plan, logged, "view", 3, 10**7)
    assert [one["id"] for one in few.data["videos"]] == [videos[k]["id"] for k in (0, 2, 5)]


def test_the_words_say_what_came_out(made, logged) -> None:
    table = result_table(made.plan, logged, 50)
    told = compared(made.plan, table)
    assert "3 arms and 1 ensemble, 3 seeds (0, 1, 2)" in told[0] and "“classification”" in told[0]
    assert "8 of 8 videos" in told[1] and "4 steps (2 passes)" in told[-1]  # 24 of 48 clips a step
    checked = audit(made.plan, logged)
    assert warnings(made.plan, table, checked, logged) == [
        "Trial run: trainings of 4 steps show that everything works. The numbers mean nothing."
    ]
    found = {outcome.readout: outcome for outcome in outcomes(table)}["fine-tuned"]
    names = [one.label for one in (*found.better, *found.worse, *found.undecided)]
    assert sorted(names) == ["fresh", "pair", "view"]
    for outcome, word in ((found.better, "better"), (found.worse, "worse")):
        assert all(one.verdict == word for one in outcome)


@pytest.mark.parametrize(
    ("span", "said"),
    [((0.71, 3.62), "0.7 to 3.6"), ((2.01, 2.04), "2.0"), ((58.5, 357.0), "58.5 to more than 100"),
     ((110.0, 357.0), "more than 100"), (None, "")],
)  # fmt: skip
def test_power_in_words(span, said) -> None:
    assert Outcome("fine-tuned", (), (), (), span).power == said


def test_unfair_arms_and_unread_videos_are_warned_of(made, logged) -> None:
    table = result_table(made.plan, logged, 20)
    table = replace(table, unreadable={"V": "why"}, videos_scored=7)
    checked = replace(audit(made.plan, logged), notes=("view differs in lr",))
    said = " ".join(warnings(made.plan, table, checked, logged))
    assert "Not a fair comparison: 1 difference" in said and "view differs in lr" in said
    assert "1 of 8 test videos have no score" in said and "1 video could not be read" in said


@pytest.fixture(scope="module")
def sharing(shown) -> Plan:
    """Two arms go on from what a third ends with; a fourth has nothing in common with them."""
    half = scaled_pretraining(0.5, augmented("cutmix"))
    arms = (
        Arm("cls", classification),
        Arm("on", from_checkpoint(classification, half)),
        Arm("same", from_checkpoint(classification, half), "the same again"),
        Arm("mix", augmented("mixup")),
        Arm("both", members=("cls", "mix")),
        Arm("slow", needs="a_network_that_is_not_built"),
    )
    base = preset("smoke").experiment
    return plan(Study("s", arms, (0, 1, 2, 3, 4), table=Table("T"), base=base, data=shown[0]))


def test_the_graph_has_every_stage_once(sharing) -> None:
    found = nodes(sharing)
    assert sorted(s for node in found for s in node.stages) == sorted(sharing.stages)
    assert all(len(node.stages) == 5 for node in found)
    start = next(n for n in found if n.kind == "pretrain" and n.column == 0 and "cls" in n.arms)
    assert start.arms == ("cls", "on", "the same again") and start.text == "pretrain ×5, 3 arms"
    assert [n.column for n in found if n.kind == "pretrain"].count(1) == 1
    both = next(n for n in found if n.kind == "ensemble")
    assert {found[p].arms[0] for p in both.parents} == {"cls", "mix"}
    drawn = draw(sharing, found)
    corners = [(box.x, box.y) for box in drawn.boxes]
    assert len(corners) == len(set(corners))
    assert len(drawn.lines) == sum(len(node.parents) for node in found)
    assert [one.needs for one in drawn.labels][-1] == "a_network_that_is_not_built"


def test_costs_add_up(made, logged) -> None:
    found = costs(made.plan, logged)
    # Three seeds: cls and view have four stages each and fresh, without pretraining, three; pair
    # averages the predictions of the first two.
    assert found.all.stages == 3 * (4 + 4 + 3 + 1) and found.all.total == 2.0 * 36
    assert {one.label: one.stages / 3 for one in found.arms} == {
        "classification": 4, "view": 4, "fresh": 3, "pair": 7,
    }  # fmt: skip
    assert found.unshared.stages == 3 * 18 and found.saved == 2.0 * 3 * 6
    assert (found.first, found.last, found.again, found.unknown) == (1000.0, 1037.0, 0, 0)


def test_tuned_arms_stand_beside_untuned_ones(finished, logged, tmp_path, monkeypatch) -> None:
    shutil.copytree(logged.root, finished.store.root, dirs_exist_ok=True)
    table = result_table(finished.plan, finished.store, 20)
    row = next(row for row in table.rows if row.arm == "fresh")
    cell = replace(row.cells["finetuned"], scores={0: 0.11, 1: 0.13})
    other = replace(row, arm="fresh, tuned", label="fresh, tuned", cells={"finetuned": cell})
    table = replace(table, rows=(*table.rows, other))
    monkeypatch.setattr("ssdet.results.report.writer.result_table", lambda *given: table)
    trials = {"finished": 7, "failed": 1}
    chosen = Choice("fresh", "s", {"finetune_lr": 0.0312}, 0.2, 0.1, trials, 9, 1.0)
    folder = finished.store.table_folder("ablate_cutmix_tuned")
    write_json(folder / "tuning.json", {"tuning_seed": 9, "arms": [asdict(chosen)]})
    text = write_report(finished.plan, finished.store, tmp_path / "r.html", 0).path.read_text()
    gain = 12 - 100 * row.cells["finetuned"].mean
    assert f"<td>12.00 ± 1.41</td><td>{gain:+.2f}</td>" in text
    assert "finetune_lr 0.0312</td><td>8</td>" in text


@pytest.fixture
def estimate(tmp_path) -> Path:
    """What `ssdet plan --json` printed before."""
    times = {"work_seconds": 75.0, "wall_seconds": 40.0}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"stages": 36, "done": 0, "at_once": 2, **times}))
    return path


def test_the_command_writes_beside_the_tables(
    made, finished, logged, estimate, tmp_path, capsys
) -> None:
    shutil.copytree(logged.root, finished.store.root, dirs_exist_ok=True)
    arguments = ["report", "ablate_cutmix", "--store", str(finished.store.root)]
    small = ["--videos", "8", "--megabytes", "0.001", "--resamples", "20"]
    assert main([*arguments, *small, "--planned", str(estimate)]) == 0
    assert "0 of 8 test videos (8 more did not fit" in capsys.readouterr().out
    path = finished.store.root / "tables" / "ablate_cutmix" / "report.html"
    text = path.read_text()
    assert "<td>1 min 15 s</td><td>1 min 12 s</td>" in text
    assert "8 videos were asked for, and none fits" in text
    again = write_report(made.plan, logged, tmp_path / "new" / "r.html", 8, 0.001, 20, estimate)
    assert again.path.read_bytes() == path.read_bytes() and again.bytes == path.stat().st_size


def test_the_command_says_what_is_wrong(finished, estimate, capsys) -> None:
    where = ["--store", str(finished.store.root)]
    estimate.write_text("{}")
    (finished.store.folder(finished.id("view")) / "DONE").unlink()
    for arguments, why in (
        (["unknown"], "no record of study 'unknown'"),
        (["ablate_cutmix", "--videos", "-1"], "videos=-1"),
        (
            ["ablate_cutmix", "--planned", str(estimate)],
            "plan.json: expected the output of `ssdet plan",
        ),
        (["ablate_cutmix"], "is not finished"),
    ):
        assert main(["report", *arguments, *where]) == 1
        assert why in capsys.readouterr().err
