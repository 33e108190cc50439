"""Modules that one file carries as text, importable below a name of their own."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import CodeType


class CarriedModules(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds and loads the modules of `sources`: dotted names below `root` to their text."""

    def __init__(self, root: str, sources: dict[str, str]):
        self.sources = {root: ""} | {f"{root}.{name}": text for name, text in sources.items()}

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname not in self.sources:
            return None
        return importlib.util.spec_from_loader(
            fullname, self, is_package=self.is_package(fullname)
        )

    def is_package(self, fullname: str) -> bool:
        return any(name.startswith(f"{fullname}.") for name in self.sources)

    def get_source(self, fullname: str) -> str:
        return self.sources[fullname]

    def get_code(self, fullname: str) -> CodeType:
        path = f"{fullname.replace('.', '/')}.py"  # as tracebacks show it
        return self.source_to_code(self.get_source(fullname), path)


def carry(root: str, sources: dict[str, str]) -> None:
    """Makes `sources` importable below `root`; where they are already, nothing changes."""
    if root not in sys.modules:
        sys.meta_path.insert(0, CarriedModules(root, sources))
        importlib.import_module(root)
