"""Files and folders that appear whole or not at all, names safe as file names, and folders that hold no links.

What is written stands beside its goal as `<name>.partial` until it is complete and on disk. One writer at a time: a
lock on `<name>.lock`, which dies with its process; what a killed writer left behind, the next one removes.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from intvit.errors import IntvitError, reading, reason

try:
    import fcntl
except ImportError:  # not on Windows: there the last writer wins
    fcntl = None  # type: ignore[assignment]

PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-.")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d|index\.json)(\..*)?|.*\.(partial|lock)", re.DOTALL)
"""Names that mean something else to a file system, or to a folder that this package writes."""
LONGEST_NAME = 200
NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def safe_name(name: str) -> str:
    """`name` as one component of a path, on every file system; a `safe_key` that is not too long for one."""
    text = safe_key(name)
    if len(text) > LONGEST_NAME:
        raise IntvitError(f"{name[:40]}...: name must fit {LONGEST_NAME} characters of a file name, not {len(text)}")
    return text


def safe_key(name: str) -> str:
    """`name` as one key of an HDF5 file, of any length; `plain_name` is the inverse.

    Lower-case letters, digits and `_ - .` stand for themselves, every other byte of UTF-8 is `%` and two hex digits: no
    separators, no NUL, nothing that folds case, no `.`, `..` or name with a meaning of its own.

    >>> safe_key("blocks.0.attn.qkv"), safe_key("../MatMul"), plain_name(safe_key("../MatMul"))
    ('blocks.0.attn.qkv', '%2e.%2f%4dat%4dul', '../MatMul')
    """
    text = "".join(chr(b) if chr(b) in PLAIN else f"%{b:02x}" for b in name.encode("utf-8", "surrogatepass"))
    if not text:
        return "%"
    if text.startswith(".") or RESERVED.fullmatch(text):
        text = f"%{ord(text[0]):02x}{text[1:]}"
    return f"{text[:-1]}%2e" if text.endswith(".") else text


def plain_name(text: str) -> str:
    """The name that `safe_key` made `text` of; IntvitError if it made it of none."""
    try:
        parts = re.split(r"%([0-9a-f]{2})", "" if text == "%" else text)
        encoded = b"".join(bytes.fromhex(p) if i % 2 else p.encode("ascii") for i, p in enumerate(parts))
        name = encoded.decode("utf-8", "surrogatepass")
    except ValueError:
        name = ""
    if safe_key(name) != text:
        raise IntvitError(f"{text!r}: must be a name as intvit writes it")
    return name


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only writer of `path`; IntvitError if another process is."""
    lock = path.with_name(path.name + ".lock")
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
        try:
            if fcntl is not None:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise IntvitError(f"{path}: must have one writer at a time, not another process beside") from None
            if _is(handle, lock):
                break
            os.close(handle)  # its owner removed it between our two calls
        except BaseException:
            os.close(handle)
            raise
    try:
        yield
    finally:
        if fcntl is None:
            os.close(handle)
        lock.unlink(missing_ok=True)
        if fcntl is not None:
            os.close(handle)


def _is(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """The border of a writer: a full disk, a read-only folder, a missing one become one line."""
    try:
        yield
    except OSError as error:
        raise IntvitError(f"{path}: cannot be written: {reason(error)}") from None


def remove(path: Path) -> None:
    """Remove what is there, a whole folder too; a link itself and not what it names."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(partial: Path, path: Path) -> None:
    """Let `partial`, which is on disk, become `path`."""
    os.replace(partial, path)
    if os.name == "posix":
        sync(path.parent)


def named(path: str | Path) -> Path:
    """A path that ends in a name; not "", "." or "/"."""
    if not Path(path).name or Path(path).name == ".." or "\0" in str(path):
        raise IntvitError(f"{str(path)!r}: must name what to write")
    return Path(path)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield the path to write to; it becomes `path` when the block ends well, and is gone otherwise.

    An older file at `path` stays as it is until then.
    """
    path = named(path)
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        if path.is_dir():
            raise IntvitError(f"{path}: must be a file to write, not a folder")
        with locked(path):
            try:
                remove(partial)
                yield partial
                sync(partial)
                publish(partial, path)
            finally:
                remove(partial)


@contextmanager
def whole_folder(path: str | Path, *, resume: bool = False) -> Iterator[Path]:
    """Yield a new folder to fill; it becomes `path`, which must not exist, when the block ends well.

    resume: what a block that was ended left is yielded again, and stays if this one is ended too.
    """
    path = named(path)
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            if path.exists() or path.is_symlink():
                raise IntvitError(f"{path}: must not exist yet")
            try:
                if not resume or partial.is_symlink() or not partial.is_dir():
                    remove(partial)
                    partial.mkdir()
                yield partial
                for folder, _, names in os.walk(partial):
                    for name in names:
                        sync(Path(folder, name))
                    sync(Path(folder))
                publish(partial, path)
            finally:
                if not resume:
                    remove(partial)


def regular(path: str | Path) -> Path:
    """`path` if it is a file with content of its own; no folder, pipe, socket or device, on which a read may hang."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise IntvitError(f"{path}: no such file" if missing else f"{path}: cannot be read: {reason(error)}") from None
    if not stat.S_ISREG(mode):
        raise IntvitError(f"{path}: must be a regular file, not a folder, pipe or device")
    return path


MOST_TEXT = 64 * 2**20


def read_text(path: str | Path) -> str:
    """A text file of at most 64 MiB, UTF-8."""
    path = regular(path)
    with reading(path, "readable UTF-8 text"):
        if path.stat().st_size > MOST_TEXT:
            raise IntvitError(f"{path}: must be at most {MOST_TEXT} bytes of text, not {path.stat().st_size}")
        return path.read_text(encoding="utf-8")


def inside(folder: Path, path: Path) -> Path:
    """`path` if it is below `folder` and reached without a symbolic link; IntvitError otherwise."""
    try:
        parts = path.relative_to(folder).parts
    except ValueError:
        parts = ("..",)
    at = folder
    for part in parts:
        at = at / part
        if part == ".." or at.is_symlink():
            raise IntvitError(f"{path}: must lie in {folder}, without links out of it")
    return path
