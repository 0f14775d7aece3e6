"""Directed stimuli of sums of products, linear, matmul and log2_matmul, and of what only moves elements.

A sum of products has no rounding: its classes are the reach of its accumulator, every length of a sum, both ends of
every operand, and where a narrow accumulator has a policy the sums beside the ends of its word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from intvit.graph.ir import Array, IntGraph, Node
from intvit.graph.operators.accumulators import may_act, numerics_of
from intvit.proofs.claims import EXACT
from intvit.proofs.walk import RULES, Known, declared, facts_of
from intvit.spec.matmul import LOG2_FRACTION_BITS
from intvit.vectors.directed.cover import cover
from intvit.vectors.directed.coverage import HIT, MISSED, UNREACHABLE, Class, Coverage, Directed, Signal
from intvit.vectors.directed.place import limits_of, stored
from intvit.vectors.directed.shapes import Row, seeded
from intvit.vectors.directed.stream import Stream
from intvit.vectors.part import run

SEEDED = 64
MOST_OUTPUTS = 4096
"""Outputs for whose extremes rows are made at level 2."""
MOST_PAIRS = 96
MOST_TRIED = 96
"""Outputs for which a row of a stated sum is looked for."""
Index = tuple[int, ...]


@dataclass(frozen=True)
class Ends:
    """The least and largest sum, whether they are attained, and the word that a policy narrows them to."""

    low: int
    high: int
    exact: bool
    word: tuple[int, int] | None
    policy: str


def ends_of(part: IntGraph, node: Node) -> tuple[Ends, tuple[Signal, ...]]:
    inputs, output = [part.tensors[name] for name in node.inputs], part.tensors[node.output]
    plain = Node(node.op, node.name, node.inputs, node.output, {}, node.arrays)
    facts = facts_of(plain, [Known(declared(x)) for x in inputs], inputs, output, RULES, {})
    assert facts.y is not None
    how, word = numerics_of(node), None
    bits = how.accumulator_bits
    whole = facts.y.hull
    if bits is not None and may_act(node, max(abs(whole.low), abs(whole.high))):
        word = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    signals = tuple(Signal(name, (i.low, i.high), how_, None) for name, (i, how_) in facts.signals.items())
    return Ends(whole.low, whole.high, facts.y_how == EXACT, word, how.accumulator), signals


def reach(weight: Sequence[int], low: int, high: int, target: int) -> Row | None:
    """x in low..high with sum of weight * x = target, or None where greedy choice, large weights first, finds none."""
    x = [min(max(0, low), high)] * len(weight)
    left = target - sum(w * v for w, v in zip(weight, x, strict=True))
    for k in sorted(range(len(weight)), key=lambda k: (-abs(weight[k]), k)):
        if not weight[k]:
            continue
        goal = x[k] + int(left / weight[k]) if abs(left) < 1 << 52 else x[k] + left // weight[k]
        moved = min(max(goal, low), high)
        left -= weight[k] * (moved - x[k])
        x[k] = moved
    return x if not left else None


# ------------------------------------------------------------------------------------------- classes


def sum_classes(sums: Array, ends: Ends) -> Iterator[tuple[str, Array]]:
    """(class, where it is hit) of exact sums (..., O), before any policy."""
    yield "sum: 0", sums == 0
    yield "sum: least", sums == ends.low
    yield "sum: largest", sums == ends.high
    lengths = _lengths(sums)
    for bits in range(1, max(abs(ends.low), abs(ends.high)).bit_length() + 1):
        yield f"sum: positive of {bits} bits", (sums > 0) & (lengths == bits)
        yield f"sum: negative of {bits} bits", (sums < 0) & (lengths == bits)
    if ends.word:
        low, high = ends.word
        yield "accumulator above: last inside", sums == high
        yield "accumulator above: first past", sums == high + 1
        yield "accumulator above: far past", sums > high + (high >> 3)
        yield "accumulator below: last inside", sums == low
        yield "accumulator below: first past", sums == low - 1
        yield "accumulator below: far past", sums < low + (low >> 3)


def _lengths(values: Array) -> Array:
    """Bit lengths of magnitudes below 2**62."""
    left, found = np.abs(values), np.zeros(values.shape, np.int64)
    for k in (32, 16, 8, 4, 2, 1):
        big = left >> k != 0
        found += np.where(big, k, 0)
        left = np.where(big, left >> k, left)
    return found + (left != 0)


def _impossible(name: str, ends: Ends) -> str:
    """Why a class of sums cannot be hit, if its interval says so."""
    low, high = ends.low, ends.high
    if " bits" in name:
        bits, sign = int(name.split()[-2]), 1 if "positive" in name else -1
        most = high if sign > 0 else -low
        if most < 1 << (bits - 1):
            return f"proven: sums lie in {low}..{high} (intvit prove)"
    if name.endswith("past") and ends.word:
        if ends.policy == "raise":
            return "the policy refuses an image with such a sum"
        if ("above" in name and high <= ends.word[1]) or ("below" in name and low >= ends.word[0]):
            return f"proven: sums lie in {low}..{high} (intvit prove)"
    return ""


# -------------------------------------------------------------------------------------------- linear


@dataclass(frozen=True)
class Linear:
    weight: Array
    bias: Array
    low: int
    high: int
    ends: Ends

    def sums(self, x: Array) -> Array:
        """(..., K) -> (..., O), exact."""
        return np.asarray(x.astype(np.int64) @ self.weight.T + self.bias)

    def classes(self, x: Array) -> Iterator[tuple[str, Array]]:
        """(class, where it is hit) of rows (R, K): masks (R, O) or (R, 1)."""
        sums = self.sums(x)
        yield from sum_classes(sums, self.ends)
        yield "x: all 0, the bias alone", (x == 0).all(axis=1, keepdims=True)
        yield "x: all least", (x == self.low).all(axis=1, keepdims=True)
        yield "x: all largest", (x == self.high).all(axis=1, keepdims=True)
        yield "x: one-hot", ((x != 0).sum(axis=1, keepdims=True) == 1)
        yield "x: first element alone", ((x[:, 1:] == 0).all(axis=1) & (x[:, 0] != 0))[:, None]
        yield "x: last element alone", ((x[:, :-1] == 0).all(axis=1) & (x[:, -1] != 0))[:, None]
        if x.shape[1] > 1:
            half = x.shape[1] // 2
            first = x[:, :half].astype(np.int64) @ self.weight.T[:half]
            for sign, word in ((1, "above"), (-1, "below")):
                fall = sign * first - np.abs(sums)
                yield f"partial sum furthest {word} the sum", fall == fall.max(initial=0)

    def candidates(self, stream: Stream, level: int) -> Iterator[Row]:
        low, high, depth = self.low, self.high, self.weight.shape[1]
        zero, one = min(max(0, low), high), min(max(1, low), high)
        for value in dict.fromkeys((zero, low, high, one, max(low, -1))):
            yield [value] * depth
        for at in dict.fromkeys((0, depth - 1, *((range(depth)) if level > 1 else ()))):
            for peak in (low, high, one):
                row = [zero] * depth
                row[at] = peak
                yield row
        up = np.where(self.weight > 0, high, np.where(self.weight < 0, low, zero))
        down = np.where(self.weight > 0, low, np.where(self.weight < 0, high, zero))
        tops = [int(v) for v in np.argsort(-self._attained(up), kind="stable")]
        bottoms = [int(v) for v in np.argsort(self._attained(down), kind="stable")]
        most = min(len(tops), MOST_OUTPUTS) if level > 1 else 1
        for o in tops[:most]:
            yield up[o].tolist()
        for o in bottoms[:most]:
            yield down[o].tolist()
        yield from self._beside(tops[:3], bottoms[:3])
        half = depth // 2
        for o in (*tops[:2], *bottoms[:2]):
            for ends in (up, down):
                first, (before, after) = ends[o, :half].tolist(), np.split(self.weight[o], [half])
                left = -int(self.bias[o]) - int((before * first).sum())
                back = reach(after.tolist(), low, high, left)
                other = down if ends is up else up
                yield [*first, *(other[o, half:].tolist() if back is None else back)]
        for k in range((high - low).bit_length()):
            yield [v >> k if v >= 0 else -(-v >> k) for v in up[tops[0]].tolist()]
            yield [v >> k if v >= 0 else -(-v >> k) for v in down[bottoms[0]].tolist()]
        yield from self._small()
        for _ in range(SEEDED * level):
            yield seeded(depth, low, high, stream)

    def _attained(self, x: Array) -> Array:
        """What each output makes of its own row of x (O, K)."""
        return np.asarray((x.astype(np.int64) * self.weight).sum(axis=1) + self.bias)

    def _beside(self, tops: Sequence[int], bottoms: Sequence[int]) -> Iterator[Row]:
        """At the ends of a narrow accumulator, and one past."""
        if self.ends.word is None:
            return
        low, high = self.ends.word
        for outputs, targets in ((tops, (high, high + 1)), (bottoms, (low, low - 1))):
            for o in outputs:
                for target in targets:
                    row = reach(self.weight[o].tolist(), self.low, self.high, target - int(self.bias[o]))
                    if row is not None:
                        yield row

    def _small(self) -> Iterator[Row]:
        """Sums of 0 and of every short length, of the first output that has one."""
        order = np.argsort(np.abs(self.bias), kind="stable").tolist()
        for k in range(max(abs(self.ends.low), abs(self.ends.high)).bit_length()):
            for target in (1 << k, -(1 << k), (1 << k) + (1 << k >> 1), -(1 << k) - (1 << k >> 1), *([] if k else [0])):
                for o in order[:MOST_TRIED]:
                    row = reach(self.weight[o].tolist(), self.low, self.high, target - int(self.bias[o]))
                    if row is not None:
                        yield row
                        break


def linear(part: IntGraph, node: Node, seed: int, level: int, most: int | None) -> Directed:
    x, stream = part.tensors[node.inputs[0]], Stream(seed, node.name)
    ends, signals = ends_of(part, node)
    weight = node.arrays["weight"].astype(np.int64)
    bias = node.arrays["bias"].astype(np.int64) if "bias" in node.arrays else np.zeros(len(weight), np.int64)
    site = Linear(weight, bias, *limits_of(x), ends)
    rows = np.unique(np.array(list(site.candidates(stream, level)), np.int64), axis=0)
    rows = rows[_allowed(site.sums(rows), ends).all(axis=1)]
    per_output = level > 1
    hits: dict[str, Array] = {
        name: np.asarray(np.broadcast_to(found, (len(rows), len(weight))).any(axis=1))
        for name, found in site.classes(rows)
    }
    extremes: dict[str, Array] = {}
    if per_output:
        up = site._attained(np.where(weight > 0, site.high, np.where(weight < 0, site.low, 0)))
        down = site._attained(np.where(weight > 0, site.low, np.where(weight < 0, site.high, 0)))
        if ends.policy == "raise" and ends.word is not None:
            up, down = np.minimum(up, ends.word[1]), np.maximum(down, ends.word[0])
        extremes = {"sum: largest of the output": up, "sum: least of the output": down}
    sets = _sets(hits, len(rows))
    offset = len(hits)
    for values in extremes.values():
        for i, found in enumerate((site.sums(rows) == values).tolist()):
            sets[i] |= {offset + o for o, hit in enumerate(found) if hit}
        offset += len(values)
    chosen = [rows[i] for i in cover(sets, range(offset))]
    places = int(np.prod(x.shape[:-1]))
    count = _count(len(chosen), places, level, most)
    images = np.array([seeded(x.shape[-1], site.low, site.high, stream) for _ in range(count * places)], np.int64)
    images[~_allowed(site.sums(images), ends).all(axis=1)] = 0
    kept = chosen[: count * places]
    if kept:
        images[: len(kept)] = kept
    found = dict(site.classes(images))
    lead = x.shape[:-1]

    def where(row: int, output: int) -> Index:
        return _index(row % places, lead)

    classes = _classes(found, places, ends, where)
    for name, values in extremes.items():
        hit = site.sums(images) == values
        for o in range(len(values)):
            at = int(np.argmax(hit[:, o])) if hit[:, o].any() else -1
            classes.append(
                Class(name, HIT, o, at // places, where(at, o), int(values[o])) if at >= 0 else
                Class(name, MISSED, o, reason="no stimulus hits it", value=int(values[o]))
            )  # fmt: skip
    stimuli = {node.inputs[0]: stored(images, x)}
    seen = site.sums(images)
    return _done(node, node.op, seed, level, count, classes, stimuli, signals, seen, node.inputs[0])


def _sets(hits: Mapping[str, Array], count: int) -> list[set[int]]:
    matrix = np.array(list(hits.values()))
    return [set(np.flatnonzero(matrix[:, i]).tolist()) for i in range(count)]


def _allowed(sums: Array, ends: Ends) -> Array:
    """Sums that no policy refuses."""
    if ends.word is None or ends.policy != "raise":
        return np.ones(sums.shape, bool)
    return np.asarray((sums >= ends.word[0]) & (sums <= ends.word[1]))


def _count(chosen: int, places: int, level: int, most: int | None) -> int:
    count = max(1, -(-chosen // places))
    if level > 1:
        count += 4
    return count if most is None else min(count, most)


def _index(flat: int, shape: tuple[int, ...]) -> Index:
    return tuple(int(v) for v in np.unravel_index(flat, shape)) if shape else ()


def _classes(found: Mapping[str, Array], places: int, ends: Ends, where: Callable[[int, int], Index]) -> list[Class]:
    """Of masks (N * places, outputs)."""
    classes = []
    for name, hits in found.items():
        if hits.any():
            row, output = divmod(int(np.argmax(hits)), hits.shape[1])
            classes.append(Class(name, HIT, image=row // places, element=where(row, output)))
            continue
        reason = _impossible(name, ends)
        status = UNREACHABLE if reason else MISSED
        classes.append(Class(name, status, reason=reason or "no stimulus hits it"))
    return classes


def _done(node: Node, operator: str, seed: int, level: int, count: int, classes: Sequence[Class],
          stimuli: Mapping[str, Array], signals: Sequence[Signal], sums: Array, of: str) -> Directed:  # fmt: skip
    seen = int(sums.min()), int(sums.max())
    shown = tuple(Signal(s.name, s.proven, s.how, seen if s.name == "sum" and "bias" not in node.arrays else None)
                  for s in signals)  # fmt: skip
    return Directed(stimuli, Coverage(node.name, operator, seed, level, count, of, tuple(classes), signals=shown))


# -------------------------------------------------------------------------------------------- matmul


@dataclass(frozen=True)
class Matmul:
    """(R, K) times (K, C)."""

    log2: bool
    a: tuple[int, int]
    b: tuple[int, int]
    shape: tuple[int, int, int]
    ends: Ends

    def weights(self, a: Array) -> Array:
        """What codes stand for."""
        if not self.log2:
            return a
        return np.where(a < 0, 0, 1 << np.maximum(LOG2_FRACTION_BITS - a, 0))

    def sums(self, a: Array, b: Array) -> Array:
        return np.asarray(self.weights(a) @ b)

    def lines(self, low: int, high: int, depth: int, stream: Stream, codes: bool) -> list[Row]:
        """Rows of a, or columns of b."""
        zero, one = min(max(0, low), high), min(max(1, low), high)
        found = [[v] * depth for v in dict.fromkeys((low, high, zero, one, max(low, -1)))]
        if codes:
            rest = -1 if low < 0 else high
            for code in range(low, high + 1):
                found.append([code] * depth)
                found.append([code] + [rest] * (depth - 1))
            zero = rest
        for at in dict.fromkeys((0, depth - 1)):
            for peak in dict.fromkeys((high, low, one)):
                row = [zero] * depth
                row[at] = peak
                found.append(row)
        found.append([high if i < depth // 2 else low for i in range(depth)])
        found.append([high if i % 2 else low for i in range(depth)])
        for k in range(1, (high - low).bit_length()):
            found += [[high >> k] * depth, [max(low, -(1 << k))] * depth]
        if self.ends.word is not None and not codes:
            found += [[high] * (depth - depth // 4) + [one] * (depth // 4)]
        return found + [seeded(depth, low, high, stream) for _ in range(8)]

    def classes(self, a: Array, b: Array, same: bool) -> Iterator[tuple[str, Array]]:
        """(class, where it is hit) of pairs (P, R, K), (P, K, C): masks (P, R, C)."""
        sums = self.sums(a, b)
        yield from sum_classes(sums, self.ends)
        rows = {
            what: (a == value).all(axis=2)[:, :, None] for what, value in zip(("least", "largest"), self.a, strict=True)
        }
        columns = {
            what: (b == value).all(axis=1)[:, None, :] for what, value in zip(("least", "largest"), self.b, strict=True)
        }
        for one, left in rows.items():
            for two, right in columns.items():
                if not same:
                    yield f"a row {one}, b column {two}", left & right
        width = np.ones_like(sums, bool)
        if self.a[0] <= 0 <= self.a[1] and not self.log2:
            yield "a: row of 0", (a == 0).all(axis=2)[:, :, None] & width
        yield "b: column of 0", (b == 0).all(axis=1)[:, None, :] & width
        if self.log2:
            for code in range(self.a[0], self.a[1] + 1):
                for what, value in zip(("least", "largest"), self.b, strict=True):
                    met = ((a == code).astype(np.int64) @ (b == value).astype(np.int64)) > 0
                    yield f"weight of code {code}, b = {what}", met
        else:
            empty = (a != 0).astype(np.int64) @ (b != 0).astype(np.int64)
            yield "one product alone", empty == 1

    def pairs(self, stream: Stream, same: bool) -> list[tuple[Array, Array]]:
        r, k, c = self.shape
        rows, columns = (
            self.lines(*self.a, k, stream, codes=self.log2), self.lines(*self.b, k, stream, codes=False),
        )  # fmt: skip
        rows, columns = rows + self._beside(stream)[0], columns + self._beside(stream)[1]
        found = []
        for i in range(0, len(rows), r):
            for j in range(0, len(columns), c):
                a = self._filled(rows[i : i + r], r, self.a, stream)
                b = self._filled(columns[j : j + c], c, self.b, stream).T
                found.append((a, b))
        if same:
            found = [(a, a) for a, _ in found] + [(b, b) for _, b in found]
        return found[: MOST_PAIRS * 8]

    def _beside(self, stream: Stream) -> tuple[list[Row], list[Row]]:
        """A row of a and columns of b whose products reach the ends of a narrow accumulator."""
        if self.ends.word is None:
            return [], []
        k, (low, high) = self.shape[1], self.ends.word
        row = [self.a[1] if not self.log2 else 0] * (k - min(k, 3)) + [LOG2_FRACTION_BITS if self.log2 else 1] * min(
            k, 3
        )
        row = [min(max(v, self.a[0]), self.a[1]) for v in row]
        weight = self.weights(np.array(row)).tolist()
        columns = [reach(weight, *self.b, target) for target in (high, high + 1, low, low - 1)]
        return [row], [c for c in columns if c is not None]

    def _filled(self, lines: Sequence[Row], count: int, limits: tuple[int, int], stream: Stream) -> Array:
        rest = [seeded(self.shape[1], *limits, stream) for _ in range(count - len(lines))]
        return np.array([*lines, *rest], np.int64)


def matmul(part: IntGraph, node: Node, seed: int, level: int, most: int | None) -> Directed:
    a, b = (part.tensors[name] for name in node.inputs)
    stream, same = Stream(seed, node.name), node.inputs[0] == node.inputs[1]
    ends, signals = ends_of(part, node)
    places = int(np.prod(a.shape[:-2]))
    shape = a.shape[-2], a.shape[-1], b.shape[-1]
    site = Matmul(node.op == "log2_matmul", limits_of(a), limits_of(b), shape, ends)
    pairs = [pair for pair in site.pairs(stream, same) if _allowed(site.sums(*pair), ends).all()]
    left, right = (np.array([pair[i] for pair in pairs], np.int64).reshape(-1, *t.shape[-2:])
                   for i, t in enumerate((a, b)))  # fmt: skip
    hits: dict[str, Array] = {}
    for name, where_hit in site.classes(left, right, same) if pairs else ():
        hits[name] = np.asarray(np.asarray(where_hit).reshape(len(pairs), -1).any(axis=1))
    chosen = cover(_sets(hits, len(pairs)), range(len(hits))) if pairs else []
    count = _count(len(chosen), places, level, most)
    images = [
        np.array([seeded(shape[1], *limits, stream) for _ in range(count * places * lines)], np.int64)
        .reshape(count * places, lines, shape[1])
        for limits, lines in ((site.a, shape[0]), (site.b, shape[2]))
    ]  # fmt: skip
    x, y = images[0], images[0] if same else np.swapaxes(images[1], 1, 2).copy()
    x[~_allowed(site.sums(x, y), ends).all(axis=(1, 2))] = -1 if site.log2 else 0
    for at, i in enumerate(chosen[: count * places]):
        x[at], y[at] = pairs[i]
    found = {name: np.asarray(hit).reshape(len(x), -1) for name, hit in site.classes(x, y, same)}
    lead = a.shape[:-2]

    def where(pair: int, output: int) -> Index:
        return (*_index(pair % places, lead), output // shape[2], output % shape[2])

    stimuli = {node.inputs[0]: stored(x, a), node.inputs[1]: stored(y, b)}
    return _done(node, node.op, seed, level, count, _classes(found, places, ends, where), stimuli, signals,
                 site.sums(x, y), node.output)  # fmt: skip


# -------------------------------------------------------------------------------------------- layout


def moved(part: IntGraph, node: Node, seed: int, level: int, most: int | None) -> Directed:
    """What moves elements: images that together give each element of each input a code of its own."""
    tensors = [part.tensors[name] for name in part.inputs]
    total = sum(int(np.prod(t.shape)) for t in tensors)
    span = min(high - low + 1 for low, high in map(limits_of, tensors))
    count = 1
    while span**count < total and span > 1:
        count += 1
    kept = count if most is None else min(count, most)
    stimuli, start = {}, 0
    for t in tensors:
        size, low = int(np.prod(t.shape)), limits_of(t)[0]
        numbers = np.arange(start, start + size)
        digits = [np.array([low + int(v) // span**i % span for v in numbers], np.int64) for i in range(kept)]
        stimuli[t.name] = stored(np.array(digits), t)
        start += size
    run(part, stimuli)
    name = "every element told from every other"
    status = HIT if kept == count and span > 1 else MISSED
    reason = "" if status == HIT else f"it takes {count} images" if span > 1 else "there is one code only"
    classes = (Class(name, status, image=0 if status == HIT else None, reason=reason),)
    return Directed(stimuli, Coverage(node.name, node.op, seed, level, kept, part.inputs[0], classes))


OPERATORS: Mapping[str, Callable[[IntGraph, Node, int, int, int | None], Directed]] = {
    "linear": linear, "matmul": matmul, "log2_matmul": matmul,
}  # fmt: skip
