#!/usr/bin/env python3
"""Replay a folder of conformance vectors with both backends; exit 1 if one element differs.

    python tools/conformance.py golden/conformance
    python tools/conformance.py FOLDER --json

Reads every .npz below FOLDER: operator files (`num_cases`, `case{i}_{name}`) and whole models (`meta`). A file that
cannot be read or whose kind is unknown is a failure; nothing is skipped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone need not be installed

from intvit import ops
from intvit.kernels import registry
from intvit.kernels.requantize import dyadic

Case = dict[str, np.ndarray]
BACKENDS = ("kernel", "spec")


@dataclass
class Score:
    """What one file gave, over both backends."""

    file: str
    cases: int = 0
    elements: int = 0
    equal: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems and self.elements > 0 and self.equal == self.elements

    def compare(self, where: str, expected: Any, actual: Any) -> None:
        expected, actual = np.asarray(expected), np.asarray(actual)
        self.elements += expected.size
        if expected.shape != actual.shape:
            self.problems.append(f"{where}: shape must be {expected.shape}, not {actual.shape}")
            return
        different = np.argwhere(expected != actual)
        self.equal += expected.size - len(different)
        if len(different) and len(self.problems) < 20:
            at = tuple(different[0])
            self.problems.append(
                f"{where}: {len(different)} of {expected.size} differ, first at {[int(i) for i in at]}: "
                f"expected {expected[at]}, got {actual[at]}"
            )


# ------------------------------------------------------------------------------------ operator files


def scalar(case: Case, key: str) -> Any:
    return case[key].reshape(()).item() if case[key].size == 1 else case[key]


def scale_of(case: Case) -> Any:
    return scalar(case, "in_scale")


def constants(score: Score, where: str, case: Case, params: Any, names: dict[str, str]) -> None:
    """Stored constants against the ones that `lower` derives."""
    for key, attribute in names.items():
        if key in case:
            score.compare(f"{where} {key}", case[key].reshape(-1), np.array(getattr(params, attribute)).reshape(-1))


def replay_requantize(score: Score, where: str, case: Case, backend: str) -> None:
    extra = {"residual": case["id_int"], "residual_scale": case["id_scale"]} if "id_int" in case else {}
    bits = int(case["bits"])
    y = ops.requantize(case["x_int"], case["in_scale"], float(case["out_scale"]), bits, backend=backend, **extra)
    score.compare(f"{where} y_int", case["y_int"], y)
    for m_key, e_key, scale in (("m", "e", "in_scale"), ("id_m", "id_e", "id_scale")):
        if m_key in case:
            m, e = dyadic(case[scale], float(case["out_scale"]))
            score.compare(f"{where} {m_key}", case[m_key], np.broadcast_to(m, case[m_key].shape))
            score.compare(f"{where} {e_key}", case[e_key], np.broadcast_to(e, case[e_key].shape))


def replay_softmax(method: str) -> Callable[[Score, str, Case, str], None]:
    def replay(score: Score, where: str, case: Case, backend: str) -> None:
        bits = next((int(case[key]) for key in ("output_bit", "bits") if key in case), 8)
        options: dict[str, Any] = {"out_bits": bits}
        if "exp_range_max" in case:
            options["exp_range_max"] = float(case["exp_range_max"])
        y, scale = ops.softmax(case["x_int"], scale_of(case), method=method, backend=backend, **options)
        score.compare(f"{where} y_int", case["y_int"], y)
        if "out_scale" in case:
            score.compare(f"{where} out_scale", case["out_scale"], scale)
        params, _ = registry.get("softmax", method).constants(scale_of(case), options, {})
        names = {"x0_int": "x0", "b_int": "b", "c_int": "c", "n": "n", "exp_requant_m": "m", "exp_requant_e": "e"}
        constants(score, where, case, params, names)

    return replay


def replay_gelu(method: str) -> Callable[[Score, str, Case, str], None]:
    def replay(score: Score, where: str, case: Case, backend: str) -> None:
        options = {"n": int(case["n"])} if method == "ibert" else {}
        y, scale = ops.gelu(case["x_int"], scale_of(case), method=method, backend=backend, **options)
        score.compare(f"{where} y_int", case["y_int"], y)
        score.compare(f"{where} out_scale", case["out_scale"].reshape(-1), np.atleast_1d(scale))
        params, _ = registry.get("gelu", method).constants(scale_of(case), {}, options)
        names = {"x0_int": "x0", "b_int": "b", "c_int": "c", "shift_int": "shift", "n": "n"}
        constants(score, where, case, params, names)

    return replay


def replay_layernorm(method: str) -> Callable[[Score, str, Case, str], None]:
    def replay(score: Score, where: str, case: Case, backend: str) -> None:
        options: dict[str, Any] = {"shift": int(case["shift"])} if "shift" in case else {}
        if method == "fqvit":
            options |= {"factor": case["in_scale_factor"], "out_scale": float(case["out_scale"])}
        width = case["x_int"].shape[-1]
        gamma, beta = case.get("gamma", np.ones(width)), case.get("beta", np.zeros(width))
        y, scale = ops.layernorm(
            case["x_int"], case["in_scale"], gamma, beta, method=method, backend=backend, **options
        )
        score.compare(f"{where} y_int", case["y_int"], y)
        expected = np.broadcast_to(case["out_scale"], np.shape(scale))
        score.compare(f"{where} out_scale", expected, np.asarray(scale))
        params, _ = registry.get("layernorm", method).constants(
            float(np.min(case["in_scale"])), {"gamma": gamma, "beta": beta, **options}, {}
        )
        constants(score, where, case, params, {"bias_int": "bias"})
        if method == "fqvit":
            compare_multipliers(score, where, case, params)

    return replay


def compare_multipliers(score: Score, where: str, case: Case, params: Any) -> None:
    """FQ-ViT's recorded M, N, B against the spec's."""
    from intvit.spec import layernorm as spec

    found = []
    for row in case["x_int"].tolist():
        scaled = [x * f for x, f in zip(row, params.factor, strict=True)]
        inverse = spec.inverse_sqrt(len(row) * sum(x * x for x in scaled) - sum(scaled) ** 2)
        found.append([spec.fqvit_constants(sum(scaled), *inverse, j, params) for j in range(len(row))])
    for i, key in enumerate("MNB"):
        score.compare(f"{where} {key}", case[key], np.array(found)[..., i])


def replay_layernorm_shift(score: Score, where: str, case: Case, backend: str) -> None:
    score.compare(f"{where} shift", int(case["shift"]), ops.layernorm_shift(case["x_int"]))
    replay_layernorm("ibert")(score, where, case, backend)


def replay_log2_matmul(score: Score, where: str, case: Case, backend: str) -> None:
    y, scale = ops.log2_matmul(case["attn_log2_int"], case["v_int"], float(case["v_scale"]), backend=backend)
    score.compare(f"{where} y_int", case["y_int"], y)
    score.compare(f"{where} out_scale", case["out_scale"], scale)


def replay_quantize(method: str) -> Callable[[Score, str, Case, str], None]:
    def replay(score: Score, where: str, case: Case, backend: str) -> None:
        kind = str(case["kind"])
        if kind.startswith("weight"):
            codes, scale = ops.quantize_weight(case["w"], int(case.get("bits", np.array(8))), method=method)
            score.compare(f"{where} w_int", case["w_int"], codes)
            score.compare(f"{where} w_scale", case["w_scale"], scale)
            if "bias" in case:
                act_scale, bits = float(case["act_scale"]), int(case["bias_bits"])
                codes, scale = ops.quantize_bias(case["bias"], act_scale, scale, bits, method=method)
                score.compare(f"{where} bias_int", case["bias_int"], codes)
                score.compare(f"{where} bias_scale", case["bias_scale"], scale)
        else:
            options: dict[str, Any] = {"ptf": kind.endswith("ptf")}
            if "min_val" in case:
                options = {"bits": int(case["bits"])}
                options |= {"min_val": float(case["min_val"]), "max_val": float(case["max_val"])}
            result = ops.quantize_activation(case["x"], method=method, **options)
            for key, value in zip(("x_int", "scale", "zero_point", "ptf_factor"), result, strict=False):
                score.compare(f"{where} {key}", case[key].reshape(-1), np.asarray(value).reshape(-1))

    return replay


REPLAYS: dict[str, Callable[[Score, str, Case, str], None]] = {
    "dyadic_requant": replay_requantize,
    "fqvit_layernorm": replay_layernorm("fqvit"),
    "fqvit_log2_attn_v": replay_log2_matmul,
    "fqvit_logsoftmax": replay_softmax("fqvit"),
    "ibert_gelu": replay_gelu("ibert"),
    "ibert_layernorm_set_shift": replay_layernorm_shift,
    "ibert_layernorm": replay_layernorm("ibert"),
    "ibert_softmax": replay_softmax("ibert"),
    "ivit_gelu": replay_gelu("ivit"),
    "ivit_layernorm": replay_layernorm("ivit"),
    "ivit_softmax": replay_softmax("ivit"),
    "ivit_tvm_gelu": replay_gelu("ivit_tvm"),
    "ivit_tvm_layernorm": replay_layernorm("ivit_tvm"),
    "ivit_tvm_softmax": replay_softmax("ivit_tvm"),
    "quantize_fqvit": replay_quantize("fqvit"),
    "quantize_ibert": replay_quantize("ibert"),
    "quantize_ivit": replay_quantize("ivit"),
}
"""File name, or its beginning before `_<width or variant>`; the longest match counts."""


def replay_operator_file(score: Score, name: str, arrays: Case) -> None:
    key = max((k for k in REPLAYS if name == k or name.startswith(k + "_")), key=len, default=None)
    if key is None:
        score.problems.append("unknown kind of operator file")
        return
    score.cases = int(arrays["num_cases"])
    for i in range(score.cases):
        case = {k.removeprefix(f"case{i}_"): v for k, v in arrays.items() if k.startswith(f"case{i}_")}
        for backend in BACKENDS:
            REPLAYS[key](score, f"case {i} {backend}", case, backend)


# --------------------------------------------------------------------------------------------- folder


def replay_file(path: Path) -> Score:
    score = Score(path.name)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: np.asarray(file[key]) for key in file.files}
        if "meta" in arrays:
            from conformance_models import replay_model_file

            replay_model_file(score, arrays)
        elif "num_cases" in arrays:
            replay_operator_file(score, path.stem, arrays)
        else:
            score.problems.append("neither an operator file (num_cases) nor a model file (meta)")
    except Exception as error:
        score.problems.append(f"{type(error).__name__}: {error}")
    return score


def replay_folder(folder: Path) -> Iterator[Score]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".md", ".txt"):
            yield replay_file(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    args = parser.parse_args()
    scores = []
    for score in replay_folder(args.folder):
        scores.append(score)
        if not args.json:
            verdict = "equal" if score.ok else "DIFFERS"
            print(f"{score.file:32} {score.cases:4} cases {score.equal:9} of {score.elements:9} elements  {verdict}")
            for problem in score.problems[:5]:
                print(f"    {problem}")
    ok = bool(scores) and all(score.ok for score in scores)
    if args.json:
        print(json.dumps({"ok": ok, "files": [vars(score) | {"ok": score.ok} for score in scores]}))
    else:
        print(f"{len(scores)} files: {'every element equal in both backends' if ok else 'NOT EQUAL'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.exit(main())
