"""Cases: a command, the files that it reads, what is changed in them, and what must hold afterwards."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fuzz_change import change_folder, change_path, safely
from fuzz_graph import mutate_graph
from fuzz_options import ENVIRONMENT, change_options

FOREIGN = (
    "deit_distilled_old17.onnx", "dinov2_new20.onnx", "dinov2_old13.onnx", "timm_manual_new18.onnx",
    "timm_manual_old14.onnx",
    "timm_sdpa_new18.onnx", "timm_sdpa_new24.onnx", "timm_sdpa_old14.onnx", "torchvision_new24.onnx",
    "torchvision_old17.onnx",
    "vit_new20.onnx", "vit_old13.onnx", "dense_new20.onnx --until view_11", "dense_old13.onnx",
)  # fmt: skip
FOLDERS = ("hf_vit", "hf_deit", "hf_deit_distilled", "hf_dinov2", "hf_swin", "hf_shards", "timm_vit/model.safetensors")
WEIGHTS = (
    "vit.safetensors",
    "swin.safetensors",
    "vit.npz --num-heads 2",
    "ivit.safetensors --num-heads 2",
    "ivit.npz --num-heads 2",
)
TORCH = ("ivit.pth --num-heads 2", "vit.bin --num-heads 2")
CHECKPOINTS = ("ivit.safetensors", "ivit.npz", "ivit.pth")
IMAGES = (
    "images.npy",
    "images.npy",
    "floats.npy",
    "images.npz",
    "only.npz",
    "images.h5",
    "images.h5:test",
    "images.h5:test/images",
    "pictures",
    "classes",
)
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
    "record again": Command(
        4, "record {0} {1} -o r.h5 --threads 1", (("vit.onnx",), ("images.npy",)), ("r.h5",), "recording"
    ),
    "lower part": Command(
        8, "lower {0} --recording {1} -o g.h5", (("part_mlp.onnx",), ("part_recording.h5",)), ("g.h5",), "same graph"
    ),
    "lower": Command(
        6, "lower {0} --recording {1} -o g.h5", (("vit.onnx",), ("recording.h5",)), ("g.h5",), "same graph"
    ),
    "lower trained": Command(4, "lower {0} -o g.h5", (("ivit.onnx",),), ("g.h5",)),
    "lower recipe": Command(
        6,
        "lower {0} --recording {1} --recipe {2} -o g.h5",
        (("vit.onnx",), ("recording.h5",), ("recipe.toml",)),
        ("g.h5",),
    ),
    "lower mapping": Command(
        6,
        "lower {0} --recording {1} --mapping {2} -o g.h5",
        (("vit.onnx",), ("recording.h5",), ("mapping.json",)),
        ("g.h5",),
    ),
    "lower images": Command(2, "lower {0} --images {1} -o g.h5", (("vit.onnx",), IMAGES), ("g.h5",)),
    "map": Command(
        3,
        "map {0} --recording {1} --images {2} -o m.json --threads 1",
        (("vit.onnx",), ("recording.h5",), ("images.npy",)),
        ("m.json",),
    ),
    "map live": Command(1, "map {0} --images {1} -o m.json --threads 1", (("vit.onnx",), IMAGES), ("m.json",)),
    "run": Command(6, "run {0} {1} -o l.npz --threads 1", (GRAPHS, ("images.npy",)), ("l.npz",), "same run"),
    "run part": Command(10, "run {0} {1} -o l.npz --threads 1", (PARTS, ("tokens.npy",)), ("l.npz",), "same run"),
    "run trace": Command(
        2, "run {0} {1} -o l.npz --trace t.h5 --threads 1", (GRAPHS, ("images.npy",)), ("l.npz", "t.h5"), "same run"
    ),
    "run images": Command(16, "run {0} {1} -o l.npz --threads 1", (("head.h5",), IMAGES), ("l.npz",)),
    "run tokens": Command(2, "run {0} {1} -o l.npz --threads 1", (PARTS, ("tokens.npy",)), ("l.npz",)),
    "run swin": Command(2, "run {0} {1} -o l.npz --threads 1", (("swin.h5",), ("gray.npy",)), ("l.npz",), "same run"),
    "run consistent": Command(
        14,
        "run {0} {1} -o l.npz --threads 1",
        ((*GRAPHS, "swin.h5", *PARTS * 3), ("IMAGES OF IT",)),
        ("l.npz",),
        "backends agree",
    ),
    "eval": Command(2, "eval {0} {1} --threads 1", (GRAPHS, ("images.npz", "images.h5", "classes"))),
    "eval float": Command(
        1, "eval {0} {1} --float {2} --threads 1 --json", (GRAPHS, ("images.npz", "classes"), ("vit.onnx",))
    ),
    "golden export": Command(
        2, "golden export {0} {1} -o v --site softmax --site head", (GRAPHS, ("images.npy",)), ("v",)
    ),
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
    case.real = (
        rng.random() < real_share
        and not any("\0" in word for word in case.arguments)
        and not case.arguments[0].startswith("@")
    )
    if case.real and rng.random() < 0.5:
        case.environment = {rng.choice(list(ENVIRONMENT)): ""}
        for name in case.environment:
            case.environment[name] = rng.choice(ENVIRONMENT[name])
        case.changes.append(f"environment {case.environment}")
    return case


def leave_partial(rng: Random, seeds: Path, output: Path, case: Case) -> None:
    """What an interrupted recording left, whole or damaged, for `record` to go on with."""
    for path in sorted((seeds / "interrupted").iterdir()):
        shutil.copy(path, output / path.name)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        case.changes.append("left: " + change_folder(rng, output, seeds))
