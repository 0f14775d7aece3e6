"""A dump against golden cases, site by site: where it differs first by itself, and where that only spread to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from intvit.engine.evaluate import prepare, prepare_in
from intvit.errors import IntvitError
from intvit.files import safe_name
from intvit.graph.inttypes import IntType
from intvit.graph.ir import LAYOUT_OPS, Array, IntGraph, Node, Tensor
from intvit.vectors.cases import Case
from intvit.vectors.compare import word
from intvit.vectors.diagnosis.causes import Explained, explain
from intvit.vectors.diagnosis.dump import Dump, Dumped, Key, Place, key_of
from intvit.vectors.diagnosis.problem import Problem, Stage, computed
from intvit.vectors.part import run

NEAR = 40
"""Tensors before and behind a root that may have been given in its place."""
MISLED = "its inputs differ from golden too: if the bench gave each site golden stimuli, compare with --isolated"
EQUAL, ROOT, PROPAGATED, MISSING, EXTRA = "equal", "root", "propagated", "missing", "extra"
MOST_EXPLAINED = 16
"""Roots of which causes are looked for: each takes seconds, and the first ones tell the most."""
MOST_BEHIND = 4
"""Sites before a root that were not dumped, in which its cause may lie as well."""


@dataclass(frozen=True)
class Element:
    """The first element that differs: of an image, where in the tensor, where in memory."""

    image: int
    index: tuple[int, ...]
    axes: tuple[str, ...]
    expected: int
    got: int | None
    """None: x or z."""
    bits: str
    words: tuple[str, str]
    place: Place | None = None

    def __str__(self) -> str:
        where = ", ".join(f"{axis} {i}" for axis, i in zip(self.axes, self.index, strict=True))
        at = f", {self.place}" if self.place else ""
        return f"image {self.image}, {where}{at}: expected {self.words[0]}, got {self.words[1]}"


@dataclass(frozen=True)
class Result:
    """One site, or one tensor that a case gives, on all images that were compared."""

    case: str
    site: str
    tensor: str
    op: str
    status: str
    images: tuple[int, ...] = ()
    """Those that were dumped."""
    failing: tuple[int, ...] = ()
    n_elements: int = 0
    n_missing: int = 0
    """Elements of those images that were not dumped."""
    n_different: int = 0
    n_undefined: int = 0
    """Of those that differ: x or z."""
    first: Element | None = None
    notes: tuple[str, ...] = ()
    explained: Explained | None = None
    by_image: Mapping[int, str] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{self.site}: {self.status}"
        return f"{text}, {self.first}" if self.first else text


@dataclass(frozen=True)
class Report:
    """What a comparison found, in execution order; what is extra comes last."""

    results: tuple[Result, ...]
    images: tuple[int, ...]

    @property
    def roots(self) -> list[Result]:
        return [result for result in self.results if result.status == ROOT]

    @property
    def differs(self) -> bool:
        return any(result.status in (ROOT, PROPAGATED) for result in self.results)

    def count(self, status: str) -> int:
        return sum(result.status == status for result in self.results)


@dataclass(eq=False)
class _Tensor:
    """A tensor of a case: golden, dumped and by the device's own inputs, each (B, *shape)."""

    case: Case
    tensor: Tensor
    node: Node | None
    golden: Array
    made_from: list[_Tensor] = field(default_factory=list)
    alias: _Tensor | None = None
    """Of a stimulus: the tensor that another case gives and that is the same."""
    dumped: dict[int, Dumped] = field(default_factory=dict)
    keys: dict[int, Key] = field(default_factory=dict)
    own: Array | None = None
    right: Array | None = None
    output: bool = False
    undefined: bool = False
    """Whether the operator is not defined for the device's inputs; then golden is what is right."""


def compare(
    cases: Sequence[Case],
    dump: Dump,
    *,
    graph: IntGraph | None = None,
    images: Sequence[int] | None = None,
    causes: bool = True,
    isolated: bool = False,
    partial: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Compare what was dumped with what was expected.

    `graph` tells how layout between cases moves elements, where the cases themselves do not say; `images` limits
    what is compared. `isolated`: the bench gave every case its golden stimuli, whatever it dumped elsewhere. `partial`:
    elements may be missing, and what is x or z is taken for missing. IntvitError for a dump of which nothing belongs to
    the cases, or nothing of an image, or of which an element is missing.
    """
    wanted = _images(cases, images)
    tensors = _linked(cases, wanted, graph, isolated)
    unused = _read(tensors, dump, wanted, partial)
    found: list[Result] = []
    explained = 0
    for i, tensor in enumerate(tensors):
        if progress:
            progress(i + 1, len(tensors))
        _follow(tensor, wanted)
        if tensor.node is None or (tensor.node.op in LAYOUT_OPS and not tensor.dumped):
            continue
        result = _result(tensor, wanted, dump, isolated)
        explicable = tensor.node.op not in LAYOUT_OPS and not _only_undefined(tensor, wanted)
        if result.status == ROOT and causes and explicable:
            if explained < MOST_EXPLAINED:
                explanation = explain(_problems(tensor, tensors, wanted))
                result = _with(result, explained=explanation)
                explained += 1
                if not explanation.causes and not isolated and _misled(tensor):
                    result = _with(result, notes=(*result.notes, MISLED))
            else:
                result = _with(result, notes=(*result.notes, f"not looked for causes: the first {MOST_EXPLAINED} were"))
        found.append(result)
    found += [Result(key[0], key[0], key[2], "", EXTRA, (key[1],)) for key in sorted(unused)]
    return Report(tuple(found), wanted)


def _only_undefined(tensor: _Tensor, wanted: tuple[int, ...]) -> bool:
    """Whether every element that is known is right."""
    assert tensor.right is not None
    return not any((known.valid & (known.values != tensor.right[_rows(tensor, wanted).index(image)])).any()
                   for image, known in tensor.dumped.items())  # fmt: skip


def _misled(tensor: _Tensor) -> bool:
    """Whether it was judged by inputs that are not golden."""
    return any(source.own is not None and not np.array_equal(source.own, source.golden) for source in tensor.made_from)


def _with(result: Result, **changes: Any) -> Result:
    return replace(result, **changes)


def _images(cases: Sequence[Case], images: Sequence[int] | None) -> tuple[int, ...]:
    known = tuple(sorted({image for case in cases for image in case.images}))
    if not known:
        raise IntvitError("cases: must be one at least, with an image")
    for image in images or ():
        if image not in known:
            raise IntvitError(f"image: must be one of the cases', {_list(known)}, not {image}")
    return known if images is None else tuple(dict.fromkeys(images))


def _list(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}..{numbers[-1]}"
    return ", ".join(map(str, numbers))


# --------------------------------------------------------------------------------------------------- golden


def _linked(cases: Sequence[Case], wanted: tuple[int, ...], graph: IntGraph | None,
            isolated: bool) -> list[_Tensor]:  # fmt: skip
    """Every tensor of every case in execution order; stimuli are tied to what gives them, where that is the same."""
    made: dict[str, list[_Tensor]] = {}
    found: list[_Tensor] = []
    for case in cases:
        images = [image for image in wanted if image in case.images]
        if not images:
            continue
        part = case.part
        given = {name: np.stack([np.asarray(case.stimuli(i)[name]) for i in images]) for name in part.inputs}
        stored = {name: np.stack([np.asarray(case.expected(i)[name]) for i in images]) for name in part.outputs}
        golden = stored if set(stored) >= {n.output for n in part.nodes} else run(part, given, list(part.tensors))
        for name in part.outputs:
            if not np.array_equal(stored[name], golden[name]):
                raise IntvitError(f"{case.name}: expected {name} must be what its stimuli give, and differs; "
                                  "`intvit golden check` says more")  # fmt: skip
        here: dict[str, _Tensor] = {}
        for name in part.inputs:
            stimulus = _Tensor(case, part.tensors[name], None, given[name])
            stimulus.alias = None if isolated else _maker(stimulus, made, graph, found, images)
            here[name] = stimulus
            found.append(stimulus)
        for node in part.nodes:
            tensor = _Tensor(case, part.tensors[node.output], node, golden[node.output],
                             [here[name] for name in node.inputs], output=node.output in part.outputs)  # fmt: skip
            here[node.output] = tensor
            made.setdefault(node.output, []).append(tensor)
            found.append(tensor)
    return found


def _maker(stimulus: _Tensor, made: Mapping[str, list[_Tensor]], graph: IntGraph | None, found: list[_Tensor],
           images: Sequence[int]) -> _Tensor | None:  # fmt: skip
    """What gives a stimulus: another case, or by the graph a chain of layout behind one."""
    for tensor in reversed(made.get(stimulus.tensor.name, [])):
        if np.array_equal(tensor.golden, stimulus.golden):
            return tensor
    if graph is None:
        return None
    return _by_layout(stimulus.case, stimulus.tensor.name, stimulus.golden, made, graph, found)


def _by_layout(case: Case, name: str, golden: Array | None, made: Mapping[str, list[_Tensor]], graph: IntGraph,
               found: list[_Tensor]) -> _Tensor | None:  # fmt: skip
    node = graph.by_output.get(name)
    if node is None or node.op not in LAYOUT_OPS:
        return None
    sources = []
    for input_name in node.inputs:
        known = made.get(input_name)
        source = known[-1] if known else _by_layout(case, input_name, None, made, graph, found)
        if source is None:
            return None
        sources.append(source)
    values = prepare_in(graph, node)([source.golden for source in sources])
    if golden is not None and not np.array_equal(values, golden):
        return None
    tensor = _Tensor(sources[-1].case, graph.tensors[name], node, values, sources)
    found.append(tensor)
    return tensor


# --------------------------------------------------------------------------------------------------- dumped


def _read(tensors: Sequence[_Tensor], dump: Dump, wanted: tuple[int, ...], partial: bool) -> set[Key]:
    """Fill in what was dumped; the keys that belong to no tensor."""
    keys = set(dump.keys())
    unused = set(keys)
    seen: set[int] = set()
    known = False
    for tensor in tensors:
        case, node = tensor.case, tensor.node
        names = [safe_name(tensor.tensor.name)]
        if node is None:
            names += [f"input{i}" for i, name in enumerate(case.part.nodes[0].inputs) if name == tensor.tensor.name
                      and len(case.part.nodes) == 1]  # fmt: skip
        elif tensor.output and len(case.part.outputs) == 1:
            names.append("output")
        images = [image for image in wanted if image in case.images]
        for image in images:
            here = [key for name in dict.fromkeys(names) if (key := (safe_name(case.name), image, name)) in keys]
            if len(here) > 1:
                raise IntvitError(f"dump: {case.name} on image {image} must hold a tensor once, not as "
                                  f"{here[0][2]} and {here[1][2]}")  # fmt: skip
            if here:
                unused.discard(here[0])
                found = dump.read(here[0], tensor.tensor.shape, tensor.tensor.dtype)
                if partial:
                    found = replace(found, undefined=np.zeros_like(found.undefined))
                else:
                    _whole(found, here[0], dump)
                tensor.dumped[image] = found
                tensor.keys[image] = here[0]
                if node is not None:
                    seen.add(image)
                    known |= bool(found.given.any())
    if not seen:
        example = key_of(tensors[-1].case.name, wanted[0], "output")
        actual = next(iter(sorted(keys)), None)
        shown = "nothing" if actual is None else f"{actual[0]}/image{actual[1]}/{actual[2]}"
        raise IntvitError(f"dump: must hold tensors of these cases, like {example[0]}/image{example[1]}/output, and "
                          f"holds none, but {shown}")  # fmt: skip
    if not known:
        raise IntvitError("dump: must hold an element that is known, and holds none")
    for image in wanted:
        if image not in seen:
            raise IntvitError(f"dump: must hold a tensor of image {image}, as the cases have {_list(wanted)}, and has "
                              f"only {_list(sorted(seen))}; --image compares these alone")  # fmt: skip
    return {key for key in unused if key[1] in wanted} | {key for key in unused if not _of(tensors, key)}


def _whole(found: Dumped, key: Key, dump: Dump) -> None:
    """IntvitError if an element is missing."""
    gone = ~found.given
    if gone.any():
        index = tuple(int(i) for i in np.unravel_index(int(gone.argmax()), gone.shape))
        place = dump.place(key, index, gone.shape)
        at = f"{list(index)}{f', {place},' if place else ''}"
        n = int(np.count_nonzero(gone))
        raise IntvitError(f"{found.source}: element {at} must be there, and {n} of {gone.size} are missing; --partial "
                          "compares the others")  # fmt: skip


def _of(tensors: Sequence[_Tensor], key: Key) -> bool:
    """Whether the key is of an image of the cases that was not asked for."""
    return any(safe_name(t.case.name) == key[0] and key[1] in t.case.images for t in tensors)


def _rows(tensor: _Tensor, wanted: tuple[int, ...]) -> list[int]:
    return [image for image in wanted if image in tensor.case.images]


def _follow(tensor: _Tensor, wanted: tuple[int, ...]) -> None:
    """`right`: by the device's own inputs. `own`: what it dumped, and that where it dumped nothing."""
    if tensor.node is None:
        tensor.right = tensor.golden if tensor.alias is None else _aligned(tensor, tensor.alias, wanted)
    else:
        given = [source.own if source.own is not None else source.golden for source in tensor.made_from]
        same = all(np.array_equal(v, s.golden) for v, s in zip(given, tensor.made_from, strict=True))
        if same:
            tensor.right = tensor.golden
        elif tensor.node.op in LAYOUT_OPS:
            tensor.right = np.asarray(_moved(tensor, given))
        else:
            made = computed(_stage(tensor), given)
            tensor.undefined = made is None
            tensor.right = tensor.golden if made is None else made
    own = np.array(tensor.right, np.int64)
    for b, image in enumerate(_rows(tensor, wanted)):
        if image in tensor.dumped:
            known = tensor.dumped[image]
            own[b] = np.where(known.valid, known.values, own[b])
    tensor.own = own


def _aligned(tensor: _Tensor, other: _Tensor, wanted: tuple[int, ...]) -> Array:
    """What another case's tensor holds, on the images of this one."""
    theirs = _rows(other, wanted)
    value = other.own if other.own is not None else other.golden
    if theirs == _rows(tensor, wanted):
        return value
    return np.stack([value[theirs.index(image)] for image in _rows(tensor, wanted)])


def _moved(tensor: _Tensor, given: Sequence[Array]) -> Array:
    assert tensor.node is not None
    inputs = [source.tensor for source in tensor.made_from]
    return prepare(tensor.node, inputs, replace(tensor.tensor, dtype=IntType(64)))(list(given))


def _stage(tensor: _Tensor) -> Stage:
    assert tensor.node is not None
    return Stage(tensor.node, [source.tensor for source in tensor.made_from], tensor.tensor)


# ---------------------------------------------------------------------------------------------------- sites


def _result(tensor: _Tensor, wanted: tuple[int, ...], dump: Dump, isolated: bool) -> Result:
    assert tensor.node is not None
    assert tensor.right is not None
    images = _rows(tensor, wanted)
    by_image: dict[int, str] = {}
    different = undefined = missing = elements = 0
    first: Element | None = None
    for b, image in enumerate(images):
        known = tensor.dumped.get(image)
        if known is None or not known.given.any():
            by_image[image] = MISSING
            continue
        elements += known.valid.size
        gone = int(np.count_nonzero(~known.given))
        missing += gone
        wrong = _wrong(known, tensor.golden[b])
        by_root = _wrong(known, tensor.right[b], _undefined_before(tensor, image))
        differs = ROOT if by_root.any() else PROPAGATED
        by_image[image] = differs if wrong.any() else MISSING if gone else EQUAL
        shown = by_root if by_root.any() and wrong.any() else wrong
        different += int(np.count_nonzero(shown))
        undefined += int(np.count_nonzero(shown & known.undefined))
    statuses = set(by_image.values())
    status = next(s for s in (ROOT, PROPAGATED, MISSING, EQUAL) if s in statuses)
    for b, image in enumerate(images):
        if first is None and status in (ROOT, PROPAGATED) and by_image[image] == status:
            known, against = tensor.dumped[image], tensor.right[b] if status == ROOT else tensor.golden[b]
            wrong = _wrong(known, against, status == ROOT and _undefined_before(tensor, image))
            first = _element(tensor, image, against, wrong, known, dump)
    failing = tuple(image for image in images if by_image[image] in (ROOT, PROPAGATED))
    seen = tuple(i for i in images if i in tensor.dumped and tensor.dumped[i].given.any())
    notes = tuple(_notes(tensor, by_image, seen, missing, undefined, isolated))
    node = tensor.node
    return Result(tensor.case.name, node.name, tensor.tensor.name, node.op, status, seen, failing, elements, missing,
                  different, undefined, first, notes, None, by_image)  # fmt: skip


def _wrong(known: Dumped, expected: Array, excused: bool = False) -> Array:
    """Where a tensor is not as expected. `excused`: what it reads is undefined, and so may it be."""
    wrong = known.valid & (known.values != expected)
    return wrong if excused else wrong | known.undefined


def _undefined_before(tensor: _Tensor, image: int) -> bool:
    """Whether something that it reads was dumped with x or z."""
    for source in _behind_layout(tensor):
        for origin in (source, source.alias):
            if origin is not None and image in origin.dumped and origin.dumped[image].undefined.any():
                return True
    return False


def _element(tensor: _Tensor, image: int, against: Array, wrong: Array, known: Dumped, dump: Dump) -> Element:
    index = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
    expected, got = int(against[index]), None if known.undefined[index] else int(known.values[index])
    dtype = tensor.tensor.dtype
    assert tensor.node is not None
    place = dump.place(tensor.keys[image], index, tensor.tensor.shape)
    return Element(image, index, axes(tensor.node, len(index)), expected, got, str(dtype),
                   (word(expected, dtype), "x or z" if got is None else word(got, dtype)), place)  # fmt: skip


def axes(node: Node, rank: int) -> tuple[str, ...]:
    """What the axes of a tensor are called: the last one are channels, or of attention columns."""
    attention = node.op in ("softmax", "matmul", "log2_matmul")
    last = "column" if attention and rank > 2 else "channel"
    names = {0: (), 1: (last,), 2: ("token", last), 3: ("head" if attention else "row", "token", last),
             4: ("window", "head", "token", last)}  # fmt: skip
    if rank in names:
        return names[rank]
    return (*(f"axis {i}" for i in range(rank - 2)), "token", last)


def _notes(tensor: _Tensor, by_image: Mapping[int, str], seen: tuple[int, ...], missing: int, undefined: int,
           isolated: bool) -> list[str]:  # fmt: skip
    """What stood in for inputs that were not dumped, and what was not looked at."""
    notes: list[str] = []
    if not seen:
        return notes
    for source in dict.fromkeys(_behind_layout(tensor)):
        origin = source.alias if source.node is None and source.alias is not None else source
        if source.dumped or origin.dumped:
            partly = source if source.dumped else origin
            if any(not known.valid.all() for known in partly.dumped.values()):
                notes.append(f"golden stands in where input {source.tensor.name} is not known")
            continue
        if origin.node is None and isolated:
            continue
        if origin.node is None:
            notes.append(f"golden stands in for input {source.tensor.name}, whose maker is not known")
        elif origin.own is not None and np.array_equal(origin.own, origin.golden):
            notes.append(f"golden stands in for input {source.tensor.name}, which was not dumped")
        else:
            notes.append(
                f"input {source.tensor.name} was not dumped, and is computed from the device's tensors before it"
            )
    if tensor.undefined:
        notes.append("golden is expected, as the operator is not defined for what the device read")
    gone = [image for image in by_image if image not in seen]
    if gone:
        notes.append(f"not dumped on image {_list(gone)}")
    if missing:
        notes.append(f"{missing} elements are missing")
    if undefined:
        notes.append(f"{undefined} elements are x or z")
    return notes


def _behind_layout(tensor: _Tensor) -> list[_Tensor]:
    found: list[_Tensor] = []
    for source in tensor.made_from:
        origin = source.alias if source.node is None and source.alias is not None else source
        if origin.node is not None and origin.node.op in LAYOUT_OPS and not origin.dumped and not source.dumped:
            found += _behind_layout(origin)
        else:
            found.append(source)
    return found


# ------------------------------------------------------------------------------------------------- problems


def _problems(tensor: _Tensor, tensors: Sequence[_Tensor], wanted: tuple[int, ...]) -> list[Problem]:
    """The site as a problem, and those that lead to it and were not dumped, nearest first."""
    images = [image for image in _rows(tensor, wanted) if image in tensor.dumped]
    at = [_rows(tensor, wanted).index(image) for image in images]
    got = np.stack([tensor.dumped[image].values for image in images])
    valid = np.stack([tensor.dumped[image].valid for image in images])
    assert tensor.right is not None
    right = np.asarray(tensor.right, np.int64)[at]
    everything = {i: tensor.golden[b] for b, i in enumerate(_rows(tensor, wanted))}
    for image in tensor.case.images:
        if image not in everything and tensor.output:
            everything[image] = np.asarray(tensor.case.expected(image)[tensor.tensor.name], np.int64)
    found: list[Problem] = []
    queue: list[tuple[_Tensor, list[tuple[Stage, int, list[Array]]]]] = [(tensor, [])]
    while queue and len(found) < MOST_BEHIND:
        here, tail = queue.pop(0)
        if _rows(here, wanted) != _rows(tensor, wanted):
            continue
        assert here.node is not None
        values = [np.asarray(s.own if s.own is not None else s.golden, np.int64)[at] for s in here.made_from]
        stage = _stage(here)
        if here.node.op not in LAYOUT_OPS:
            found.append(Problem(stage, values, got, valid, right, tail, everything, tuple(images),
                                 _neighbours(tensor, tensors, wanted, at), _similar(here, tensors)))  # fmt: skip
        for position, source in enumerate(here.made_from):
            origin = source.alias if source.node is None and source.alias is not None else source
            if origin.node is not None and not origin.dumped and not source.dumped:
                queue.append((origin, [(stage, position, values), *tail]))
    return found


def _neighbours(
    tensor: _Tensor, tensors: Sequence[_Tensor], wanted: tuple[int, ...], at: list[int]
) -> dict[str, Array]:
    """Tensors that might be given in its place: its own inputs, and what is made near it with the same shape."""
    found = {s.tensor.name: np.asarray(s.own if s.own is not None else s.golden, np.int64)[at]
             for s in tensor.made_from}  # fmt: skip
    position = tensors.index(tensor)
    for other in tensors[max(0, position - NEAR) : position + NEAR]:
        alike = other is not tensor and other.node is not None and other.tensor.shape == tensor.tensor.shape
        if alike and _rows(other, wanted) == _rows(tensor, wanted):
            found.setdefault(other.tensor.name, np.asarray(other.golden, np.int64)[at])
    return found


def _similar(tensor: _Tensor, tensors: Sequence[_Tensor]) -> dict[str, Node]:
    """Other sites of the same operator and method, at most 16."""
    node = tensor.node
    assert node is not None
    found: dict[str, Node] = {}
    for other in tensors:
        n = other.node
        if (
            n is not None
            and n.name != node.name
            and n.op == node.op
            and n.attrs.get("method") == node.attrs.get("method")
        ):
            found.setdefault(n.name, n)
        if len(found) >= 16:
            break
    return found
