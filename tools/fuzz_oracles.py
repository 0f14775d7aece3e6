"""What must hold where a command accepts its input: damaged content refused or without effect, both backends equal."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from fuzz_cases import Case

Run = Callable[[list[str]], int]
"""Runs the command line in the present folder; the exit status."""


@dataclass(frozen=True)
class Scene:
    """An accepted case: its folder, and a way to run a command in another one."""

    case: Case
    folder: Path
    seeds: Path
    run: Run

    @property
    def inputs(self) -> Path:
        return self.folder / "in"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def spare(self) -> Path:
        return self.folder / "spare"

    def again(self, arguments: list[str]) -> int:
        """Run another command in the spare folder."""
        self.spare.mkdir(exist_ok=True)
        before = os.getcwd()
        os.chdir(self.spare)
        try:
            return self.run(arguments)
        finally:
            os.chdir(before)


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def difference(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> str | None:
    if expected.keys() != actual.keys():
        return f"arrays {sorted(actual)} for {sorted(expected)}"
    for name, array in expected.items():
        other = actual[name]
        if array.shape != other.shape or array.dtype != other.dtype or array.tobytes() != other.tobytes():
            return f"{name} differs"
    return None


def plain_baseline(scene: Scene, read: Callable[[Path], dict[str, np.ndarray]], output: str) -> dict[str, np.ndarray]:
    """What the same command makes of the unchanged seeds; computed once, kept beside the seeds."""
    name = hashlib.sha256("\0".join(scene.case.plain).encode()).hexdigest()[:16]
    kept = scene.seeds.parent / "baselines" / f"{name}.npz"
    if not kept.exists():
        if scene.again(scene.case.plain) != 0:
            raise AssertionError(f"the seeds themselves are refused: {scene.case.plain}")
        kept.parent.mkdir(exist_ok=True)
        partial = kept.with_name(f"{os.getpid()}.npz")
        np.savez(partial, **{key.replace("/", "|"): array for key,
                             array in read(scene.spare / output).items()})  # type: ignore[arg-type]  # fmt: skip
        partial.replace(kept)
    return {key.replace("|", "/"): array for key, array in arrays_of(kept).items()}


def same_run(scene: Scene) -> str | None:
    """Only the graph was changed: the result is that of the unchanged graph."""
    if any(name.startswith(("images", "gray", "tokens")) for name in scene.case.changed) or not scene.case.changed:
        return None
    return difference(plain_baseline(scene, arrays_of, "l.npz"), arrays_of(scene.output / "l.npz"))


def graph_arrays(path: Path) -> dict[str, np.ndarray]:
    from intvit.graph.store import load

    return {"hash": np.array(load(path).content_hash)}


def same_graph(scene: Scene) -> str | None:
    """A changed recording or model is refused, or makes the very same graph."""
    if not scene.case.changed:
        return None
    return difference(plain_baseline(scene, graph_arrays, "g.h5"), graph_arrays(scene.output / "g.h5"))


def recording_arrays(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as file:

        def visit(name: str, node: h5py.Dataset | h5py.Group) -> None:
            if isinstance(node, h5py.Dataset):
                found[name] = np.asarray(node)
            found.update({f"{name}.{key}": np.asarray(str(node.attrs[key])) for key in node.attrs})

        file.visititems(visit)
        visit("", file["/"])
    return found


def same_recording(scene: Scene) -> str | None:
    """Whatever an interrupted recording left: the finished one is that of an uninterrupted run."""
    if scene.case.changed:
        return None
    return difference(plain_baseline(scene, recording_arrays, "r.h5"), recording_arrays(scene.output / "r.h5"))


def tree(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            found[str(path.relative_to(folder))] = (
                path.read_bytes() if path.is_file() and not path.is_symlink() else b"no file"
            )
    return found


def all_equal(scene: Scene) -> str | None:
    """A bundle that is accepted is byte for byte the one that was exported."""
    name = Path(scene.case.arguments[-1]).name
    expected, actual = tree(scene.seeds / name), tree(scene.inputs / name)
    changed = sorted(key for key in expected.keys() | actual.keys() if expected.get(key) != actual.get(key))
    return f"changed: {', '.join(changed[:3])}" if changed else None


def same_tensor(scene: Scene) -> str | None:
    """A trace's tensor is refused or is what was written."""
    from intvit.engine.trace import read_tensor

    name = scene.case.arguments[2]
    expected, actual = (read_tensor(folder / "trace.h5", name) for folder in (scene.seeds, scene.inputs))
    return difference({name: expected.astype(np.int64)}, {name: actual.astype(np.int64)})


def backends_agree(scene: Scene) -> str | None:
    """The specification computes what the kernels compute, whatever the constants are."""
    status = scene.again([*scene.case.arguments, "--backend", "spec"])
    if status != 0:
        return f"the kernel accepts, the specification exits with {status}"
    return difference(arrays_of(scene.output / "l.npz"), arrays_of(scene.spare / "l.npz"))


def same_function(scene: Scene) -> str | None:
    """The imported network computes what onnxruntime computes of the file, on one image."""
    import onnx
    import onnxruntime as ort

    if "--until" in scene.case.arguments or "--from" in scene.case.arguments:
        return None
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    imported = onnx.load(str(scene.output / "m.onnx"))
    source = scene.inputs / Path(scene.case.arguments[1]).name
    names = {tensor.name for tensor in imported.graph.initializer}
    (given,) = (value for value in imported.graph.input if value.name not in names)
    shape = [1, *(dim.dim_value for dim in given.type.tensor_type.shape.dim)][-len(given.type.tensor_type.shape.dim) :]
    shape[0] = 1
    x = np.random.default_rng(7).normal(size=shape).astype(np.float32)
    results = []
    for path in (source, source, scene.output / "m.onnx"):
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
            feed = session.get_inputs()[0]
            results.append(np.asarray(session.run(None, {feed.name: x.astype(kinds[feed.type])})[0]))
        except Exception as error:
            if path == source:
                return None  # what onnxruntime itself does not run cannot be compared
            return f"the imported network does not run: {str(error).splitlines()[0][:100]}"
    first, second, ours = (np.asarray(result, np.float64) for result in results)
    if first.tobytes() != second.tobytes():
        return "another result each time, and accepted"
    if first.size != ours.size:
        return f"shape {ours.shape} for {first.shape}"
    first, ours = first.reshape(-1), ours.reshape(-1)
    if not np.isfinite(ours).all():  # float32 overflows elsewhere in another order: `record` refuses it
        return None
    if not np.isfinite(first).all():
        return "finite for not finite"
    error = np.abs(first - ours).max() / max(float(np.ptp(first)), float(np.abs(first).max()) * 1e-3, 1e-6)
    return f"another function: off by {error:.2g} of the range" if error > 2e-3 else None


ORACLES: dict[str, Callable[[Scene], str | None]] = {
    "all equal": all_equal,
    "backends agree": backends_agree,
    "recording": same_recording,
    "same function": same_function,
    "same graph": same_graph,
    "same run": same_run,
    "same tensor": same_tensor,
}
