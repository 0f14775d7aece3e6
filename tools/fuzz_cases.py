"""Cases: a command, the files that it reads, what is changed in them, and what must hold afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fuzz_containers import mutate_npy, mutate_npz, mutate_png, mutate_safetensors
from fuzz_hdf5 import mutate_graph, mutate_hdf5
from fuzz_onnx import mutate_onnx
from fuzz_text import STRINGS, mutate_bytes, mutate_json, mutate_toml

FOREIGN = (
    "deit_distilled_old17.onnx", "dinov2_new20.onnx", "dinov2_old13.onnx", "timm_manual_new18.onnx", "timm_manual_old14.onnx",
    "timm_sdpa_new18.onnx", "timm_sdpa_new24.onnx", "timm_sdpa_old14.onnx", "torchvision_new24.onnx", "torchvision_old17.onnx",
    "vit_new20.onnx", "vit_old13.onnx", "dense_new20.onnx --until view_11", "dense_old13.onnx",
)  # fmt: skip
FOLDERS = ("hf_vit", "hf_deit", "hf_deit_distilled", "hf_dinov2", "hf_swin", "hf_shards", "timm_vit/model.safetensors")
WEIGHTS = ("vit.safetensors", "swin.safetensors", "vit.npz --num-heads 2", "ivit.safetensors --num-heads 2", "ivit.npz --num-heads 2")
TORCH = ("ivit.pth --num-heads 2", "vit.bin --num-heads 2")
CHECKPOINTS = ("ivit.safetensors", "ivit.npz", "ivit.pth")
IMAGES = ("images.npy", "images.npy", "floats.npy", "images.npz", "only.npz", "images.h5", "images.h5:test", "images.h5:test/images", "pictures", "classes")
GRAPHS = ("ivit.h5", "ibert.h5", "fqvit.h5", "mixed.h5")
PARTS = ("part_embed.h5", "part_attention.h5", "part_softmax.h5", "part_mlp.h5", "part_gelu.h5", "part_residual.h5")
GOLDEN = ("golden", "golden_small", "golden_part", "golden_part")


@dataclass(frozen=True)
class Command:
    """One way to call the package. `{0}`, `{1}`, ... in `words` are the inputs, each drawn from its seeds."""

    weight: int
    words: str
    inputs: tuple[tuple[str, ...], ...] = ()
    outputs: tuple[str, ...] = ()
    oracle: str = ""
    """What must hold where the command accepts its input: a name of `fuzz_oracles.ORACLES`."""


COMMANDS = {
    "import onnx": Command(8, "import {0} -o m.onnx", (FOREIGN,), ("m.onnx",), "same function"),
    "import own onnx": Command(2, "import {0} -o m.onnx", (("vit.onnx", "swin.onnx"),), ("m.onnx",)),
    "import weights": Command(10, "import {0} -o m.onnx", (WEIGHTS,), ("m.onnx",)),
    "import torch": Command(2, "import {0} -o m.onnx", (TORCH,), ("m.onnx",)),
    "import folder": Command(10, "import {0} -o m.onnx", (FOLDERS,), ("m.onnx",)),
    "doctor": Command(6, "doctor {0}", (CHECKPOINTS,)),
    "record": Command(6, "record {0} {1} -o r.h5 --threads 1 --batch 3", (("vit.onnx",), IMAGES), ("r.h5",)),
    "record again": Command(3, "record {0} {1} -o r.h5 --threads 1", (("vit.onnx",), ("images.npy",)), ("r.h5",), "recording"),
    "lower part": Command(8, "lower {0} --recording {1} -o g.h5", (("part_mlp.onnx",), ("part_recording.h5",)), ("g.h5",), "same graph"),
    "lower": Command(6, "lower {0} --recording {1} -o g.h5", (("vit.onnx",), ("recording.h5",)), ("g.h5",), "same graph"),
    "lower trained": Command(4, "lower {0} -o g.h5", (("ivit.onnx",),), ("g.h5",)),
    "lower recipe": Command(
        6, "lower {0} --recording {1} --recipe {2} -o g.h5", (("vit.onnx",), ("recording.h5",), ("recipe.toml",)), ("g.h5",)
    ),
    "lower mapping": Command(
        6, "lower {0} --recording {1} --mapping {2} -o g.h5", (("vit.onnx",), ("recording.h5",), ("mapping.json",)), ("g.h5",)
    ),
    "lower images": Command(2, "lower {0} --images {1} -o g.h5", (("vit.onnx",), IMAGES), ("g.h5",)),
    "map": Command(3, "map {0} --recording {1} --images {2} -o m.json --threads 1",
                   (("vit.onnx",), ("recording.h5",), ("images.npy",)), ("m.json",)),
    "map live": Command(1, "map {0} --images {1} -o m.json --threads 1", (("vit.onnx",), IMAGES), ("m.json",)),
    "run": Command(6, "run {0} {1} -o l.npz --threads 1", (GRAPHS, ("images.npy",)), ("l.npz",), "same run"),
    "run part": Command(10, "run {0} {1} -o l.npz --threads 1", (PARTS, ("tokens.npy",)), ("l.npz",), "same run"),
    "run trace": Command(2, "run {0} {1} -o l.npz --trace t.h5 --threads 1", (GRAPHS, ("images.npy",)), ("l.npz", "t.h5"), "same run"),
    "run images": Command(16, "run {0} {1} -o l.npz --threads 1", (("head.h5",), IMAGES), ("l.npz",)),
    "run tokens": Command(2, "run {0} {1} -o l.npz --threads 1", (PARTS, ("tokens.npy",)), ("l.npz",)),
    "run swin": Command(2, "run {0} {1} -o l.npz --threads 1", (("swin.h5",), ("gray.npy",)), ("l.npz",), "same run"),
    "run consistent": Command(14, "run {0} {1} -o l.npz --threads 1", ((*GRAPHS, "swin.h5", *PARTS * 3), ("IMAGES OF IT",)), ("l.npz",), "backends agree"),
    "eval": Command(2, "eval {0} {1} --threads 1", (GRAPHS, ("images.npz", "images.h5", "classes"))),
    "eval float": Command(1, "eval {0} {1} --float {2} --threads 1 --json", (GRAPHS, ("images.npz", "classes"), ("vit.onnx",))),
    "golden export": Command(2, "golden export {0} {1} -o v --site softmax --site head", (GRAPHS, ("images.npy",)), ("v",)),
    "golden export part": Command(4, "golden export {0} {1} -o v", (PARTS, ("tokens.npy",)), ("v",)),
    "golden check": Command(14, "golden check {0}", (GOLDEN,), (), "all equal"),
    "trace": Command(5, "@trace {0} blocks.0.mlp.act", (("trace.h5",),), (), "same tensor"),
    "options": Command(6, "", ()),
    "methods": Command(1, "methods", ()),
}
"""Label -> command. The last two read nothing: what is changed there are the options."""


@dataclass
class Case:
    """One input of the fuzzer."""

    label: str
    arguments: list[str]
    oracle: str
    outputs: tuple[str, ...]
    changes: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Inputs (names below the folder of inputs) that were changed."""
    environment: dict[str, str] = field(default_factory=dict)
    real: bool = False
    plain: list[str] = field(default_factory=list)
    """The same call on the unchanged seeds, from the folder of outputs."""
    options_changed: bool = False


def images_of(graph: str) -> str:
    return "gray.npy" if "swin" in graph else "tokens.npy" if "part" in graph else "images.npy"


def draw_case(rng: Random, seeds: Path, inputs: Path, output: Path, real_share: float) -> Case:
    """Draw a case and write its inputs below `inputs`; the command will run in `output`."""
    label = rng.choices(list(COMMANDS), [command.weight for command in COMMANDS.values()])[0]
    command = COMMANDS[label]
    if label == "options":
        source = rng.choice([c for c in COMMANDS.values() if c.inputs and not c.words.startswith("@")])
        command = Command(0, source.words, source.inputs, source.outputs)
    case = Case(label, [], command.oracle, command.outputs)
    slots, plain, extra = [], [], []
    for choices in command.inputs:
        seed, *options = rng.choice(choices).split(" ") if choices != ("IMAGES OF IT",) else [images_of(slots[0])]
        name, colon, group = seed.partition(":")
        top = name.split("/")[0]
        if not (seeds / top).exists():  # PyTorch files where there is no PyTorch
            seed = name = top = "ivit.npz"
        if not (inputs / top).exists():
            copy = shutil.copytree if (seeds / top).is_dir() else shutil.copy
            copy(seeds / top, inputs / top)
        slots.append(f"../in/{name}{colon}{group}")
        plain.append(f"{seeds / name}{colon}{group}")
        extra += options
    for place, into in ((slots, case.arguments), (plain, case.plain)):
        into += [word.format(*place) for word in command.words.split()] + extra
    if label == "options" or label == "methods" or rng.random() < 0.04:
        case.options_changed = True
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            case.changes.append(change_options(rng, case.arguments))
    if label == "run consistent":
        name = slots[0].removeprefix("../in/")
        case.changes.append(safely(rng, mutate_graph, inputs / name))
        case.changed.append(name)
    elif slots and not case.options_changed:
        for _ in range(rng.choice([1, 1, 1, 1, 2, 2, 3, 5])):
            name = rng.choice(slots).removeprefix("../in/").partition(":")[0]
            if name.startswith("timm_vit"):
                name = "timm_vit"
            case.changes.append(change_path(rng, inputs / name, seeds))
            case.changed.append(name)
    if label == "record again":
        leave_partial(rng, seeds, output, case)
    elif command.outputs and rng.random() < 0.1:  # something stands there already
        (output / command.outputs[0]).write_bytes(b"older")
        case.changes.append("older output")
    case.real = rng.random() < real_share and not any("\0" in word for word in case.arguments) and not case.arguments[0].startswith("@")
    if case.real and rng.random() < 0.5:
        case.environment = {rng.choice(list(ENVIRONMENT)): ""}
        for name in case.environment:
            case.environment[name] = rng.choice(ENVIRONMENT[name])
        case.changes.append(f"environment {case.environment}")
    return case


ENVIRONMENT = {
    "INTVIT_GEMM": ("", "avx2", "vnni", "generic", "x", "AVX2", "\u00e9", "x" * 5000, "../x"),
    "PYTHONIOENCODING": ("ascii", "latin-1", "utf-16"),
    "LC_ALL": ("C", "POSIX", "xx_XX"),
    "COLUMNS": ("0", "1", "-1", "x", "99999"),
    "TERM": ("dumb", "", "xterm"),
    "HOME": ("", "/", "/nonexistent"),
    "PYTHONOPTIMIZE": ("1", "2"),
    "PYTHONWARNINGS": ("error", "default"),
    "NO_COLOR": ("1",),
    "FORCE_COLOR": ("1",),
}


def leave_partial(rng: Random, seeds: Path, output: Path, case: Case) -> None:
    """A recording that was interrupted, whole or damaged, for `record` to go on with."""
    import h5py

    path = output / "r.h5.partial"
    shutil.copy(seeds / "partial.h5" if (seeds / "partial.h5").exists() else seeds / "recording.h5", path)
    with h5py.File(path, "r+") as file:
        if "n_done" in file.attrs:
            file.attrs["n_done"] = rng.choice([0, 1, 2, 3, 4, 5, -1])
    if rng.random() < 0.8:
        case.changes.append("partial: " + change_path(rng, path, seeds))


# ------------------------------------------------------------------------------------ changing files


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
        others = sorted(p for p in seeds.iterdir() if p.is_file() and p.suffix == path.suffix and p.stat().st_size < 300_000)
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
    name = rng.choice(["change"] * 14 + ["delete", "copy", "rename", "swap", "replace", "folder", "add", "swap folders"])
    where = path.relative_to(folder)
    if name == "change":
        return f"{where}: {change_path(rng, path, seeds)}"
    if name == "delete":
        path.unlink()
    elif name == "copy":
        other.write_bytes(path.read_bytes())
        where = Path(f"{where} to {other.relative_to(folder)}")
    elif name == "rename":
        new = rng.choice([path.name + ".bak", path.name.upper(), "x" + path.suffix, path.stem, path.stem + ".png", "index.json", "\udcff.png", "a\nb.png", "[red].png"])
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
        new = path.with_name(rng.choice(["extra.json", "case.json", "extra.npy", ".hidden", "config.json", "preprocessor_config.json", "a.png", "z.tiff", "labels.txt"]))
        new.write_bytes(rng.choice([b"", b"{}", b"[]", path.read_bytes()]))
        where = new.relative_to(folder)
    else:
        folders = sorted(p for p in folder.rglob("*") if p.is_dir())
        if name == "folder" or len(folders) < 2:
            place = rng.choice([*folders, folder])
            target = place / rng.choice(["extra", "image1", "softmax", "z" * 200])
            shutil.copytree(path.parent, target, dirs_exist_ok=True) if path.parent not in (target, *target.parents) else target.mkdir(exist_ok=True)
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
    name = rng.choice(["other kind", "other kind", "link", "dangling", "loop", "fifo", "folder", "empty", "nothing", "outside", "device", "socket", "unreadable"])
    others = sorted(p for p in seeds.iterdir() if p.is_file() and p.stat().st_size < 300_000)
    content = path.read_bytes()
    path.unlink()
    if name == "other kind":
        other = rng.choice(others)
        shutil.copy(other, path)
        name = f"is {other.name}"
    elif name == "link":
        path.with_name("linked" + path.suffix).write_bytes(content)
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
        target = path.parents[len(path.parts) - 1 - path.parts.index("in")] / "outside" / f"copy{path.suffix}"
        path.symlink_to(os.path.relpath(target, path.parent))
    elif name == "device":
        path.symlink_to(rng.choice(["/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/proc/self/environ"]))
    elif name == "socket":
        import socket

        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        except OSError:
            path.mkdir()
    elif name == "unreadable":
        path.write_bytes(content)
        path.chmod(0)
    return name


# ---------------------------------------------------------------------------------- changing options

WORDS = (
    "", " ", "-", "--", "-1", "0", "1", "2", "3", "7", "100", "1000000000", "99999999999999999999", "-99999999999999999999", "1e3", "0x8", "8.0", "1_0", "+3",
    "\u0663", "nan", "inf", "-inf", "1e-320", "1e400", "-0", "0.5", "1,2", "1,", ",", "2,2", "8,8", "1,2,3,4,5", "true", "None", "*", "?", "[", "[!", "[]a]",
    "*" * 40 + "x", "**/*", "a\0b", "\udcff", "a\nb", "x" * 300, "x" * 5000, ".", "..", "/", "../in", "../in/ivit.h5", "../in/nothere.h5", "../in/recipe.toml",
    "../in/images.npy", "m.onnx", "l.npz", "missing/l.npz", "../in/ivit.h5/x", "/dev/null/x", "fashion-mnist:test", "fashion-mnist:", "fashion-mnist:x",
    "fashion-mnist:test/images", "fashion-mnist:../x", "cifar:test", "../in/images.h5:", "../in/images.h5:/", "../in/images.h5:nope", "../in/images.h5:..",
    "../in/images.h5:test", "ivit", "ibert", "fqvit", "ivit,ivit", "ivit,", ",ivit", "softmax", "spec", "kernel", "minmax", "percentile", "mse", "sqnr_output",
    "/proc/self/environ", "/dev/zero", "/dev/full", "[red]x", "\x1b[31m", "%s", "~", "$HOME", "blocks.0.norm1", "logits",
)  # fmt: skip
INPUT_ONLY = ("/", ".", "..", "../in", "/proc/self/environ", "/dev/zero", "/dev/full", "~")


def known_options() -> dict[str, list[tuple[str, bool]]]:
    """Command -> (option, takes a value), as the command line itself declares them."""
    import typer

    from intvit.cli import app

    found: dict[str, list[tuple[str, bool]]] = {}

    def visit(command: Any, path: str) -> None:
        for name, child in getattr(command, "commands", {}).items():
            visit(child, f"{path} {name}".strip())
        found[path] = [(p.opts[0], not getattr(p, "is_flag", False)) for p in command.params if p.opts[0].startswith("-")]

    visit(typer.main.get_command(app), "")
    return found


def change_options(rng: Random, arguments: list[str]) -> str:
    """An option more, of any value; or a word of the call dropped, doubled or exchanged."""
    known = known_options()
    path = " ".join(arguments[:2]) if " ".join(arguments[:2]) in known else arguments[0] if arguments else ""
    options = known.get(path, [])
    kind = rng.choice(["option"] * 8 + ["word", "word", "drop", "double", "command", "order"])
    if kind == "option" and options:
        option, takes_value = rng.choice(options)
        if option in ("-o", "--output", "--trace"):
            value = rng.choice([w for w in WORDS if w not in INPUT_ONLY])
        else:
            value = rng.choice(WORDS if rng.random() < 0.7 else STRINGS)
        arguments += [option, value] if takes_value else [option]
        return f"{option} {value[:40]!a}" if takes_value else option
    at = rng.randrange(len(arguments)) if arguments else 0
    if kind == "word" and arguments:
        output = at and arguments[at - 1] in ("-o", "--trace")
        arguments[at] = rng.choice([w for w in WORDS if w not in INPUT_ONLY] if output else WORDS)
        return f"word {at} {arguments[at][:40]!a}"
    if kind == "drop" and arguments:
        return f"without {arguments.pop(at)!a}"
    if kind == "double" and arguments:
        arguments.insert(at, arguments[at])
    elif kind == "command":
        arguments[:1] = [rng.choice(["import", "lower", "golden", "run", "nope", "", "--version", "--help", "-h", "methods", "eval", "--install-completion"])]
        if arguments[0] == "--install-completion":
            arguments[0] = "--show-completion"
    else:
        rng.shuffle(arguments)
    return kind
