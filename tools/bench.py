#!/usr/bin/env python3
"""Time intvit against the engines that people use instead, interleaved in one run; medians and ratios.

    python tools/bench.py --model deit_small --batch 8 --threads 2
    python tools/bench.py --model swin_tiny --methods ivit,ibert,fqvit,mixed
    python tools/bench.py --model deit_tiny --profile
    python tools/bench.py --model deit_small --growth
    python tools/bench.py --mapping                       # analysis of the embedded model, images/s
    python tools/bench.py --against ../before             # this checkout and another, pair by pair

Weights are random and seeded: speed does not depend on them. Peers: onnxruntime float32, onnxruntime static QDQ int8
(u8s8 and u8u8), PyTorch float32 where torch and transformers are installed. Printed with them: whether their int8
products are exact on this machine. Nothing here asserts on time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone need not be installed

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Architecture:
    """What a model of the paper looks like; `heads` of one number is a ViT, of four a Swin."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    patch: int
    window: int = 7
    img_size: int = 224
    n_classes: int = 1000

    @property
    def family(self) -> str:
        return "vit" if len(self.heads) == 1 else "swin"


MODELS = {
    "deit_tiny": Architecture(192, (12,), (3,), 16),
    "deit_small": Architecture(384, (12,), (6,), 16),
    "vit_base": Architecture(768, (12,), (12,), 16),
    "swin_tiny": Architecture(96, (2, 2, 6, 2), (3, 6, 12, 24), 4),
    "swin_small": Architecture(96, (2, 2, 18, 2), (3, 6, 12, 24), 4),
}


# ------------------------------------------------------------------------------------------ weights


class Weights:
    """Random weights under timm's names."""

    def __init__(self, seed: int) -> None:
        self.rng, self.tensors = np.random.default_rng(seed), dict[str, Array]()

    def normal(self, name: str, *shape: int, std: float = 0.02) -> None:
        self.tensors[name] = (self.rng.standard_normal(shape, dtype=np.float32) * std).astype(np.float32)

    def linear(self, name: str, n_out: int, n_in: int, bias: bool = True) -> None:
        self.normal(f"{name}.weight", n_out, n_in, std=0.7 * n_in**-0.5)
        if bias:
            self.normal(f"{name}.bias", n_out, std=0.1)

    def norm(self, name: str, width: int) -> None:
        self.normal(f"{name}.weight", width, std=0.1)
        self.tensors[f"{name}.weight"] += 1
        self.normal(f"{name}.bias", width, std=0.1)

    def block(self, name: str, width: int) -> None:
        self.norm(f"{name}.norm1", width)
        self.linear(f"{name}.attn.qkv", 3 * width, width)
        self.linear(f"{name}.attn.proj", width, width)
        self.norm(f"{name}.norm2", width)
        self.linear(f"{name}.mlp.fc1", 4 * width, width)
        self.linear(f"{name}.mlp.fc2", width, 4 * width)


def random_weights(a: Architecture, seed: int = 0) -> dict[str, Array]:
    """Weights of an architecture, seeded."""
    w = Weights(seed)
    w.normal("patch_embed.proj.weight", a.width, 3, a.patch, a.patch, std=0.7 * (3 * a.patch**2) ** -0.5)
    w.normal("patch_embed.proj.bias", a.width, std=0.1)
    if a.family == "vit":
        w.normal("cls_token", 1, 1, a.width)
        w.normal("pos_embed", 1, (a.img_size // a.patch) ** 2 + 1, a.width)
        for i in range(a.depths[0]):
            w.block(f"blocks.{i}", a.width)
        width = a.width
    else:
        w.norm("patch_embed.norm", a.width)
        for stage, (depth, heads) in enumerate(zip(a.depths, a.heads, strict=True)):
            width = a.width << stage
            for i in range(depth):
                w.block(f"layers.{stage}.blocks.{i}", width)
                table = f"layers.{stage}.blocks.{i}.attn.relative_position_bias_table"
                w.normal(table, (2 * a.window - 1) ** 2, heads, std=0.5)
            if stage < len(a.depths) - 1:
                w.norm(f"layers.{stage}.downsample.norm", 4 * width)
                w.linear(f"layers.{stage}.downsample.reduction", 2 * width, 4 * width, bias=False)
    w.norm("norm", width)
    w.linear("head", a.n_classes, width)
    return w.tensors


def float_onnx(a: Architecture) -> Any:
    from intvit.floats.importers.timm import BUILDERS

    heads = a.heads[0] if a.family == "vit" else list(a.heads)
    return BUILDERS[a.family](random_weights(a), {"num_heads": heads, "img_size": a.img_size})


def random_images(a: Architecture, count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, a.img_size, a.img_size), dtype=np.float32)


def mixed_choice(operator: str, index: int) -> dict[str, Any]:
    """The methods in turn: every one of them occurs in every operator that has it."""
    if operator == "gelu":
        return {"method": "ibert", "n": 6} if index % 2 else {"method": "ivit"}
    return {"method": ("ivit", "ibert", "fqvit")[index % 3]}


def integer_graphs(model: Any, a: Architecture, methods: tuple[str, ...]) -> dict[str, Any]:
    """Integer graphs by method, calibrated on two random images; `mixed` takes the methods in turn, site by site.

    Those of the preset `published`, or with `+accurate` behind the method's name of that one.
    """
    from intvit.floats.images import open_images
    from intvit.floats.importers.onnx import float_graph
    from intvit.floats.live import LiveActivations
    from intvit.floats.model import FloatModel
    from intvit.graph import operators
    from intvit.lowering.calibrate import calibrate
    from intvit.lowering.context import lower
    from intvit.lowering.recipe import Choice, build_recipe

    graph = float_graph(model)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", random_images(a, 2, seed=2))
        images = open_images(f"{folder}/x.npy", size=(a.img_size, a.img_size), channels=3)
        live = LiveActivations(FloatModel(model), images)
        found = {}
        for method in methods:
            name, _, preset = method.partition("+")
            recipe = build_recipe({"preset": preset or "published", "observer": {"batch": 1}})
            chosen = recipe.with_method("ivit" if name == "mixed" else name)
            if name == "mixed":
                sites = [node for node in graph.nodes if node.op in operators.with_methods()]
                choices = {node.name: Choice(**mixed_choice(node.op, i)) for i, node in enumerate(sites)}
                chosen = chosen.model_copy(update={"sites": choices})
            found[method] = lower(graph, calibrate(graph, live, chosen), chosen)
    return found


# -------------------------------------------------------------------------------------------- peers


def onnxruntime_session(model: Any, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def static_int8(model: Any, a: Architecture, unsigned_weights: bool, threads: int) -> Any:
    """onnxruntime's static quantization: QDQ, unsigned activations, weights per channel if signed."""
    import logging

    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"input": random_images(a, 1, seed=2)}])

        def get_next(self) -> Mapping[str, Array] | None:  # type: ignore[override]
            return next(self.left, None)

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/float.onnx", f"{folder}/int8.onnx"
        onnx.save(model, source)
        quantize_static(
            source, target, Reader(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QUInt8 if unsigned_weights else QuantType.QInt8, per_channel=not unsigned_weights,
        )  # fmt: skip
        return onnxruntime_session(target, threads)


def pytorch(a: Architecture, threads: int) -> Callable[[Array], Any] | None:
    """The same architecture from transformers, float32, or None where it is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    torch.set_num_threads(threads)
    if a.family == "vit":
        config = transformers.ViTConfig(
            hidden_size=a.width, num_hidden_layers=a.depths[0], num_attention_heads=a.heads[0],
            intermediate_size=4 * a.width, image_size=a.img_size, patch_size=a.patch, num_labels=a.n_classes,
        )  # fmt: skip
        net: Any = transformers.ViTForImageClassification(config)
    else:
        config = transformers.SwinConfig(
            embed_dim=a.width, depths=list(a.depths), num_heads=list(a.heads), window_size=a.window,
            image_size=a.img_size, patch_size=a.patch, num_labels=a.n_classes,
        )  # fmt: skip
        net = transformers.SwinForImageClassification(config)
    net.eval()

    def run(x: Array) -> Any:
        with torch.inference_mode():
            return net(torch.from_numpy(x)).logits

    return run


def exactness() -> dict[str, bool]:
    """Whether an int8 product of extremes is the sum that it should be: per peer and operand types, on this machine."""
    import onnx
    from onnx import TensorProto, helper

    found = {}
    a = np.full((16, 768), 255, np.uint8)
    for name, kind, low, high in (("u8s8", TensorProto.INT8, -128, 127), ("u8u8", TensorProto.UINT8, 0, 255)):
        b = np.where(np.arange(32) % 2, low, high) * np.ones((768, 1), int)
        graph = helper.make_graph(
            [helper.make_node("MatMulInteger", ["a", "b"], ["y"])], "product",
            [helper.make_tensor_value_info("a", TensorProto.UINT8, [16, 768])],
            [helper.make_tensor_value_info("y", TensorProto.INT32, [16, 32])],
            [helper.make_tensor("b", kind, b.shape, b.reshape(-1).tolist())],
        )  # fmt: skip
        session = onnxruntime_session(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), 1
        )
        (y,) = session.run(None, {"a": a})
        found[f"onnxruntime {name}"] = bool(np.array_equal(y, a.astype(int) @ b))
    assert onnx is not None
    return found


# ----------------------------------------------------------------------------------------- measuring


def interleaved(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, every contender once per round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def intvit_runner(graph: Any, x: Array, threads: int) -> Callable[[], Any]:
    from intvit.engine import Engine

    engine = Engine(graph)
    return lambda: engine.run(x, batch=len(x), threads=threads)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    a = MODELS[args.model]
    model, x = float_onnx(a), random_images(a, args.batch)
    contenders: dict[str, Callable[[], Any]] = {}
    for method, graph in integer_graphs(model, a, tuple(args.methods.split(","))).items():
        contenders[f"intvit {method}"] = intvit_runner(graph, x, args.threads)
    peers = {"onnxruntime float32": onnxruntime_session(model, args.threads)}
    if not args.no_int8:
        peers["onnxruntime int8 u8s8"] = static_int8(model, a, False, args.threads)
        peers["onnxruntime int8 u8u8"] = static_int8(model, a, True, args.threads)
    for name, session in peers.items():
        contenders[name] = lambda s=session: s.run(None, {"input": x})
    torch_run = pytorch(a, args.threads)
    if torch_run is not None:
        contenders["pytorch float32"] = lambda: torch_run(x)
    times = interleaved(contenders, args.rounds)
    medians = {name: statistics.median(t) / args.batch * 1e3 for name, t in times.items()}
    first = next(iter(medians))
    return {
        "model": args.model,
        "batch": args.batch,
        "threads": args.threads,
        "machine": machine(),
        "ms_per_image": {name: round(value, 2) for name, value in medians.items()},
        "spread": {name: [round(v / args.batch * 1e3, 2) for v in (min(t), max(t))] for name, t in times.items()},
        f"ratio_to_{first.replace(' ', '_')}": {name: round(v / medians[first], 3) for name, v in medians.items()},
        "exact_int8_products": {"intvit": True, **exactness()},
        "peak_memory_mib": {} if args.no_memory else memory(args),
    }


CONTENDER = """
import hashlib, sys, time
folder, model, batch, threads, methods = sys.argv[1:]
sys.path[:0] = [folder, folder + "/tools"]
import bench
a = bench.MODELS[model]
x = bench.random_images(a, int(batch))
graphs = bench.integer_graphs(bench.float_onnx(a), a, tuple(methods.split(",")))
runs = {method: bench.intvit_runner(graph, x, int(threads)) for method, graph in graphs.items()}
print("ready", flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    logits = runs[line.strip()]()["logits"]
    seconds = time.perf_counter() - start
    print(seconds, hashlib.sha256(logits.tobytes()).hexdigest(), flush=True)
"""
"""What times a checkout, in a process of its own: it says "ready", then seconds and digest for each method it reads."""


def against(args: argparse.Namespace) -> dict[str, Any]:
    """Time over that of another checkout with the same packages: medians of pairs, and whether the logits are equal."""
    folders = {"this": Path(__file__).resolve().parent.parent, "other": args.against.resolve()}
    given = (args.model, str(args.batch), str(args.threads), args.methods)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    started = {
        name: subprocess.Popen(
            [sys.executable, "-c", CONTENDER, str(folder), *given],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=folder, env=env,
        )
        for name, folder in folders.items()
    }  # fmt: skip

    def answer(name: str) -> list[str]:
        line = started[name].stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"{folders[name]}: its tools/bench.py must build and run these models")
        return line.split()

    found: dict[str, Any] = {"machine": machine(), "other": str(folders["other"])}
    try:
        for name in started:
            answer(name)
        for method in args.methods.split(","):
            times, digests = {name: list[float]() for name in folders}, set()
            for number in range(args.rounds + 1):
                for name in sorted(folders, reverse=bool(number % 2)):
                    started[name].stdin.write(f"{method}\n")  # type: ignore[union-attr]
                    seconds, digest = answer(name)
                    times[name].append(float(seconds))
                    digests.add(digest)
            ratios = [a / b for a, b in zip(times["this"][1:], times["other"][1:], strict=True)]  # the first warms up
            found[f"{args.model} {method}"] = {
                **{f"{name}, ms per image": round(1e3 * statistics.median(t[1:]) / args.batch, 2)
                   for name, t in times.items()},
                "this / other, median of pairs": round(statistics.median(ratios), 3),
                "logits": "equal" if len(digests) == 1 else "DIFFER",
            }  # fmt: skip
    finally:
        for process in started.values():
            process.kill()
            process.wait()
    return found


def machine() -> dict[str, Any]:
    from intvit.kernels.gemm import chosen_path

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"cpu": name, "cores": os.cpu_count(), "gemm_path": chosen_path(), "python": platform.python_version()}


def memory(args: argparse.Namespace) -> dict[str, int]:
    """Peak resident memory of a process that does nothing but run one engine on one batch, MiB."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        a = MODELS[args.model]
        import onnx

        from intvit.graph.store import save

        model = float_onnx(a)
        onnx.save(model, f"{folder}/m.onnx")
        save(integer_graphs(model, a, ("ivit",))["ivit"], f"{folder}/m.h5")
        for engine, file in (("intvit ivit", "m.h5"), ("onnxruntime float32", "m.onnx")):
            command = [sys.executable, __file__, "--one-shot", f"{folder}/{file}", "--model", args.model]
            command += ["--batch", str(args.batch), "--threads", str(args.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[engine] = int(done.stdout.strip().splitlines()[-1])
    return found


def one_shot(args: argparse.Namespace) -> int:
    x = random_images(MODELS[args.model], args.batch)
    if args.one_shot.endswith(".h5"):
        import intvit

        engine = intvit.load(args.one_shot)
        for _ in range(2):
            engine.run(x, batch=args.batch, threads=args.threads)
    else:
        session = onnxruntime_session(args.one_shot, args.threads)
        for _ in range(2):
            session.run(None, {"input": x})
    print(peak_memory())
    return 0


def peak_memory() -> int:
    """MiB that this process has held at most; the kernel's own figure where there is one, as it starts anew on exec."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def profile(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per image and step kind, one thread."""
    from threadpoolctl import threadpool_limits

    from intvit.engine import Engine, quantize_images

    a = MODELS[args.model]
    (graph,) = integer_graphs(float_onnx(a), a, (args.methods.split(",")[0],)).values()
    engine = Engine(graph)
    steps = engine.program(graph.outputs).steps
    q = quantize_images(graph, random_images(a, args.batch))
    spent: Counter[str] = Counter()
    with threadpool_limits(limits=1):
        for repeat in range(args.rounds + 1):
            values = {graph.inputs[0]: q}
            for step in steps:
                start = time.perf_counter()
                values[step.output] = step.run([values[name] for name in step.inputs])
                residual = " (residual)" if "residual_m" in step.nodes[-1].arrays else ""
                if repeat:
                    spent["+".join(node.op for node in step.nodes) + residual] += time.perf_counter() - start
    scale = 1e3 / args.rounds / args.batch
    return {"model": args.model, "threads": 1, "ms_per_image": {k: round(v * scale, 3) for k, v in spent.most_common()}}


def growth(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per image over batch and over image size."""
    from dataclasses import replace

    a = MODELS[args.model]
    (graph,) = integer_graphs(float_onnx(a), a, ("ivit",)).values()
    by_batch = {n: intvit_runner(graph, random_images(a, n), args.threads) for n in (1, 2, 4, 8, 16, 32)}
    found: dict[str, Any] = {"model": args.model, "threads": args.threads}
    times = interleaved({str(n): run for n, run in by_batch.items()}, args.rounds)
    found["batch"] = {n: round(statistics.median(t) / int(n) * 1e3, 2) for n, t in times.items()}
    sizes = (112, 160, 224, 320) if a.family == "vit" else (112, 224, 448)
    found["tokens"] = {}
    for size in sizes:
        b = replace(a, img_size=size)
        (graph,) = integer_graphs(float_onnx(b), b, ("ivit",)).values()
        run = intvit_runner(graph, random_images(b, args.batch), args.threads)
        t = interleaved({"x": run}, args.rounds)["x"]
        found["tokens"][(size // a.patch) ** 2] = round(statistics.median(t) / args.batch * 1e3, 2)
    return found


def mapping(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of the mapping analysis: float run, three integer runs, statistics, nothing stored."""
    from intvit.analysis.demo import WEIGHTS, embedded
    from intvit.floats.images import open_images
    from intvit.floats.importers.onnx import float_graph
    from intvit.floats.importers.timm import import_timm
    from intvit.floats.live import LiveActivations
    from intvit.floats.model import FloatModel
    from intvit.lowering.calibrate import calibrate
    from intvit.lowering.recipe import build_recipe
    from intvit.mapping.candidates import PUBLISHED, uniform_model
    from intvit.mapping.mapping import map_methods
    from intvit.mapping.scores import UNIFORM, Run, Task, Variant
    from intvit.mapping.values import float_values

    recipe = build_recipe({})
    if args.model is None:
        model = import_timm(embedded(WEIGHTS))
        graph = float_graph(model)
        options = {"mean": graph.metadata["mean"], "std": graph.metadata["std"], "size": (28, 28), "channels": 1}
        images = open_images("fashion-mnist:calibration", **options)
        n_images = 256
    else:
        a = MODELS[args.model]
        model = float_onnx(a)
        graph, n_images = float_graph(model), 16
        folder = tempfile.mkdtemp()
        np.save(f"{folder}/x.npy", random_images(a, n_images))
        images = open_images(f"{folder}/x.npy", size=(a.img_size, a.img_size), channels=3)
    live = LiveActivations(FloatModel(model, threads=args.threads), images, n_images)
    calibration = calibrate(graph, live, recipe, limit=16)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        map_methods(graph, live, images, calibration, recipe, PUBLISHED, threads=args.threads)
        times.append(time.perf_counter() - start)
    n = min(n_images, 32)
    ivit = uniform_model(graph, calibration, recipe, "ivit", PUBLISHED)
    variant = Variant("ivit", ivit.recipe, ivit.sites)
    run = Run.of(Task(graph, calibration, UNIFORM, (variant,)), variant)
    x = images.read(0, n)
    floats = {name: float_values(graph, name, live.names, lambda known: live.read(known, 0, n)) for name in run.floats}
    plain = interleaved(
        {
            "plain": lambda: run.parts[0].engine.run(x, batch=n, threads=args.threads),
            "statistics": lambda: run.add((0, n), x, floats, args.threads),
        },
        args.rounds,
    )
    medians = {name: statistics.median(t) for name, t in plain.items()}
    return {
        "model": args.model or "embedded",
        "images": n_images,
        "images_per_s": round(n_images / min(times[1:]), 1),
        "run_ms_per_image": {name: round(1e3 * v / n, 3) for name, v in medians.items()},
        "statistics_over_plain": round(medians["statistics"] / medians["plain"], 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, help="default: deit_small; for --mapping the embedded ViT")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--methods", default="ivit", help="ivit, ibert, fqvit, mixed, each maybe with +accurate")
    parser.add_argument("--no-int8", action="store_true", help="leave out onnxruntime's quantized models")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--profile", action="store_true", help="time per step kind instead")
    parser.add_argument("--growth", action="store_true", help="time over batch and tokens instead")
    parser.add_argument("--mapping", action="store_true", help="speed of the mapping analysis instead")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout instead of other engines")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--one-shot", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mapping:
        result = mapping(args)
    else:
        args.model = args.model or "deit_small"
        if args.one_shot:
            return one_shot(args)
        alone = against if args.against else profile if args.profile else growth if args.growth else compare
        result = alone(args)
    if args.json:
        print(json.dumps(result, indent=1))
        return 0
    for key, value in result.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, entry in value.items():
                print(f"  {name!s:42s} {entry}")
        else:
            print(f"{key}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
