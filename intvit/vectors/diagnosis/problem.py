"""One site that went wrong: what it read, what it must have given, what it gave, and what it would give if."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from intvit.engine.evaluate import prepare
from intvit.errors import IntvitError
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Array, Node, Tensor
from intvit.graph.operators.accumulators import numerics_of
from intvit.kernels.requantize import is_addend
from intvit.vectors.diagnosis.arith import compact
from intvit.vectors.diagnosis.datapath import MODELS, Fault, Note, Path, Site
from intvit.vectors.part import parameters

PRODUCTS = ("matmul", "log2_matmul")
UNBOUNDED = IntType(64)


def model_name(node: Node) -> str:
    """Its key in `MODELS`, if it has one."""
    return f"{node.op}.{node.attrs['method']}.v{node.attrs['version']}" if "method" in node.attrs else node.op


@dataclass(eq=False)
class Stage:
    """A node that can be computed again, on all images or on some rows, with a fault or with other constants."""

    node: Node
    inputs: Sequence[Tensor]
    output: Tensor

    @cached_property
    def values(self) -> dict[str, Array]:
        """Constants by name; a constant residual is an operand and none of them."""
        return parameters(self.node)

    @cached_property
    def model(self) -> str:
        return model_name(self.node)

    @property
    def modelled(self) -> bool:
        return self.model in MODELS

    @property
    def by_rows(self) -> bool:
        """Whether a row of the output depends on that row of the inputs alone, and can be computed alone."""
        return self.modelled and self.node.op not in (*PRODUCTS, "mean")

    @cached_property
    def site(self) -> Site:
        how = numerics_of(self.node) if self.node.op in ("requantize", "linear", *PRODUCTS) else None
        p = self.values
        addend = "residual" in p and is_addend(p["residual"], p["residual_m"], p["residual_e"])
        bits = self.node.attrs["bits"] if self.node.op == "requantize" else 64
        acts = how is not None and how.accumulator_bits is not None and self.output.bound is None
        return Site(bits=bits, may_act=acts, addend=addend) if how is None else Site(how, bits, acts, addend)

    def operands(self, values: Sequence[Array]) -> list[Array]:
        """Inputs (B, *shape) as the model reads them: rows (R, C), matrices (L, R, K) and (L, K, C)."""
        if self.node.op in PRODUCTS:
            return [v.reshape(-1, *v.shape[-2:]).astype(np.int64) for v in values]
        if self.node.op == "mean":
            moved = np.moveaxis(values[0], self.node.attrs["axis"] + 1, -1)
            return [moved.reshape(-1, moved.shape[-1]).astype(np.int64)]
        return [v.reshape(-1, v.shape[-1]).astype(np.int64, copy=False) for v in values]

    def run(self, operands: Sequence[Array], fault: Fault | None = None, constants: Mapping[str, Array] | None = None,
            rows: Array | None = None, lead: tuple[int, ...] = (), notes: dict[str, Note] | None = None,
            ) -> Array:  # fmt: skip
        """The model on operands of `Stage.operands`, of which it takes `rows`; lead: (B, *shape of the input) for what
        is broadcast to them. (R, C) or, of other than rows, the output's matrices."""
        p = {**self.values, **(constants or {})}
        taken = [v if rows is None else v[rows] for v in operands]
        for key in ("residual", "mask"):
            if key in p:
                every = np.broadcast_to(p[key], lead).reshape(-1, lead[-1])
                part = every if rows is None else every[rows]
                if key == "mask":
                    p[key] = part
                else:
                    taken.append(part)
        path = Path(fault, noting=notes is not None)
        with np.errstate(all="ignore"):
            found = MODELS[self.model](path, self.site, p, taken)
        if notes is not None:
            notes.update(path.notes)
        return compact(found)

    def whole(self, values: Sequence[Array], **options: object) -> Array:
        """Inputs and output (B, *shape), by the model if there is one, else by the specification: of any integers."""
        if not self.modelled:
            return self.by_kernel(values, "spec")
        found = self.run(self.operands(values), lead=values[0].shape, **options)  # type: ignore[arg-type]
        return found.reshape(len(values[0]), *self.output.shape)

    def by_kernel(self, values: Sequence[Array], backend: str = "kernel", node: Node | None = None) -> Array:
        """As `whole`, by a backend of the engine; IntvitError for what it refuses."""
        output = Tensor(self.output.name, self.output.shape, UNBOUNDED, self.output.scale, self.output.encoding)
        return prepare(node or self.node, self.inputs, output, backend)(list(values))


def fits(tensor: Tensor, values: Array) -> bool:
    """Whether the values keep to the type and the proven bound, which kernels rely on."""
    if not values.size:
        return True
    most = tensor.bound if tensor.bound is not None else 1 << 64
    return max(tensor.dtype.min, -most) <= int(values.min()) and int(values.max()) <= min(tensor.dtype.max, most)


def computed(stage: Stage, values: Sequence[Array]) -> Array | None:
    """What a node gives by right: by the engine's kernel, or unbounded where the device's inputs leave their bounds.

    None for inputs that the operator is not defined for.
    """
    if all(fits(t, v) for t, v in zip(stage.inputs, values, strict=True)):
        with suppress(IntvitError):  # of what a type does not say, as the codes of a log2 softmax
            return stage.by_kernel(values)
    try:
        return stage.whole(values)
    except (IntvitError, ArithmeticError, ValueError):
        return None


@dataclass(eq=False)
class Problem:
    """A stage, and behind it whatever leads to the tensor that was dumped; arrays are (B, *shape) over the images."""

    stage: Stage
    own: list[Array]
    """What it read: from the dump, or golden."""
    got: Array
    valid: Array
    right: Array
    """What the dumped tensor must be by `own`."""
    tail: list[tuple[Stage, int, list[Array]]] = field(default_factory=list)
    """(stage, which of its inputs is made before it, all of its inputs) from the stage's output to the dumped one."""
    expected: dict[int, Array] = field(default_factory=dict)
    """Golden values of the dumped tensor by image, also of images that were not dumped."""
    images: tuple[int, ...] = ()
    neighbours: dict[str, Array] = field(default_factory=dict)
    """Other tensors of the same images by name, (B, *shape), golden."""
    similar: dict[str, Node] = field(default_factory=dict)
    """Other sites of the same operator and method, and of constants of the same shapes."""

    @property
    def dumped(self) -> Tensor:
        return self.tail[-1][0].output if self.tail else self.stage.output

    @cached_property
    def different(self) -> Array:
        return self.valid & (self.got != self.right)

    @cached_property
    def operands(self) -> list[Array]:
        return self.stage.operands(self.own)

    @cached_property
    def by_rows(self) -> bool:
        """Whether some rows can be asked for: no stage mixes rows, and none moves them."""
        rows = self.got[..., 0].size
        stages = [self.stage, *(stage for stage, _, _ in self.tail)]
        return all(s.by_rows and len(self.got) * int(np.prod(s.output.shape[:-1])) == rows for s in stages)

    @cached_property
    def samples(self) -> list[Array]:
        """Rows to ask first: the one that differs most, then some that differ, from all over, and some that do not."""
        differ = np.count_nonzero(self.different.reshape(-1, self.got.shape[-1]), axis=-1)
        bad, good = np.flatnonzero(differ), np.flatnonzero(differ == 0)
        chosen = [a[np.unique(np.linspace(0, len(a) - 1, n).astype(int))] for a, n in ((bad, 5), (good, 2)) if len(a)]
        return [np.array([int(differ.argmax())]), np.unique(np.concatenate(chosen))]

    def rows_of(self, rows: Array) -> tuple[Array, Array, Array]:
        """Rows of what was got, of what of it is known, and of what is right."""
        got, valid, right = (a.reshape(-1, a.shape[-1])[rows] for a in (self.got, self.valid, self.right))
        return got, valid, right

    def predict(self, rows: Array | None = None, fault: Fault | None = None,
                constants: Mapping[str, Array] | None = None, own: list[Array] | None = None) -> Array:  # fmt: skip
        """The dumped tensor if: whole (B, *shape), or the `rows` of it (R, C). `own`: other inputs than were read."""
        stage, values = self.stage, self.own if own is None else own
        if not stage.modelled:
            if constants is None and own is None:
                raise IntvitError(f"{stage.node.name}: has no model")
            node = stage.node if constants is None else with_constants(stage.node, constants)
            found = stage.by_kernel(values, node=node)
        elif rows is not None:
            operands = self.operands if own is None else stage.operands(own)
            found = stage.run(operands, fault, constants, rows, lead=values[0].shape)
        else:
            found = stage.whole(values, fault=fault, constants=constants)
        for after, position, others in self.tail:
            given = list(others)
            if rows is None:
                given[position] = found
                found = after.whole(given)
            else:
                operands = after.operands(given)
                lead = given[position].shape
                operands = [v[rows] for v in operands]
                operands[position] = found
                found = _run_rows(after, operands, rows, lead)
        return found


def _run_rows(stage: Stage, operands: list[Array], rows: Array, lead: tuple[int, ...]) -> Array:
    """A stage on operands that are cut to `rows` already; what it broadcasts is cut here."""
    constants: dict[str, Array] = {}
    for key in ("residual", "mask"):
        if key in stage.values:
            constants[key] = np.broadcast_to(stage.values[key], lead).reshape(-1, lead[-1])[rows]
    return stage.run(operands, constants=constants, lead=operands[0].shape)


def with_constants(node: Node, constants: Mapping[str, Array]) -> Node:
    """The node with other constants, by the names of `parameters`."""
    scalars = dict(node.attrs.get("params", {}))
    attrs = dict(node.attrs)
    arrays = dict(node.arrays)
    for key, value in constants.items():
        if key in arrays:
            arrays[key] = value
        elif key in scalars:
            scalars[key] = int(value)
        else:
            attrs[key] = int(value)
    if scalars:
        attrs["params"] = scalars
    return Node(node.op, node.name, node.inputs, node.output, attrs, arrays)
