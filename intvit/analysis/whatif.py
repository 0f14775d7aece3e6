"""What a deviation of hardware does: the changed graph beside the golden one, on the same images.

Both run as one graph, in which what no change reaches is computed once; every tensor behind a change is held against
its golden twin when it is made, and forgotten. SQNR is of what the integers stand for, against the golden integers.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from intvit.analysis.inject import inject, matched
from intvit.analysis.injections import Injection
from intvit.analysis.outputs import MISSING, compared, labels_of, summary
from intvit.analysis.sqnr import LANES, decibel
from intvit.engine import DEFAULT_BATCH, Engine
from intvit.engine.batches import batches
from intvit.engine.trace import dequantize, in_flight
from intvit.files.records import plain
from intvit.graph.ir import LAYOUT_OPS, Array, Graph, IntGraph, Node, Tensor
from intvit.kernels.border import SIGNED, border
from intvit.kernels.cache import compiled
from intvit.mapping.rules import CONFIDENCE, interval, resamples

if TYPE_CHECKING:
    from intvit.floats.images import ImageSource

Progress = Callable[[int, int], None]
DIFFERENCE = np.dtype([(name, "<f8") for name in ("changed", "largest", "signal", "noise")])
"""Of one image: elements that differ, largest difference of integers (NaN both where the scales differ), sums
of squares of what the golden integers stand for and of the difference, real units."""


@dataclass(frozen=True)
class Range:
    """A statistic over images and its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Effect:
    """Of the output of one site, over all images. `changed`: share of its elements; None as in DIFFERENCE."""

    site: str
    operator: str
    injected: bool
    changed: float | None
    largest: float | None
    sqnr: float


@dataclass(frozen=True)
class Outputs:
    """Of the graph's first output: `changed` and `sqnr` as in Effect; classes where it has some.

    agreement: images of the golden class, its interval is exact (Clopper and Pearson); top1 with labels, of the changed
    graph, of the golden one, and the gain. The other intervals are by resamples of the images.
    """

    changed: Range | None
    sqnr: Range
    agreement: Range | None = None
    top1: float | None = None
    golden_top1: float | None = None
    gain: Range | None = None


@dataclass(frozen=True)
class Alone:
    """One matched site changed and all others golden."""

    effect: Effect
    outputs: Outputs


@dataclass(frozen=True)
class Findings:
    """`sites`: those behind a change, in execution order; `untouched`: how many others there are."""

    images: int
    sites: tuple[Effect, ...]
    untouched: int
    outputs: Outputs
    alone: tuple[Alone, ...]
    injected: dict[str, tuple[str, ...]]
    """Site -> what was injected there."""


def whatif(
    graph: IntGraph,
    source: ImageSource,
    injections: Sequence[Injection],
    *,
    isolated: bool = False,
    limit: int | None = None,
    batch: int = DEFAULT_BATCH,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Findings, IntGraph]:
    """(what the changes do on the images, the changed graph); `isolated`: every matched site by itself as well.

    Raises IntvitError for an injection that does not fit.
    """
    changed = inject(graph, injections)
    at: dict[str, tuple[str, ...]] = {}
    for injection in injections:
        for node in matched(graph, injection):
            at[node.name] = (*at.get(node.name, ()), injection.text)
    order = [node.name for node in graph.nodes if node.name in at]
    singles = order if isolated else []
    n_images = min(limit or len(source), len(source))
    total = n_images * (1 + len(singles))

    def measured(other: IntGraph, number: int, sites: Sequence[Node]) -> tuple[tuple[Effect, ...], Outputs]:
        def report(done: int, _: int) -> None:
            if progress:
                progress(number * n_images + done, total)

        found = compare(graph, other, source, [n.output for n in sites], n_images, batch, threads, report)
        effects = (_effect(node, found[0][node.output], graph, node.name in at) for node in sites)
        return tuple(effects), _outputs(graph, found)

    reached = reaches(graph, changed)
    sites = [node for node in graph.nodes if node.output in reached and node.op not in LAYOUT_OPS]
    effects, outputs = measured(changed, 0, sites)
    alone = []
    for i, name in enumerate(singles, 1):
        (effect,), its = measured(inject(graph, injections, only=name), i, [graph.node(name)])
        alone.append(Alone(effect, its))
    untouched = sum(node.op not in LAYOUT_OPS for node in graph.nodes) - len(sites)
    return Findings(n_images, effects, untouched, outputs, tuple(alone), {name: at[name] for name in order}), changed


def reaches(golden: IntGraph, changed: IntGraph) -> set[str]:
    """The tensors of the changed graph that are not those of the golden one: made by a changed node, or from such."""
    found: set[str] = set()
    for node in changed.nodes:
        if golden.by_name.get(node.name) is not node or found.intersection(node.inputs):
            found.add(node.output)
    return found


def paired(golden: IntGraph, changed: IntGraph) -> tuple[IntGraph, dict[str, str]]:
    """(both graphs in one, golden tensor -> its changed twin); what no change reaches is there once."""
    reached, twins = reaches(golden, changed), dict[str, str]()
    names = {*golden.tensors, *changed.tensors}
    for name in reached:
        twin = f"{name} (changed)"
        while twin in names:
            twin += "'"
        names.add(twin)
        twins[name] = twin
    taken, nodes, tensors = {node.name for node in golden.nodes}, list[Node](), dict(golden.tensors)
    for node in changed.nodes:
        if node.name in golden.by_name:
            nodes.append(golden.by_name[node.name])
        if node.output in reached:
            name = f"{node.name} (changed)"
            while name in taken:
                name += "'"
            taken.add(name)
            inputs = tuple(twins.get(each, each) for each in node.inputs)
            nodes.append(dataclasses.replace(node, name=name, inputs=inputs, output=twins[node.output]))
            tensors[twins[node.output]] = dataclasses.replace(changed.tensors[node.output], name=twins[node.output])
    outputs = tuple(dict.fromkeys(each for name in golden.outputs for each in (name, twins.get(name, name))))
    both = {name: twin for name, twin in twins.items() if name in golden.by_output}
    return Graph(golden.inputs, outputs, tuple(nodes), tensors, golden.metadata), both


def compare(
    golden: IntGraph,
    changed: IntGraph,
    source: ImageSource,
    names: Sequence[str],
    n_images: int,
    batch: int,
    threads: int | None,
    progress: Progress,
) -> tuple[dict[str, Array], Array]:
    """(tensor -> DIFFERENCE (N,) of those of `names` and of the first output, OUTCOME (N,)), golden for float."""
    pair, twins = paired(golden, changed)
    output = golden.outputs[0]
    kept = [*dict.fromkeys([*names, output])]
    other = {twins.get(name, name): name for name in kept}
    found = {name: np.zeros(n_images, DIFFERENCE) for name in kept}
    shape = golden.tensors[output].shape
    labels = labels_of(source, n_images, shape) if source.labels is not None and len(shape) == 1 else None
    outcome: list[Array] = []
    waiting: dict[tuple[int, str], Array] = {}

    def each(start: int, name: str, q: Array) -> Any:
        """Whichever twin is made first waits for the other."""
        key = (start, other.get(name, name))
        if key not in waiting and key[1] in twins:
            waiting[key] = q
            return None
        first = waiting.pop(key, q)
        one, two = (first, q) if name in other and key[1] in twins else (q, first)
        before, after = golden.tensors[key[1]], changed.tensors[key[1]]
        made = {"difference": differences(one, two, before, after)}
        if key[1] == output:
            real = [dequantize(x, t) for x, t in ((one, before), (two, after))]
            known = None if labels is None else labels[start : start + len(q)]
            made["outcome"] = compared(start, real[1], real[0], known)
        return made

    def sink(start: int, results: dict[str, Any]) -> None:
        for name, made in results.items():
            if made is not None:
                rows = made["difference"]
                found[other.get(name, name)][start : start + len(rows)] = rows
                stop = start + len(rows)
                if "outcome" in made:
                    outcome.append(made["outcome"])
        progress(stop, n_images)

    n_batch, n_threads = in_flight(pair, batch, threads or _cores())
    wanted = [each for name in kept for each in dict.fromkeys((name, twins.get(name, name)))]
    Engine(pair).stream(batches(source, n_images, n_batch), wanted, sink, threads=n_threads, each=each)
    return found, np.concatenate(outcome)


def _cores() -> int:
    import os

    return os.cpu_count() or 1


@border(
    golden=f"{SIGNED} B N", changed=f"{SIGNED} B N", scale="float64 L", count="float64 B", largest="float64 B",
    signal="float64 B", noise="float64 B",
)  # fmt: skip
@compiled
def _apart(golden, changed, scale, zero_point, count, largest, signal, noise):
    """Per image the elements that differ, the largest difference, and sums of x**2 and d**2 over (B, N).

    x = scale * (golden - zero_point), d = scale * (changed - golden); one partial sum per entry of `scale`, in turn.
    """
    lanes = len(scale)
    for b in range(golden.shape[0]):
        s, n, top = np.zeros(lanes), np.zeros(lanes), np.zeros(lanes)
        differ = 0
        for start in range(0, golden.shape[1], lanes):
            ones, twos = golden[b, start : start + lanes], changed[b, start : start + lanes]
            for j in range(len(ones)):
                one, two = np.int64(ones[j]), np.int64(twos[j])
                apart = two - one
                d = np.float64(apart)
                if ((one ^ two) & (apart ^ two)) < 0:  # beyond 64 bits
                    d = np.float64(two) - np.float64(one)
                x = np.float64(one - zero_point) * scale[j]
                s[j] += x * x
                n[j] += (d * scale[j]) ** 2
                top[j] = max(top[j], abs(d))
                differ += one != two
        count[b], largest[b], signal[b], noise[b] = differ, top.max(), s.sum(), n.sum()


def differences(golden: Array, changed: Array, before: Tensor, after: Tensor) -> Array:
    """DIFFERENCE (B,) of two tensors (B, ...)."""
    found = np.zeros(len(golden), DIFFERENCE)
    alike = before.encoding == after.encoding and np.array_equal(before.scale, after.scale)
    scale = np.asarray(before.scale, np.float64).reshape(-1) if alike else np.ones(1)
    scale = scale.repeat(LANES) if scale.size == 1 else np.ascontiguousarray(scale)
    one, two = (np.ascontiguousarray(q).reshape(len(q), -1) for q in (golden, changed))
    if one.dtype != two.dtype:
        one, two = one.astype(np.int64), two.astype(np.int64)
    sums = np.empty((4, len(golden)))
    _apart(one, two, scale, before.zero_point, *sums)
    found["changed"], found["largest"], found["signal"], found["noise"] = sums
    if not alike or before.encoding == "log2":
        axes, real = tuple(range(1, golden.ndim)), dequantize(golden, before)
        found["signal"] = np.sum(real * real, axis=axes)
        found["noise"] = np.sum((dequantize(changed, after) - real) ** 2, axis=axes)
    if not alike:
        found["changed"] = found["largest"] = math.nan
    return found


def _effect(node: Node, found: Array, graph: IntGraph, injected: bool) -> Effect:
    operator = ".".join(filter(None, (node.op, node.attrs.get("method"))))
    comparable, size = not np.isnan(found["changed"]).any(), math.prod(graph.tensors[node.output].shape)
    return Effect(
        node.name,
        operator,
        injected,
        float(found["changed"].sum() / (size * len(found))) if comparable else None,
        float(found["largest"].max()) if comparable else None,
        decibel(math.fsum(found["signal"]), math.fsum(found["noise"])),
    )


def _outputs(graph: IntGraph, found: tuple[dict[str, Array], Array]) -> Outputs:
    name = graph.outputs[0]
    rows, outcome = found[0][name], found[1]
    n, counts = len(rows), resamples(name, len(rows))
    total = counts.sum(axis=1)

    def ranged(value: float, values: Array) -> Range:
        return Range(value) if n < 2 else Range(value, *interval(values))

    changed = None
    if not np.isnan(rows["changed"]).any():
        shares = rows["changed"] / math.prod(graph.tensors[name].shape)
        changed = ranged(float(shares.mean()), counts @ shares / total)
    with np.errstate(divide="ignore", invalid="ignore"):
        decibels = 10 * np.log10((counts @ rows["signal"]) / (counts @ rows["noise"]))
    sqnr = decibel(math.fsum(rows["signal"]), math.fsum(rows["noise"]))
    result = Outputs(changed, ranged(sqnr, decibels) if math.isfinite(sqnr) else Range(sqnr))
    said = summary(outcome)
    if "agreement" in said:
        same = int(np.count_nonzero(outcome["integer_class"] == outcome["float_class"]))
        result = dataclasses.replace(result, agreement=Range(same / n, *binomial(same, n)))
    if outcome["label"][0] != MISSING:
        gains = np.subtract(*(1.0 * (outcome[f"{key}_class"] == outcome["label"]) for key in ("integer", "float")))
        gain = ranged(float(gains.mean()), counts @ gains / total)
        result = dataclasses.replace(result, top1=said["integer"], golden_top1=said["float"], gain=gain)
    return result


def binomial(k: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval (Clopper and Pearson) of a share of which k of n were seen.

    >>> [round(end, 4) for end in binomial(1000, 1000)]
    [0.9963, 1.0]
    """
    rest = (1 - confidence) / 2

    def at_most(j: int, p: float) -> float:
        """P(X <= j), X of n with the share p."""
        if j < 0 or p >= 1:
            return 0.0 if j < 0 or j < n else 1.0
        if p <= 0 or j >= n:
            return 1.0
        logs = (
            math.lgamma(n + 1)
            - math.lgamma(i + 1)
            - math.lgamma(n - i + 1)
            + i * math.log(p)
            + (n - i) * math.log1p(-p)
            for i in range(j + 1)
        )
        return math.fsum(math.exp(each) for each in logs)

    def solved(j: int, wanted: float) -> float:
        """The share at which P(X <= j) is `wanted`; it falls with the share."""
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if at_most(j, middle) > wanted else (low, middle)
        return (low + high) / 2

    return (0.0 if k == 0 else solved(k - 1, 1 - rest)), (1.0 if k == n else solved(k, rest))


# ------------------------------------------------------------------------------------- for others to read


def as_json(found: Findings) -> dict[str, Any]:
    """Everything, as JSON values; SQNR without noise is None."""
    return cast(dict[str, Any], plain(json.loads(json.dumps(dataclasses.asdict(found)))))


COLUMNS = ("run", "site", "operator", "injected", "changed", "largest", "sqnr", "outputs_changed", "outputs_sqnr",
           "agreement", "agreement_low", "agreement_high", "top1", "golden_top1")  # fmt: skip


def records(found: Findings) -> Iterator[dict[str, Any]]:
    """A line per site of the run of `all` changes, then one per site that was changed alone; blank: does not apply."""
    runs = [("all", effect, None) for effect in found.sites]
    for i, (run, effect, outputs) in enumerate(
        [*runs, *(("alone", each.effect, each.outputs) for each in found.alone)]
    ):
        shown = found.outputs if outputs is None and i == len(runs) - 1 else outputs
        values = {"run": run, **dataclasses.asdict(effect), "injected": "; ".join(found.injected.get(effect.site, ()))}
        if shown is not None:
            values |= {"outputs_changed": _value(shown.changed), "outputs_sqnr": shown.sqnr.value}
            if shown.agreement is not None:
                ends = {f"agreement_{end}": getattr(shown.agreement, end) for end in ("low", "high")}
                values |= {"agreement": shown.agreement.value, **ends}
            values |= {"top1": shown.top1, "golden_top1": shown.golden_top1}
        yield {name: "" if values.get(name) is None else values[name] for name in COLUMNS}


HEADERS = ("site", "operator", "injected", "changed", "largest", "SQNR, dB")
ALONE_HEADERS = ("site", "injected", "changed", "dB", "logits changed", "logits dB", "same class", "top-1")


def rows(found: Findings) -> Iterator[list[str]]:
    """One per site behind a change."""
    for each in found.sites:
        largest = "" if each.largest is None else f"{each.largest:,.0f}"
        injected = _changes(found, each.site)
        yield [each.site, each.operator, injected, _percent(each.changed), largest, _decibels(each.sqnr)]


def alone_rows(found: Findings) -> Iterator[list[str]]:
    """One per site that was changed alone."""
    for each in found.alone:
        effect, outputs = each.effect, each.outputs
        yield [
            effect.site, _changes(found, effect.site), _percent(effect.changed), _decibels(effect.sqnr),
            _percent(_value(outputs.changed)), _decibels(outputs.sqnr.value),
            _percent(_value(outputs.agreement)), _percent(outputs.top1),
        ]  # fmt: skip


def lines(found: Findings) -> Iterator[str]:
    """What matters, in words."""
    outputs, differ = found.outputs, sum(each.changed != 0 for each in found.sites)
    what = f"{len(found.injected)} sites changed" if len(found.injected) > 1 else "1 site changed"
    yield f"{what}: the outputs of {differ} of {len(found.sites) + found.untouched} sites differ"
    changed = f"{_percent(outputs.changed.value)} of the elements changed, " if outputs.changed else ""
    power = f"SQNR against golden {outputs.sqnr.value:.1f} dB{_interval(outputs.sqnr, '{:.1f}')}"
    yield f"outputs: {'every element equal' if outputs.sqnr.value == math.inf else changed + power}"
    if outputs.agreement:
        yield f"same class as golden: {_percent(outputs.agreement.value)}{_interval(outputs.agreement, '{:.2%}')}"
    if outputs.gain and outputs.top1 is not None and outputs.golden_top1 is not None:
        yield (
            f"top-1: {outputs.top1:.2%}, golden {outputs.golden_top1:.2%}: {100 * outputs.gain.value:+.2f} points"
            f"{_interval(outputs.gain, '{:+.2f}', 100)}"
        )


def _changes(found: Findings, site: str) -> str:
    return "; ".join(text.rpartition(":")[2] for text in found.injected.get(site, ()))


def _interval(found: Range, form: str, factor: float = 1) -> str:
    if found.low is None or found.high is None:
        return ""
    return f", 95 % interval {form.format(factor * found.low)} to {form.format(factor * found.high)}"


def _value(found: Range | None) -> float | None:
    return None if found is None else found.value


def _percent(share: float | None) -> str:
    """
    >>> _percent(0.5), _percent(1e-6), _percent(1 - 1e-6), _percent(1.0)
    ('50.00%', '<0.01%', '>99.99%', '100.00%')
    """
    if share is None:
        return ""
    if 0 < share < 5e-5:
        return "<0.01%"
    return ">99.99%" if 1 - 5e-5 < share < 1 else f"{share:.2%}"


def _decibels(value: float) -> str:
    return "equal" if value == math.inf else f"{value:.1f}"
