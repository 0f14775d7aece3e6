"""Cases: a command, the files that it reads, what is changed in them, and what must hold afterwards."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random

from fuzz_change import change_folder, change_path, safely
from fuzz_consistent import mutate_golden, mutate_recording, mutate_trace
from fuzz_graph import mutate_graph
from fuzz_options import ENVIRONMENT, change_options

Mutate = Callable[[Random, Path], str]
SEEDS = {
    "foreign": (
        "deit_distilled_old17.onnx", "dinov2_new20.onnx", "dinov2_old13.onnx", "timm_manual_new18.onnx",
        "timm_manual_old14.onnx", "timm_sdpa_new18.onnx", "timm_sdpa_new24.onnx", "timm_sdpa_old14.onnx",
        "torchvision_new24.onnx", "torchvision_old17.onnx", "vit_new20.onnx", "vit_old13.onnx",
        "dense_new20.onnx --until view_11", "dense_old13.onnx",
    ),
    "own": ("vit.onnx", "swin.onnx", "part_attention.onnx"),
    "weights": ("vit.safetensors", "swin.safetensors", "vit.npz --num-heads 2", "ivit.safetensors --num-heads 2",
                "ivit.npz --num-heads 2"),
    "torch": ("ivit.pth --num-heads 2", "vit.bin --num-heads 2"),
    "folder": ("hf_vit", "hf_deit", "hf_deit_distilled", "hf_dinov2", "hf_swin", "hf_shards", "timm_vit",
               "timm_vit/model.safetensors"),
    "checkpoint": ("ivit.safetensors", "ivit.npz", "ivit.pth"),
    "images": ("images.npy", "images.npy", "floats.npy", "images.npz", "only.npz", "images.h5", "images.h5:test",
               "images.h5:test/images", "pictures", "classes"),
    "labelled": ("images.npz", "images.h5", "classes"),
    "whole": ("ivit.h5", "ibert.h5", "fqvit.h5", "mixed.h5"),
    "part": ("part_embed.h5", "part_attention.h5", "part_softmax.h5", "part_mlp.h5", "part_gelu.h5",
             "part_residual.h5"),
    "any_graph": ("ivit.h5", "ibert.h5", "fqvit.h5", "mixed.h5", "swin.h5") + 3 * (
        "part_embed.h5", "part_attention.h5", "part_softmax.h5", "part_mlp.h5", "part_gelu.h5", "part_residual.h5"),
    "golden": ("golden", "golden_small", "golden_part", "golden_part", "golden_part", "golden_part"),
}  # fmt: skip
"""Groups of seed files, one of which is drawn; an option may follow. Every other name is a seed file itself."""


@dataclass(frozen=True)
class Command:
    """One way to call the package: how often, its words, and what must hold where it accepts its input.

    `{...}` in `words` is an input, of a group of SEEDS or by name; `{of_it}` the images of the graph before it. What
    stands behind `-o` and `--trace` is an output. `oracle` is a name of `fuzz_oracles.ORACLES`.
    """

    weight: int
    words: str
    oracle: str = ""
    mutate: Mutate | None = None
    """Replaces the usual changes; of the input of this number."""
    mutated: int = 0

    @property
    def outputs(self) -> tuple[str, ...]:
        words = self.words.split()
        return tuple(word for before, word in pairwise(words) if before in ("-o", "--trace"))


COMMANDS = {
    "import onnx": Command(8, "import {foreign} -o m.onnx", "same function"),
    "import own onnx": Command(2, "import {own} -o m.onnx"),
    "import weights": Command(10, "import {weights} -o m.onnx"),
    "import torch": Command(2, "import {torch} -o m.onnx"),
    "import folder": Command(10, "import {folder} -o m.onnx"),
    "doctor": Command(6, "doctor {checkpoint}"),
    "record": Command(5, "record {head.onnx} {images} -o r.h5 --threads 1 --batch 3"),
    "record whole": Command(1, "record {vit.onnx} {images} -o r.h5 --threads 1 --batch 3"),
    "record again": Command(4, "record {vit.onnx} {images.npy} -o r.h5 --threads 1", "recording"),
    "lower": Command(8, "lower {part_mlp.onnx} --recording {part_recording.h5} -o g.h5", "same graph"),
    "lower whole": Command(3, "lower {vit.onnx} --recording {recording.h5} -o g.h5", "same graph"),
    "lower trained": Command(4, "lower {ivit.onnx} -o g.h5"),
    "lower recipe": Command(
        7, "lower {part_residual.onnx} --images {tokens.npy} --recipe {recipe.toml} -o g.h5"
    ),
    "lower mapping": Command(
        7, "lower {part_mlp.onnx} --recording {part_recording.h5} --mapping {part_mapping.json} -o g.h5"
    ),
    "lower images": Command(2, "lower {head.onnx} --images {images} -o g.h5"),
    "lower consistent": Command(6, "lower {part_mlp.onnx} --recording {part_recording.h5} -o g.h5", "",
                                mutate_recording, 1),
    "map": Command(
        2, "map {part_mlp.onnx} --recording {part_recording.h5} --images {tokens.npy} -o m.json --threads 1"
           " --methods ibert,ivit"
    ),
    "map search": Command(
        2, "map {part_mlp.onnx} --recording {part_recording.h5} --images {tokens.npy} -o m.json --threads 1"
           " --methods ibert,ivit --search greedy --budget 4"
    ),
    "map live": Command(1, "map {vit.onnx} --images {images} -o m.json --threads 1"),
    "run": Command(10, "run {part} {tokens.npy} -o l.npz --threads 1", "same run"),
    "run whole": Command(3, "run {whole} {images.npy} -o l.npz --threads 1", "same run"),
    "run swin": Command(2, "run {swin.h5} {gray.npy} -o l.npz --threads 1", "same run"),
    "run trace": Command(2, "run {part} {tokens.npy} -o l.npz --trace t.h5 --threads 1", "same run"),
    "run images": Command(16, "run {head.h5} {images} -o l.npz --threads 1"),
    "run tokens": Command(2, "run {part} {tokens.npy} -o l.npz --threads 1"),
    "run consistent": Command(14, "run {any_graph} {of_it} -o l.npz --threads 1", "backends agree", mutate_graph),
    "eval": Command(2, "eval {whole} {labelled} --threads 1"),
    "eval float": Command(1, "eval {whole} {labelled} --float {vit.onnx} --threads 1 --json"),
    "golden export": Command(4, "golden export {part} {tokens.npy} -o v"),
    "golden export whole": Command(1, "golden export {whole} {images.npy} -o v --site softmax --site head"),
    "golden check": Command(12, "golden check {golden}", "all equal"),
    "golden consistent": Command(8, "golden check {golden}", mutate=mutate_golden),
    "trace": Command(4, "@trace {trace.h5} blocks.0.mlp.act", "same tensor"),
    "trace consistent": Command(2, "@trace {trace.h5} blocks.0.mlp.act", mutate=mutate_trace),
    "options": Command(6, ""),
    "methods": Command(1, "methods"),
}  # fmt: skip
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


def choose_input(rng: Random, group: str, before: list[str]) -> list[str]:
    """A seed of the group, and the options that go with it."""
    if group == "of_it":
        return ["gray.npy" if "swin" in before[0] else "tokens.npy" if "part" in before[0] else "images.npy"]
    return rng.choice(SEEDS.get(group, (group,))).split(" ")


def fill(rng: Random, command: Command, seeds: Path, inputs: Path, case: Case) -> list[str]:
    """Copy the inputs of a command and write out its words, for the copies and for the seeds; the names of inputs."""
    names: list[str] = []
    words, plain, extra = [], [], []
    for word in command.words.split():
        match = re.fullmatch(r"\{(.+)\}", word)
        if match is None:
            words.append(word)
            plain.append(word)
            continue
        seed, *options = choose_input(rng, match[1], names)
        name, colon, group = seed.partition(":")
        if not (seeds / name).exists():  # PyTorch files where there is no PyTorch
            name, colon, group = "ivit.npz", "", ""
        top = name.split("/")[0]
        if not (inputs / top).exists():
            copy = shutil.copytree if (seeds / top).is_dir() else shutil.copy
            copy(seeds / top, inputs / top)
        names.append(top)
        words.append(f"../in/{name}{colon}{group}")
        plain.append(f"{seeds / name}{colon}{group}")
        extra += options
    case.arguments, case.plain = words + extra, plain + extra
    return names


def draw_case(rng: Random, seeds: Path, inputs: Path, output: Path, real_share: float) -> Case:
    """Draw a case and write its inputs below `inputs`; the command will run in `output`."""
    label = rng.choices(list(COMMANDS), [command.weight for command in COMMANDS.values()])[0]
    command = COMMANDS[label]
    case = Case(label, [], command.oracle, command.outputs)
    if label == "options":
        command = rng.choice([c for c in COMMANDS.values() if "{" in c.words and not c.words.startswith("@")])
    names = fill(rng, command, seeds, inputs, case)
    ours = case.arguments[0].startswith("@")  # no command of the package, and no options of its
    if label in ("options", "methods") or (rng.random() < 0.04 and not ours):
        case.options_changed = True
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            case.changes.append(change_options(rng, case.arguments))
    elif command.mutate is not None:
        case.changed.append(names[command.mutated])
        case.changes.append(safely(rng, command.mutate, inputs / case.changed[0]))
    elif names:
        for _ in range(rng.choice([1, 1, 1, 1, 2, 2, 3, 5])):
            case.changed.append(rng.choice(names))
            case.changes.append(change_path(rng, inputs / case.changed[-1], seeds))
    if label == "record again":
        leave_partial(rng, seeds, output, case)
    elif command.outputs and rng.random() < 0.1:  # something stands there already
        (output / command.outputs[0]).write_bytes(b"older")
        case.changes.append("older output")
    possible = not any("\0" in word for word in case.arguments) and not ours
    case.real = rng.random() < real_share and possible
    if case.real and rng.random() < 0.5:
        name = rng.choice(sorted(ENVIRONMENT))
        case.environment = {name: rng.choice(ENVIRONMENT[name])}
        case.changes.append(f"environment {case.environment}")
    return case


def leave_partial(rng: Random, seeds: Path, output: Path, case: Case) -> None:
    """What an interrupted recording left, whole or damaged, for `record` to go on with."""
    for path in sorted((seeds / "interrupted").iterdir()):
        shutil.copy(path, output / path.name)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        case.changes.append("left: " + change_folder(rng, output, seeds))
