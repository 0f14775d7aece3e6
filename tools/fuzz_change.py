"""Changes of one file, of a folder, and of what stands under a name at all."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random

from fuzz_arrays import mutate_npy, mutate_npz
from fuzz_formats import mutate_png, mutate_safetensors
from fuzz_hdf5 import mutate_hdf5
from fuzz_onnx import mutate_onnx
from fuzz_text import mutate_bytes, mutate_json, mutate_toml


def safely(rng: Random, mutate: Callable[[Random, Path], str], path: Path) -> str:
    """`mutate` in place; where it fails, its half-done work or else a change of bytes."""
    try:
        return mutate(rng, path)
    except Exception as error:
        if not path.is_file():
            return f"{mutate.__name__} failed: {type(error).__name__}"
        data, what = mutate_bytes(rng, path.read_bytes())
        path.write_bytes(data)
        return f"{mutate.__name__} failed ({type(error).__name__}), {what}"


def on_bytes(mutate: Callable[[Random, bytes], tuple[bytes, str]]) -> Callable[[Random, Path], str]:
    def change(rng: Random, path: Path) -> str:
        data, what = mutate(rng, path.read_bytes())
        path.write_bytes(data)
        return what

    return change


BY_SUFFIX: dict[str, Callable[[Random, Path], str]] = {
    ".h5": mutate_hdf5,
    ".partial": mutate_hdf5,
    ".onnx": mutate_onnx,
    ".json": on_bytes(mutate_json),
    ".toml": on_bytes(mutate_toml),
    ".npy": on_bytes(mutate_npy),
    ".npz": on_bytes(mutate_npz),
    ".pth": on_bytes(mutate_npz),
    ".bin": on_bytes(mutate_npz),
    ".safetensors": on_bytes(mutate_safetensors),
    ".png": on_bytes(mutate_png),
}


def change_path(rng: Random, path: Path, seeds: Path) -> str:
    """Change a file, or something in a folder; or what stands there altogether."""
    if path.is_dir() and not path.is_symlink():
        try:
            return change_folder(rng, path, seeds)
        except OSError as error:
            return f"folder: {error.strerror or error}"  # half done is a change too
    if path.is_symlink() or not path.is_file():
        return "nothing there"
    chance = rng.random()
    if chance < 0.02:
        return f"{path.name}: {replace_path(rng, path, seeds)}"
    if chance < 0.25:
        others = sorted(
            p for p in seeds.iterdir() if p.is_file() and p.suffix == path.suffix and p.stat().st_size < 300_000
        )
        other = rng.choice(others).read_bytes() if others else b""
        data, what = mutate_bytes(rng, path.read_bytes(), other)
        path.write_bytes(data)
        return f"{path.name}: {what}"
    return f"{path.name}: {safely(rng, BY_SUFFIX.get(path.suffix.lower(), on_bytes(mutate_bytes)), path)}"


def change_folder(rng: Random, folder: Path, seeds: Path) -> str:
    """A file of the folder changed (mostly), gone, doubled, renamed, exchanged, or made into something else."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    if not files:
        return "empty folder"
    if rng.random() < 0.4:  # few texts decide over many arrays
        files = [p for p in files if p.suffix == ".json"] or files
    path, other = rng.choice(files), rng.choice(files)
    name = rng.choice(
        ["change"] * 14 + ["delete", "copy", "rename", "swap", "replace", "folder", "add", "swap folders"]
    )
    where = path.relative_to(folder)
    if name == "change":
        return f"{where}: {change_path(rng, path, seeds)}"
    if name == "delete":
        path.unlink()
    elif name == "copy":
        other.write_bytes(path.read_bytes())
        where = Path(f"{where} to {other.relative_to(folder)}")
    elif name == "rename":
        new = rng.choice(
            [
                path.name + ".bak",
                path.name.upper(),
                "x" + path.suffix,
                path.stem,
                path.stem + ".png",
                "index.json",
                "\udcff.png",
                "a\nb.png",
                "[red].png",
            ]
        )
        path.rename(path.with_name(new))
        where = Path(f"{where} to {new!a}")
    elif name == "swap":
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)
        where = Path(f"{where} and {other.relative_to(folder)}")
    elif name == "replace":
        return f"{where}: {replace_path(rng, path, seeds)}"
    elif name == "add":
        new = path.with_name(
            rng.choice(
                [
                    "extra.json",
                    "case.json",
                    "extra.npy",
                    ".hidden",
                    "config.json",
                    "preprocessor_config.json",
                    "a.png",
                    "z.tiff",
                    "labels.txt",
                ]
            )
        )
        if new.exists() and not new.is_file():  # a pipe or folder of an earlier change
            return f"add {new.name}, which is there"
        content = rng.choice([b"", b"{}", b"[]", path.read_bytes()])
        new.unlink(missing_ok=True)
        new.write_bytes(content)
        where = new.relative_to(folder)
    else:
        folders = sorted(p for p in folder.rglob("*") if p.is_dir())
        if name == "folder" or len(folders) < 2:
            place = rng.choice([*folders, folder])
            target = place / rng.choice(["extra", "image1", "softmax", "z" * 200])
            shutil.copytree(path.parent, target, dirs_exist_ok=True) if path.parent not in (
                target,
                *target.parents,
            ) else target.mkdir(exist_ok=True)
            where = target.relative_to(folder)
        else:
            first, second = rng.sample([p for p in folders if p.parent == folders[0].parent] * 2, 2)
            if first != second:
                kept = first.with_name("kept")
                first.rename(kept)
                second.rename(first)
                kept.rename(second)
            where = Path(f"{first.name} and {second.name}")
    return f"{name} {where}"


def replace_path(rng: Random, path: Path, seeds: Path) -> str:
    """Something else under the same name: another kind of file, a link, a pipe, a folder, a device, nothing."""
    name = rng.choice(
        [
            "other kind",
            "other kind",
            "link",
            "dangling",
            "loop",
            "fifo",
            "folder",
            "empty",
            "nothing",
            "outside",
            "device",
            "socket",
            "unreadable",
        ]
    )
    if path.parent.name == "in" and name == "outside":
        name = "nothing"  # a link that the user gives by name is as good as what it leads to
    others = sorted(p for p in seeds.iterdir() if p.is_file() and p.suffix != path.suffix
                    and p.stat().st_size < 300_000)  # fmt: skip
    content = path.read_bytes()
    path.unlink()
    if name == "other kind":
        other = rng.choice(others)
        shutil.copy(other, path)
        name = f"is {other.name}"
    elif name == "link":
        linked = path.with_name("linked" + path.suffix)
        if not linked.is_dir():
            linked.unlink(missing_ok=True)
            linked.write_bytes(content)
        path.symlink_to("linked" + path.suffix)
    elif name == "dangling":
        path.symlink_to("not_there")
    elif name == "loop":
        path.symlink_to(path.name)
    elif name == "fifo":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "outside":
        base = next(parent for parent in path.parents if parent.name in ("in", "out")).parent
        target = base / "outside" / f"copy{path.suffix}"
        path.symlink_to(os.path.relpath(target, path.parent))
    elif name == "device":
        path.symlink_to(rng.choice(["/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/proc/self/environ"]))
    elif name == "socket":
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        except OSError:
            path.mkdir()
    elif name == "unreadable":
        path.write_bytes(content)
        path.chmod(0)
    return name
