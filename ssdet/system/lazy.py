"""Packages that import their public names on first use."""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any


class LazyPackage(ModuleType):
    """A package that imports its public names on first use (PEP 562).

    A submodule with the name of a public function (`ssdet.evaluation.average_precision`) does not
    replace the function when it is imported.
    """

    modules: Mapping[str, str]
    """Module by public name."""

    def __getattr__(self, name: str) -> Any:
        modules = vars(self).get("modules", {})
        if name not in modules:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name]), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in self.modules):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *self.modules})


def attach(package: str, names: Mapping[str, Sequence[str]]) -> None:
    """Make names of modules public names of a package (`__all__`), imported on first use. Called by
    the package's `__init__`.

    names: public names by module. For type checkers the package imports them as well, under
    `TYPE_CHECKING`.
    """
    module = sys.modules[package]
    modules = {name: path for path, own in names.items() for name in own}
    vars(module).update(modules=modules, __all__=sorted(modules))
    module.__class__ = LazyPackage
