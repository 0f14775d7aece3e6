"""Import intvit with the text of one of its files replaced: in memory, no file is touched.

Kernels of modules that the change can reach are compiled anew; those of all others come from Numba's cache.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

KERNELS = Path(__file__).resolve().parent.parent / "intvit" / "kernels"


class _Replaced(SourceFileLoader):
    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self.text = text

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.text, self.path, "exec")


class _Finder(MetaPathFinder):
    def __init__(self, file: str, text: str) -> None:
        self.name, self.path, self.text = module_name(file), KERNELS.parent / file, text

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        loader = _Replaced(fullname, str(self.path), self.text)
        return importlib.util.spec_from_file_location(fullname, self.path, loader=loader)


def module_name(file: str) -> str:
    """`kernels/arith.py` -> `intvit.kernels.arith`; of an `__init__.py` the name of its folder."""
    return "intvit." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def reached(file: str) -> set[str]:
    """Names of the kernel modules whose machine code may hold something of `file`: it, and those that import it.

    Nothing of a border is compiled.
    """
    if file == "kernels/border.py":
        return set()
    imports = {
        module_name(path.relative_to(KERNELS.parent).as_posix()): set(
            re.findall(r"intvit\.kernels(?:\.\w+)+", path.read_text())
        )
        for path in KERNELS.rglob("*.py")
    }
    found = {module_name(file)}
    while more := {name for name, imported in imports.items() if imported & found} - found:
        found |= more
    return found


def install(file: str, text: str) -> None:
    """From now on `file`, for example `kernels/arith.py`, reads `text`. Before the first import of intvit."""
    assert not any(name.partition(".")[0] == "intvit" for name in sys.modules)
    sys.meta_path.insert(0, _Finder(file, text))
    import numba

    anew, njit = reached(file), numba.njit

    def without_cache(*bare: Any, **options: Any) -> Any:
        if bare:  # `@njit` without options, as Numba itself writes it
            return njit(*bare, **options)

        def compiled(function: Callable[..., Any]) -> Any:
            chosen = {**options, "cache": False} if function.__module__ in anew else options
            return njit(**chosen)(function)

        return compiled

    numba.njit = without_cache
