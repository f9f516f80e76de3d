"""What loads with the package, and which way imports go."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("ray", "torch", "torchvision", "pytorchvideo", "pandas", "matplotlib")

LAYERS = (
    {"console", "lazy", "plugins", "quiet", "sockets", "text"},
    {"augment", "data", "models"},
    {"evaluation", "training"},
    {"results", "studies", "testing"},
    {"cli"},
    {"experiments"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SIDEWAYS = {("results", "studies"), ("models", "data")}
"""Tables read plans; published weights name the clips that they are used to."""

KNOW_RAY = {
    "ssdet/execution/decoding.py": {"ray"},
    "ssdet/training/distributed.py": {
        "ray.train",
        "ray.tune.integration.ray_train",
        "ray.util",
        "ray.get_runtime_context",
    },
    "ssdet/execution/session.py": {"ray"},
    "ssdet/execution/runner.py": {"ray.tune"},
    "ssdet/execution/tuner.py": {"ray.tune", "ray.air.integrations"},
    "ssdet/execution/telemetry.py": {"ray", "ray.util.metrics"},
    "ssdet/execution/searcher.py": {"ray.tune"},
    "ssdet/execution/feature_stream.py": {"ray"},
    "ssdet/execution/doctor/checks.py": {"ray"},
    "ssdet/execution/search_driver.py": {"ray.tune", "ray.get", "ray.remote"},
}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("ssdet", HEAVY),
        ("ssdet.data", HEAVY),
        ("ssdet.cli", ("ray", "torchvision", "pytorchvideo", "pandas", "matplotlib")),
    ],
)
def test_importing_loads_no_more_than_it_needs(module, absent) -> None:
    code = f"import sys, {module}; print(*[name for name in {absent} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == []


def test_parts_load_when_they_are_touched() -> None:
    import ssdet

    assert {"augment", "data", "models", "studies"} <= set(dir(ssdet))
    assert ssdet.data.load_manifest and ssdet.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ssdet.nothing


def sources() -> list[Path]:
    return sorted([*ROOT.glob("ssdet/**/*.py"), *ROOT.glob("experiments/*.py")])


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names that a file imports, wherever in it, and whether at once when it loads."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_once = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from ((name, id(node) in at_once) for name in names)


def part(dotted: str) -> str:
    return dotted.split(".")[1]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_every_part_has_a_place() -> None:
    parts = {part(name_of(path)) for path in sources() if "." in name_of(path)}
    assert {name for name in parts if (ROOT / "ssdet" / name).is_dir()} <= LEVEL.keys()


def test_imports_go_down_only() -> None:
    wrong = []
    for path in sources():
        own = name_of(path)
        if own == "ssdet":
            assert not [name for name, _ in imported(path) if name.startswith("ssdet")]
            continue
        mine = "experiments" if own.startswith("experiments") else part(own)
        for name, _ in imported(path):
            if name.startswith("ssdet."):
                other = part(name)
                down = mine == other or LEVEL[other] < LEVEL[mine] or (mine, other) in SIDEWAYS
                wrong += [] if down else [f"{path.relative_to(ROOT)} imports {name}"]
    assert not wrong


def test_no_module_waits_for_itself() -> None:
    """Imports at the top of files make no circle, so that any module can be loaded first."""
    modules = {name_of(path): path for path in sources()}
    graph = {}
    for own, path in modules.items():
        found = {name for name, at_once in imported(path) if at_once}
        targets = {name if name in modules else name.rpartition(".")[0] for name in found}
        graph[own] = {name for name in targets & modules.keys() if name != own}
    packages = {name for name, path in modules.items() if path.name == "__init__.py"}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in sorted(graph[name] - packages):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_few_know_ray() -> None:
    for path in sources():
        known = KNOW_RAY.get(str(path.relative_to(ROOT)), set())
        for name, _ in imported(path):
            if name.split(".")[0] == "ray":
                allowed = any(f"{name}.".startswith(f"{prefix}.") for prefix in known)
                assert allowed, f"{path.relative_to(ROOT)} imports {name}"
