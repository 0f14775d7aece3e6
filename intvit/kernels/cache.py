"""Compiled functions, kept on disk where that is possible; where it is not, everything still runs, compiled anew."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numba

from intvit.errors import reason


@cache
def cache_folder() -> str | None:
    """Where compiled kernels are kept: a folder named after the text of all of them; None if none can be written.

    Numba looks at the file of a function only, not at those of the functions it calls: an edited callee in another file
    would leave stale machine code in use. One digest over all kernel files, those in subfolders too, makes that
    impossible.
    """
    here = Path(__file__).parent
    digest = _digest(here)
    refused = ""
    for folder in _candidates(here):
        try:
            (folder / digest).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder / digest):
                return str(folder / digest)
        except OSError as error:
            refused = f"{folder}: {reason(error)}"
    text = f"compiled kernels cannot be kept ({refused}): every run compiles anew; NUMBA_CACHE_DIR can name a folder"
    warnings.warn(text, RuntimeWarning, stacklevel=2)
    return None


def _digest(here: Path) -> str:
    """A name for the text of every kernel file in `here` and below it."""
    texts = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        texts.update(f"{path.relative_to(here).as_posix()}\n".encode() + path.read_bytes())
    return texts.hexdigest()[:16]


def _candidates(here: Path) -> Iterator[Path]:
    if os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(os.environ["NUMBA_CACHE_DIR"])
        return
    yield here / "__pycache__"
    try:
        yield Path.home() / ".cache" / "intvit"
    except RuntimeError:  # no home at all
        return


class _Forgiving:
    """Numba's cache of one function: what cannot be read is compiled, what cannot be written is not kept."""

    def __init__(self, kept: Any) -> None:
        self._kept = kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept, name)

    def load_overload(self, *arguments: Any) -> Any:
        try:
            return self._kept.load_overload(*arguments)
        except Exception:  # whatever a damaged file makes of itself
            self._kept.disable()
            return None

    def save_overload(self, *arguments: Any) -> None:
        try:
            self._kept.save_overload(*arguments)
        except OSError:
            self._kept.disable()


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """njit, cached on disk, without the GIL: the engine runs kernels on threads, they never start their own.

    Numba picks the folder when a function is decorated: ours for that moment, the user's after it.
    """
    folder = cache_folder()
    if folder is None:
        return numba.njit(nogil=True, **options)(function)
    before = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    numba.config.CACHE_DIR = folder  # type: ignore[attr-defined]
    try:
        result: Any = numba.njit(cache=True, nogil=True, **options)(function)
    finally:
        numba.config.CACHE_DIR = before  # type: ignore[attr-defined]
    result._cache = _Forgiving(result._cache)
    return result
