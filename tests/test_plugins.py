"""What other distributions register: found when it is needed, and never in the way."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ssdet import augment, plugins
from ssdet.augment import registry as augmentations
from ssdet.data import load_manifest
from ssdet.data.datasets import registry as formats
from ssdet.evaluation import PROTOCOLS, Material, score_all
from ssdet.evaluation.protocols import registry as protocols
from ssdet.models import available, create
from ssdet.models import registry as models
from ssdet.plugins import PluginError
from ssdet.stages.provenance import Attempt, provenance

ROOT = Path(__file__).resolve().parents[1]
REGISTRIES = (models, augmentations, formats, protocols)
NUMBERS = itertools.count()

NETWORK = """
from torch import nn
from ssdet.models.registry import register

@register
def {name}(num_classes, *, width=3):
    return nn.Linear(width, num_classes)
"""
DATA_SET = """
from ssdet.data.datasets.manifest import Manifest, Video
from ssdet.data.datasets.registry import register

@register
def {name}(paths, videos):
    return Manifest("toy", ("a",), tuple(Video(path.name, "", "train", 0) for path in paths))
"""
AUGMENTATION = """
from ssdet.augment import VolumeMixUp
from ssdet.augment.registry import register

@register
def {name}(*, mask="half"):
    return VolumeMixUp(mask)
"""
PROTOCOL = '''
from ssdet.evaluation.protocols.registry import Reading, register

@register
def {name}(material):
    """always one"""
    return [Reading(1.0, "{name}/v1", 1, 1, 1, 1, "none")]
'''
KINDS = {"net": NETWORK, "mix": AUGMENTATION, "set": DATA_SET, "score": PROTOCOL}

Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution of one module with this source, as a wheel would; returns both's
    name."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(source: str, name: str = "", version: str = "1.0") -> str:
        name = name or f"sample_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[ssdet.plugins]\nmain = {name}\n")
        return name

    with plugins.restored():
        yield add


def named(**names: str) -> str:
    """Source that registers something of each of these kinds."""
    return "".join(KINDS[kind].format(name=name) for kind, name in names.items())


def test_all_four_kinds_are_found_by_name(install: Install, tmp_path: Path) -> None:
    install(named(net="acme_net", set="acme_set", mix="acme_mix", score="acme_score"))
    assert create("acme_net", 5, width=7).weight.shape == (5, 7)
    assert [video.id for video in load_manifest("acme_set", tmp_path / "x").videos] == ["x"]
    assert augment.create("acme_mix", mask="step") == augment.VolumeMixUp("step")
    assert score_all(Material(), ["acme_score"])[0][0].protocol == "acme_score/v1"
    assert PROTOCOLS["acme_score"].about == "always one"


@pytest.mark.parametrize(("registry", "kind"), zip(REGISTRIES, KINDS, strict=True))
def test_all_are_listed(install: Install, registry, kind) -> None:
    before = registry.available()
    install(named(net="acme_net", set="acme_set", mix="acme_mix", score="acme_score"))
    assert registry.available() == sorted([*before, f"acme_{kind}"])
    assert registry.available("acme_*") == [f"acme_{kind}"]


def test_options_are_checked_as_those_of_ssdet(install: Install) -> None:
    install(named(net="acme_net", mix="acme_mix"))
    with pytest.raises(TypeError, match=r"'acme_net' has no option 'widht': did you mean 'width'"):
        create("acme_net", 5, widht=7)
    with pytest.raises(ValueError, match=r"acme_mix has no option 'maks'.*did you mean 'mask'"):
        augment.create("acme_mix", maks="step")


def test_nothing_is_imported_before_it_is_needed(install: Install, tmp_path: Path) -> None:
    name = install(named(net="acme_net"))
    code = f"""
import sys, ssdet.plugins
assert "importlib.metadata" not in sys.modules
import ssdet.augment, ssdet.data, ssdet.evaluation
from ssdet.models import available, create
create("linear", 3), available("linear"), ssdet.augment.create("mixup")
assert {name!r} not in sys.modules, "needed for names of ssdet"
create("acme_net", 3)
assert {name!r} in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


BROKEN = named(net="half_net") + "import no_such_module_anywhere\n"


def test_a_broken_plugin_is_told_and_in_nobodys_way(install: Install, tmp_path: Path) -> None:
    broken, whole = install(BROKEN, version="2.5"), install(named(net="acme_net"))
    told = (
        rf"plugin {broken} of {broken} 2\.5: ModuleNotFoundError: .*no_such_module_anywhere.*"
        rf"pip uninstall {broken}"
    )
    for _ in range(2):
        with pytest.raises(PluginError, match=rf"no model named 'half_net'.*{told}") as caught:
            create("half_net", 5)
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    for registry in REGISTRIES:
        with pytest.raises(PluginError, match=rf"cannot list every .*{told}"):
            registry.available()
    with pytest.raises(PluginError, match=told):
        score_all(Material())
    with pytest.raises(PluginError, match=told):
        load_manifest("nowhere", tmp_path)
    assert create("linear", 3, in_features=4) and create("acme_net", 3)
    assert available("linear") == ["linear"] and augment.create("mixup")
    assert score_all(Material(), ["dense"])[1] == {"dense": "needs the scores of every frame"}
    assert plugins.versions() == {whole: "1.0"}


def test_the_error_of_a_plugin_with_a_broken_syntax(install: Install) -> None:
    install("def broken(:\n")
    with pytest.raises(PluginError, match="SyntaxError"):
        create("acme_net", 5)


@pytest.mark.parametrize(
    ("kind", "name", "owner"),
    [
        ("net", "x3d_tiny", "ssdet.models.networks.x3d"),
        ("set", "charades", "ssdet.data.datasets.charades"),
        ("mix", "mixup", "ssdet.augment.mixup"),
        ("score", "dense", "ssdet.evaluation.protocols.registry"),
    ],
)
def test_names_of_ssdet_cannot_be_taken(install: Install, kind, name, owner) -> None:
    own = install(named(**{kind: name}))
    with pytest.raises(PluginError, match=rf"{name!r} is registered twice, by {owner} and {own}"):
        create("acme_net", 5)
    assert type(create("x3d_tiny", 2)).__module__ == "ssdet.models.networks.x3d"
    assert augment.create("mixup") == augment.VolumeMixUp()


def test_two_plugins_with_one_name(install: Install) -> None:
    first, second = sorted(install(named(net="acme_net", mix=f"mix_{n}")) for n in range(2))
    with pytest.raises(PluginError, match=rf"twice, by {first} and {second}: rename"):
        available()
    assert create("acme_net", 2) and augment.create("mix_0")
    with pytest.raises(PluginError, match="mix_1"):
        augment.create("mix_1")


def test_a_plugin_may_need_another_and_not_itself(install: Install) -> None:
    install(named(net="acme_net"), "zz_base")
    install("from ssdet.models import create\ncreate('acme_net', 2)\n" + named(mix="acme_mix"))
    assert augment.create("acme_mix")
    lister = install("from ssdet.models import available\navailable()\n", "aa_lister")
    with pytest.raises(PluginError, match=rf"{lister}.*looks up names while it is being imported"):
        available()


def test_unknown_names_say_how_to_make_them_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model named 'my_net'.*Ray included: install it as"):
        create("my_net", 5)
    with pytest.raises(ValueError, match="no data format named 'charade': did you mean 'charades'"):
        load_manifest("charade", tmp_path)
    with pytest.raises(KeyError):
        _ = PROTOCOLS["densest"]
    assert "densest" not in PROTOCOLS and PROTOCOLS.get("densest") is None


def test_provenance_has_the_versions_of_imported_plugins(install: Install) -> None:
    name = install(named(net="acme_net"), version="3.1")
    attempt = Attempt(1, 0.0, 0.0)
    assert name not in provenance(attempt, None, 0, {})["packages"]
    create("acme_net", 2)
    packages = provenance(attempt, None, 0, {})["packages"]
    assert packages[name] == "3.1" and "torch" in packages


@pytest.mark.slow
def test_workers_of_ray_find_installed_names_only(install, tmp_path, ray_session) -> None:
    import ray

    install(named(net="acme_net"))
    models.register(mine_alone)
    assert create("mine_alone", 2) == 2
    told = ray.get(ray.remote(num_cpus=0)(built).remote(str(tmp_path)))
    assert told["acme_net"] == "Linear"
    assert "Ray included: install it as a plugin" in told["mine_alone"]


def mine_alone(num_classes: int) -> int:
    return num_classes


def built(packages: str) -> dict[str, str]:
    """What a process that has this folder among its packages makes of two names."""
    from ssdet.models import create

    sys.path.append(packages)
    told = {}
    for name in ("acme_net", "mine_alone"):
        try:
            told[name] = type(create(name, 2)).__name__
        except ValueError as error:
            told[name] = str(error)
    sys.path.remove(packages)
    return told
