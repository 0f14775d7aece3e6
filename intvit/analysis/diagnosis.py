"""Why an integer model loses what it loses: what each rounding and operator costs, what is out of range, what mends it.

Losses are measured on an emulation in which parts are switched one at a time; what a line of a recipe gains is measured
on the integers themselves.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from intvit.analysis.emulation import OPERATOR, ROUNDING, WEIGHTS, Emulation, Part, flipped, quantized
from intvit.analysis.observers import judging
from intvit.analysis.outputs import outcomes, summary
from intvit.analysis.sqnr import decibel
from intvit.errors import Infeasible, IntvitError
from intvit.files.records import plain
from intvit.floats.live import LiveActivations
from intvit.graph import operators
from intvit.graph.ir import Array, FloatGraph, IntGraph, Node
from intvit.graph.parameters import method_params, node_method
from intvit.kernels import registry
from intvit.lowering import widths
from intvit.lowering.calibrate import Calibration, calibrate, stated, trained
from intvit.lowering.context import lower, lower_feasible
from intvit.lowering.recipe import EQUALIZE, OBSERVERS, STAND_IN, Choice, Recipe, build_recipe
from intvit.spec.taps import listening

Progress = Callable[[int, int], None]
N_IMAGES = 32
"""To calibrate and to judge on."""
SAMPLED_ROWS = 24
"""Of the input of an operator, that its specification is asked about."""
OUTLIER = 16.0
"""Largest range of a channel over the median one: the codes of most channels lack four bits."""
SATURATED = 1e-3
"""Share of values beyond the range of a quantizer."""
ONE_SIDED = 0.25
"""A range whose one side is below this part of the other wastes codes, where there is no zero point."""
WORST = 3
"""Single sites of each sort, for which lines of a recipe are tried."""


@dataclass(frozen=True)
class Loss:
    """What a part costs, or together all `n_parts` parts of a kind; `site` is empty then.

    alone: SQNR of the outputs if nothing else is quantized, dB. gain: by how much the SQNR of the integer model rises
    if this is left float, dB, and `error`, its standard error over images (jackknife); NaN for a rounding that
    operators alone read, as they compute with integers.
    """

    what: str
    site: str
    kind: str
    detail: str
    n_parts: int
    alone: float
    gain: float
    error: float


@dataclass(frozen=True)
class Finding:
    """A site at which a rule is broken, what was found there, and the line of a recipe that is for such cases."""

    site: str
    rule: str
    found: str
    line: str | None = None


@dataclass(frozen=True)
class Remedy:
    """A line of a recipe, and the SQNR of the model with it, dB; `refused`: why there is none."""

    line: str
    sqnr: float | None
    gain: float | None
    refused: str | None = None


@dataclass(frozen=True)
class Sweep:
    """All quantizers of a kind at another width: SQNR of the model, dB; `refused`: why there is none."""

    kind: str
    key: str
    bits: int
    sqnr: float | None
    refused: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """`sqnr`: of the outputs of the integer model as it was asked for, dB; None where it cannot be made as asked, and
    losses are of the model in which other methods stand in."""

    n_images: int
    n_sampled: int
    sqnr: float | None
    emulated: float
    losses: list[Loss]
    findings: list[Finding]
    remedies: list[Remedy] = field(default_factory=list)
    sweeps: list[Sweep] = field(default_factory=list)

    @property
    def kinds(self) -> list[Loss]:
        """What all parts of a kind cost together, the largest gain first."""
        return [loss for loss in self.losses if not loss.site]

    @property
    def parts(self) -> list[Loss]:
        return [loss for loss in self.losses if loss.site]

    def as_json(self) -> dict[str, Any]:
        return {"format": "intvit.diagnosis", "version": 1, **plain(asdict(self))}


def diagnose(
    graph: FloatGraph,
    live: LiveActivations,
    recipe: Recipe,
    *,
    sample: int | None = None,
    attempts: bool = True,
    sweep: Collection[int] = (),
    threads: int | None = None,
    progress: Callable[[str], Any],
) -> Diagnosis:
    """Diagnose the model that `lower` makes of a recipe, calibrated on the images of `live`; those judge it too.

    Parts are switched on the first `sample` of them (left out: enough for 1,000 output values, 2 to 32). `attempts`:
    try lines of recipes. `sweep`: widths that the quantizers of every kind are given. progress(title): a context that
    gives a function of (done, all).
    """
    n_images = live.n_images
    n_sampled = min(sample or judging(graph, n_images), n_images)
    fixed, known = bool(graph.metadata.get("trained")), dict[Any, Calibration]()
    floats: dict[int, Array] = {}

    def calibrated(recipe: Recipe) -> Calibration:
        key = _calibrated_by(graph, recipe)
        if key not in known:
            known[key] = trained(graph) if fixed else calibrate(graph, live, recipe)
        return known[key]

    def sqnr(integer: IntGraph) -> float:
        found = outcomes(integer, live.images, live.model, limit=n_images, threads=threads, floats=floats)
        return float(summary(found).get("sqnr", math.nan))

    calibration, findings = calibrated(recipe), []
    feasible, integer, refused = _feasible(graph, calibration, recipe)
    for error in refused:
        line = f"quantizers.{graph.node(error.site).op}.input_bits = 16"
        findings.append(Finding(error.site, "the method must be defined here", error.why, line))
    sampled = live.images.read(0, n_sampled)
    samples = calibration.samples if feasible.corrects_bias else {}
    emulation = Emulation(graph, integer, live.model, sampled, samples)
    with progress("losses") as report:
        emulated, losses = measured_losses(emulation, sampled, report)
    findings += broken_rules(emulation, sampled, feasible)
    if fixed:
        findings = [replace(finding, line=None) for finding in findings]

    def tried(line: str) -> tuple[float | None, str | None]:
        try:
            changed = with_line(recipe, line)
            return sqnr(lower(graph, calibrated(changed), changed)), None
        except IntvitError as error:
            return None, str(error)

    base = sqnr(integer)
    remedies: list[Remedy] = []
    if attempts:
        lines = list(dict.fromkeys(_lines(graph, recipe, losses, fixed)))
        with progress("recipes") as report:
            for i, line in enumerate(lines):
                value, why = tried(line)
                remedies.append(Remedy(line, value, None if value is None else value - base, why))
                report(i + 1, len(lines))
        remedies.sort(key=lambda r: -math.inf if r.gain is None else r.gain, reverse=True)
    sweeps: list[Sweep] = []
    swept = [(kind, key, bits) for kind, key in _swept(graph, fixed) for bits in sorted(set(sweep))]
    if swept:
        with progress("widths") as report:
            for i, (kind, key, bits) in enumerate(swept):
                sweeps.append(Sweep(kind, key, bits, *tried(f"quantizers.{kind}.{key} = {bits}")))
                report(i + 1, len(swept))
    return Diagnosis(n_images, n_sampled, None if refused else base, emulated, losses, findings, remedies, sweeps)


def _swept(graph: FloatGraph, fixed: bool) -> Iterator[tuple[str, str]]:
    """Kinds of operators and the widths that they have."""
    for kind in dict.fromkeys(node.op for node in graph.nodes) if not fixed else ():
        if kind == "linear":
            yield kind, "weight_bits"
        if kind in (*operators.named("product"), *operators.with_methods()):
            yield kind, "input_bits"


def _calibrated_by(graph: FloatGraph, recipe: Recipe) -> Any:
    """What of a recipe a calibration depends on."""
    equalized = [recipe.quantizer(node.op, node.name).equalize for node in graph.nodes if node.op in operators.norms()]
    tensors = {name: stated(graph, recipe, name, "observer") for name in widths.quantizer_bits(graph, recipe)}
    return recipe.observer, recipe.corrects_bias, tuple(equalized), tuple(tensors.items())


def _feasible(graph: FloatGraph, calibration: Calibration, recipe: Recipe) -> tuple[Recipe, IntGraph, list[Infeasible]]:
    """The recipe with a method that is defined wherever the asked one is not, its graph, and what was refused."""

    def stand_in(refused: list[Infeasible]) -> Choice:
        if len(refused) > 1 or graph.node(refused[-1].site).op not in operators.with_methods():
            raise refused[-1]
        return Choice(method=STAND_IN)

    integer, feasible, refused = lower_feasible(graph, calibration, recipe, stand_in)
    return feasible, integer, [error for (error,) in refused.values()]


# --------------------------------------------------------------------------------------------- losses


def measured_losses(emulation: Emulation, images: Array, report: Progress) -> tuple[float, list[Loss]]:
    """(SQNR with everything on, losses of kinds and then of parts, each with the largest gain first)."""
    every = list(dict.fromkeys(emulation.parts.values()))
    groups: dict[tuple[str, str], list[Part]] = {}
    for part in every:
        groups.setdefault((part.what, part.kind), []).append(part)
        groups.setdefault((part.what, "all"), []).append(part)
    flips = {frozenset(parts): parts for parts in groups.values()}  # all parts of a sort may be of one kind
    real = emulation.outputs(images, lambda part: False).astype(np.float64)
    total, done = 2 * (1 + len(every) + len([flip for flip in flips if len(flip) > 1])), 0
    noise: dict[tuple[bool, Any], Array] = {}

    def noted(key: Any, found: Array) -> None:
        nonlocal done
        noise[key] = np.sum((found - real) ** 2, axis=tuple(range(1, real.ndim)))
        done += 1
        report(done, total)

    for on in (False, True):
        noted((on, None), emulation.outputs(images, flipped(on, ())))
        for flip in flips:
            if len(flip) > 1:
                noted((on, flip), emulation.outputs(images, flipped(on, flip)))
        first = emulation.parts[emulation.integer.inputs[0]]
        noted((on, frozenset([first])), emulation.outputs(images, flipped(on, (first,))))
        for at, node, state in emulation.walk(images, flipped(on, ())):
            if node.name in emulation.parts:
                part = emulation.parts[node.name]
                noted((on, frozenset([part])), emulation.finish(state, at, flipped(on, (part,))))
    computing = {part.kind for part in every if part.what == OPERATOR}
    signal = np.sum(real**2, axis=tuple(range(1, real.ndim)))

    def loss(parts: Collection[Part], site: str, kind: str, detail: str) -> Loss:
        flip, what = frozenset(parts), next(iter(parts)).what
        powers, alone = (noise[True, None], noise[True, flip]), _decibel(signal, noise[False, flip])
        operated = what == ROUNDING and set(kind.split("+")) <= computing
        gain, error = (math.nan, math.nan) if operated else (_decibel(*powers), _error(*powers))
        return Loss(what, site, kind, detail, len(flip), alone, gain, error)

    kinds = [loss(parts, "", kind, _common(parts)) for (_, kind), parts in groups.items()]
    singles = [loss([part], part.site, part.kind, part.detail) for part in every]
    order = [sorted(found, key=lambda each: -math.inf if math.isnan(each.gain) else each.gain, reverse=True)
             for found in (kinds, singles)]  # fmt: skip
    return _decibel(signal, noise[True, None]), order[0] + order[1]


def _decibel(over: Array, under: Array) -> float:
    """10 log10 of the ratio of the sums of two powers per image, dB."""
    return decibel(float(np.sum(over)), float(np.sum(under)))


def _error(over: Array, under: Array) -> float:
    """Standard error of `_decibel` over images, by leaving out one after the other; NaN for one image."""
    n = len(over)
    values = [_decibel(np.delete(over, i), np.delete(under, i)) for i in range(n)]
    if n < 2 or not np.isfinite(values).all():
        return math.nan
    return float(np.sqrt((n - 1) * np.var(values)))


def _common(parts: Collection[Part]) -> str:
    return ", ".join(sorted({part.detail for part in parts}))


# ------------------------------------------------------------------------------------------- findings


def broken_rules(emulation: Emulation, images: Array, recipe: Recipe) -> list[Finding]:
    """Quantizers that do not fit the float values, operators that meet integers for which they were not made."""
    found: list[Finding] = []
    for _, node, state in emulation.walk(images, lambda part: False):
        part = emulation.parts.get(node.name)
        tensor = emulation.integer.tensors[node.output]
        alone = len(node.inputs) == 1 and ("residual" not in node.arrays or tensor.zero_point)
        if part and part.what == ROUNDING and alone:
            found += _of_rounding(emulation, node, part, state[node.inputs[0]], recipe)
    for _, node, state in emulation.walk(images, lambda part: True):
        if "method" in node.attrs:
            found += _of_operator(emulation, node, state[node.inputs[0]])
    return found


def _of_rounding(emulation: Emulation, node: Node, part: Part, x: Array, recipe: Recipe) -> Iterator[Finding]:
    """Saturation; of what linear operators read unused codes and outlier channels."""
    tensor, graph = emulation.integer.tensors[node.output], emulation.graph
    codes = np.rint(x / tensor.scale) + tensor.zero_point
    beyond = float(np.mean((codes < tensor.dtype.min) | (codes > tensor.dtype.max)))
    if beyond > SATURATED:
        line = None if recipe.observer.kind == "minmax" else 'observer.kind = "minmax"'
        yield Finding(part.site, f"at most {SATURATED:.1%} of the values must saturate", f"{beyond:.1%}", line)
    readers = {node.op for node in widths.readers(graph, part.site)}
    if np.ndim(tensor.scale) or tensor.dtype.bits > widths.WIDEST_OPERAND or x.ndim < 3:
        return
    if readers == {"linear"}:
        low, high = float(x.min()), float(x.max())
        if min(-low, high) < ONE_SIDED * max(-low, high) and not tensor.zero_point:
            yield Finding(
                part.site, "a range of one sign must have a zero point", f"{low:.3g}..{high:.3g}",
                "quantizers.linear.zero_point = true",
            )  # fmt: skip
        tops = np.abs(x).reshape(-1, x.shape[-1]).max(axis=0)
        ratio = float(tops.max() / max(np.median(tops), 1e-30))
        if ratio > OUTLIER:
            maker = _norm_before(graph, part.site)
            line = None if maker is None else f"quantizers.{maker}.equalize = {EQUALIZE}"
            yield Finding(
                part.site, f"no channel must be more than {OUTLIER:.0f} times as large as the median one",
                f"channel {int(tops.argmax())} is {ratio:.0f} times as large", line,
            )  # fmt: skip


def _norm_before(graph: FloatGraph, name: str) -> str | None:
    """The kind of the norm that makes a tensor, through layout moves."""
    node = graph.by_output.get(name)
    while node is not None and widths.moves_no_bit(node) and len(node.inputs) == 1:
        node = graph.by_output.get(node.inputs[0])
    return node.op if node is not None and node.op in operators.norms() else None


def _of_operator(emulation: Emulation, node: Node, x: Array) -> Iterator[Finding]:
    """Rows for which the method was not made, by the specification's own intermediates."""
    method = node_method(node)
    if method.outside is None:
        return
    rows = quantized(x, emulation.integer.tensors[node.inputs[0]]).reshape(-1, x.shape[-1])
    at = np.unique(np.linspace(0, len(rows) - 1, SAMPLED_ROWS).round().astype(int))
    mask, params = node.arrays.get("mask"), method_params(node)
    hidden = None if mask is None else np.broadcast_to(mask, x.shape).reshape(rows.shape)[at].astype(bool).tolist()
    broken: dict[str, int] = {}
    for i, row in enumerate(rows[at].tolist()):
        with listening() as taps:
            method.spec(row, params) if hidden is None else method.spec(row, params, hidden[i])
        if (rule := method.outside(params, taps)) is not None:
            broken[rule] = broken.get(rule, 0) + 1
    line = (
        f"quantizers.{node.op}.input_bits = 16" if emulation.integer.tensors[node.inputs[0]].dtype.bits < 16 else None
    )
    for rule, count in broken.items():
        yield Finding(node.name, f"{method.id}: {rule}", f"{count} of {len(at)} rows", line)


# ------------------------------------------------------------------------------------------- remedies


def with_line(recipe: Recipe, line: str) -> Recipe:
    """The recipe with one line of TOML more; methods replace what stands there, everything else joins it.

    >>> with_line(build_recipe({}), 'gelu = { method = "ibert", n = "least" }').gelu.options
    {'n': 'least'}
    """
    values = recipe.model_dump(exclude_none=True, exclude_unset=True)
    for key, value in tomllib.loads(line).items():
        if key == "sites":
            values[key] = {**values.get(key, {}), **value}
        elif key in ("quantizers", "observer"):
            values[key] = _joined(values.get(key, {}), value)
        else:
            values[key] = value
            if key in operators.with_methods():
                values["sites"] = {}
    return build_recipe(values, line)


def _joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return old | {
        key: _joined(old[key], value) if isinstance(value, dict) and isinstance(old.get(key), dict) else value
        for key, value in new.items()
    }


def _lines(graph: FloatGraph, recipe: Recipe, losses: list[Loss], fixed: bool) -> Iterator[str]:
    """Lines that may mend something, of kinds of operators first; `fixed`: the quantizers came with the weights."""
    kinds = list(dict.fromkeys(node.op for node in graph.nodes if node.op in operators.with_methods()))
    for kind in kinds:
        sites = [node.name for node in graph.nodes if node.op == kind]
        for choice in _methods(kind):
            if any(recipe.choice(kind, site).method != choice["method"] for site in sites):
                yield f"{kind} = {_inline(choice)}"
    if fixed:
        return
    if recipe.preset != "accurate":
        yield 'preset = "accurate"'
    if not recipe.slope_correction:
        yield f"bias_correction = {str(not recipe.corrects_bias).lower()}"
    if recipe.corrects_bias:
        yield f"slope_correction = {str(not recipe.slope_correction).lower()}"
    for kind in kinds:
        if any((recipe.quantizer(kind, n.name).input_bits or 0) < 16 for n in graph.nodes if n.op == kind):
            yield f"quantizers.{kind}.input_bits = 16"
        if kind in operators.norms() and recipe.quantizer(kind, kind).equalize is None:
            yield f"quantizers.{kind}.equalize = {EQUALIZE}"
    if not recipe.quantizer("linear", "linear").zero_point:
        yield "quantizers.linear.zero_point = true"
    for key, most in (("bits", 8), ("residual_bits", 16), ("softmax_bits", 16), ("log2_bits", 4)):
        if getattr(recipe, key) < most:
            yield f"{key} = {most}"
    for observer in OBSERVERS:
        if observer != recipe.observer.kind:
            yield f'observer.kind = "{observer}"'
    yield from _single_lines(graph, recipe, [loss for loss in losses if loss.site])


def _methods(kind: str) -> Iterator[dict[str, Any]]:
    for name in dict.fromkeys(m.name for m in registry.methods(kind) if not m.informative):
        yield {"method": name, **registry.get(kind, name).accurate.options}


def _single_lines(graph: FloatGraph, recipe: Recipe, losses: list[Loss]) -> Iterator[str]:
    """For the parts that cost most: another method, more bits."""
    for what in (OPERATOR, WEIGHTS, ROUNDING):
        for loss in [loss for loss in losses if loss.what == what and loss.gain > 0][:WORST]:
            if what == OPERATOR and loss.kind in operators.with_methods():
                for choice in _methods(loss.kind):
                    if choice["method"] != recipe.choice(loss.kind, loss.site).method:
                        yield f'sites."{loss.site}" = {_inline(choice)}'
            elif what == WEIGHTS and recipe.bits < widths.WIDEST_OPERAND:
                yield f'quantizers."{loss.site}".weight_bits = {widths.WIDEST_OPERAND}'
            elif what == ROUNDING:
                for reader in widths.readers(graph, loss.site):
                    most = widths.WIDEST_OPERAND if reader.op in operators.named("product") else 16
                    if reader.op != "add" and int(loss.detail.split()[0]) < most:
                        yield f'quantizers."{reader.name}".input_bits = {most}'


def _inline(choice: dict[str, Any]) -> str:
    return "{ " + ", ".join(f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
                            for key, value in choice.items()) + " }"  # fmt: skip
