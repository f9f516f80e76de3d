"""Registries of networks, data formats, augmentations and protocols, and plugins that add to them.

A distribution lists modules under the entry point group `ssdet.plugins`; importing one registers
its entries of any kind (docs/extending.md).
"""

import difflib
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from typing import TypeVar

GROUP = "ssdet.plugins"
WAY_OUT = (
    "A name of your own must be registered in every process that uses it, workers of Ray "
    "included: install it as a plugin (docs/extending.md)"
)
T = TypeVar("T")


class PluginError(ValueError):
    """A plugin that may register the requested name cannot be imported."""


class UsageError(ValueError):
    """Options that are missing, wrong or exclude each other; commands exit with status 2."""


class Unknown(KeyError, ValueError):
    """A name that is not registered."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, order=True)
class Plugin:
    """A module that an installed distribution lists as an entry point."""

    distribution: str
    version: str
    module: str

    def __str__(self) -> str:
        return f"plugin {self.module} of {self.distribution} {self.version}"


class Registry(Mapping[str, T]):
    """Entries of one kind by name: ssdet's own, those registered in this process, those of plugins.

    A registered name needs no plugin. Any other name, and listing all names, imports the installed
    plugins first: PluginError where one of them fails and the name is missing or all are listed, so
    that a broken plugin does not affect registered names. Unknown, a KeyError and a ValueError, for
    a name that is not registered.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._modules: dict[str, str] = {}
        _REGISTRIES.append(self)

    def add(self, name: str, entry: T, module: str) -> None:
        """Register an entry of this module; ValueError for a name that is taken."""
        if name in self._entries:
            raise ValueError(
                f"{self.kind} {name!r} is registered twice, by {self._modules[name]} and {module}: "
                "rename one of them"
            )
        self._entries[name], self._modules[name] = entry, module

    def forget(self, module: str) -> None:
        """Remove the entries of a module and its submodules."""
        for name, owner in list(self._modules.items()):
            if owner == module or owner.startswith(f"{module}."):
                del self._entries[name], self._modules[name]

    def available(self, pattern: str = "*") -> list[str]:
        """Sorted names that match a shell pattern, such as `"x3d_*"`; PluginError as above."""
        if pattern in self._entries:
            return [pattern]
        return sorted(name for name in self if fnmatchcase(name, pattern))

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            broken = load()
            if name not in self._entries:
                raise self._missing(name, broken)
        return self._entries[name]

    def _missing(self, name: str, broken: Mapping[Plugin, Exception]) -> Exception:
        if broken:
            return _error(f"no {self.kind} named {name!r} without a broken plugin: ", broken)
        return Unknown(f"no {self.kind} named {name!r}{hint(name, self._entries)} {WAY_OUT}")

    def __iter__(self) -> Iterator[str]:
        if broken := load():
            raise _error(f"cannot list every {self.kind}: ", broken)
        return iter(list(self._entries))

    def __len__(self) -> int:
        return sum(1 for _ in self)


_REGISTRIES: list[Registry] = []
_FAULTS: dict[Plugin, Exception | None] = {}
_LOCK = threading.RLock()


def installed() -> list[Plugin]:
    """Plugins of all installed distributions, imported or not."""
    from importlib.metadata import entry_points  # slow to load, and seldom needed

    found = ((entry.dist, entry.value) for entry in entry_points(group=GROUP))
    return sorted({Plugin(dist.name, dist.version, value) for dist, value in found if dist})


def load() -> dict[Plugin, Exception]:
    """Import the installed plugins, each once; return those that fail, with their errors.

    Entries that a module registered before it failed are removed.
    """
    with _LOCK:
        plugins = installed()
        for plugin in plugins:
            if plugin not in _FAULTS:
                _FAULTS[plugin] = ImportError("it looks up names while it is being imported")
                _FAULTS[plugin] = _fault(plugin)
        return {plugin: fault for plugin in plugins if (fault := _FAULTS[plugin]) is not None}


def _fault(plugin: Plugin) -> Exception | None:
    try:
        import_module(plugin.module)
    except Exception as error:
        for registry in _REGISTRIES:
            registry.forget(plugin.module)
        return error
    return None


def _error(problem: str, broken: Mapping[Plugin, Exception]) -> PluginError:
    faults = "; ".join(f"{p}: {type(fault).__name__}: {fault}" for p, fault in broken.items())
    names = " ".join(plugin.distribution for plugin in broken)
    error = PluginError(
        f"{problem}{faults}. Repair it, or pip uninstall {names}; names of ssdet and of other "
        "plugins still work if they are looked up one by one"
    )
    error.__cause__ = next(iter(broken.values()))
    return error


@contextmanager
def restored() -> Iterator[None]:
    """Undo registrations and imports of plugins of this block at its end, for tests.

    Modules of ssdet whose entries must stay have to be imported before the block.
    """
    faults = dict(_FAULTS)
    before = [(r, dict(r._entries), dict(r._modules)) for r in _REGISTRIES]
    try:
        yield
    finally:
        for registry, entries, modules in before:
            registry._entries, registry._modules = entries, modules
        _FAULTS.clear()
        _FAULTS.update(faults)


def versions() -> dict[str, str]:
    """Version of every distribution whose plugins this process has imported."""
    return {p.distribution: p.version for p, fault in sorted(_FAULTS.items()) if fault is None}


def hint(word: str, names: Iterable[str]) -> str:
    """`: did you mean …?` with similar names if there are any, else all names."""
    words = list(names)
    if close := difflib.get_close_matches(word, words, n=3):
        return f": did you mean {' or '.join(map(repr, close))}?"
    return f": choose from {', '.join(words) or 'none'}."
