"""Activations of a foreign graph at batch 1, and the writer that turns them into nodes of the canonical form."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from intvit.files import PLAIN
from intvit.floats.importers.builder import Builder, needed
from intvit.graph.ir import LOGITS, Array

Shape = tuple[int, ...]
LONGEST_NAME = 150
"""Of a name as it stands in paths, so that others can be derived from it."""
OPERATOR_NAME = re.compile(r"(?:node_)?[A-Z]\w*")


@dataclass(frozen=True)
class Affine:
    """A linear or LayerNorm that is not written yet, as constants after it may still go into it."""

    write: Callable[[Builder, str, Affine], object]
    """Appends it to a builder under a name."""
    source: str
    scale: Array
    """Linear: weight (O, I); a norm: gamma (C,)."""
    offset: Array | None
    eps: float = 0.0
    takes_offset: bool = True

    def times(self, factor: Any) -> Affine:
        column = np.asarray(factor, np.float32).reshape(-1)
        scale = self.scale * (column[:, None] if self.scale.ndim == 2 else column)
        return replace(self, scale=scale, offset=None if self.offset is None else self.offset * column)

    def plus(self, value: Array) -> Affine | None:
        """None for a norm that takes no offset."""
        if not self.takes_offset:
            return None
        column = np.broadcast_to(value.reshape(-1), self.scale.shape[:1])
        return replace(self, offset=column if self.offset is None else self.offset + column)


@dataclass(frozen=True)
class View:
    """An activation at batch 1: `gain` times the written tensor `name`, or an affine operator to be written so.

    `shape` has all axes; the written tensor, per image, lacks axis `batch` (of length 1; None: it has all).
    """

    name: str
    shape: Shape
    batch: int | None
    gain: float = 1.0
    affine: Affine | None = None
    remake: Callable[[Callable[[Affine], Affine | None]], View | None] | None = None
    """After layout that keeps the channels: the same moves over a changed affine operator."""

    def changed(self, change: Callable[[Affine], Affine | None]) -> View | None:
        """This value, had the affine operator that it comes from been another one; None if it comes from none."""
        if self.affine is not None:
            affine = change(self.affine)
            return None if affine is None else replace(self, affine=affine)
        return None if self.remake is None else self.remake(change)

    @property
    def per_image(self) -> Shape:
        return tuple(n for i, n in enumerate(self.shape) if i != self.batch)

    def inner(self, axis: int) -> int:
        """Axis of the written tensor, its batch axis counted, that holds axis `axis`."""
        return axis + 1 - (self.batch is not None and axis > self.batch)


@dataclass
class Pointwise:
    """A function of one written activation, element by element; what it is, is found by computing it."""

    source: View
    function: Callable[[Array], Array]
    n_steps: int = 1
    """Operators that computing it takes; those that are used twice count twice."""
    written: View | None = None
    """The operator that it was found to be, once something needed it."""

    @property
    def shape(self) -> Shape:
        return self.source.shape


@dataclass(frozen=True)
class Unknown:
    """What cannot be lowered, and all that depends on it."""

    causes: tuple[str, ...]


Value = Any
"""Array (a constant), View, Pointwise or Unknown."""


class Refused(Exception):
    """A node that has no canonical form; the text says why."""


def last_axis_vector(value: Array, shape: Shape) -> bool:
    """True if `value`, as it broadcasts to `shape`, differs along the last axis at most."""
    one_axis = value.shape[-1:] == shape[-1:] == (value.size,)
    return value.ndim <= len(shape) and (value.size == 1 or one_axis)


def unit_axis(shape: Shape) -> int | None:
    """The axis to drop as the batch: the first of length 1."""
    return shape.index(1) if 1 in shape else None


@dataclass
class Writer:
    """Writes views as nodes of `builder`; a value is written when something needs it, and only once."""

    builder: Builder
    names: set[str] = field(default_factory=lambda: {LOGITS})
    written: dict[tuple[str, float, int], tuple[str, Affine | None]] = field(default_factory=dict)
    """(name, gain, id of the affine) -> written tensor, and the affine, which keeps its id taken."""
    last_name: str = ""
    """Name proposed for what the node at hand writes."""

    # -- names

    def site(self, name: str) -> str:
        """The name of an operator with weights: the module that it came from, without the operator's own name."""
        parts = _parts(name)
        short = ".".join(parts[:-1] if len(parts) > 1 and OPERATOR_NAME.fullmatch(parts[-1]) else parts)
        return self.unique(name if short in self.names else short)

    def unique(self, name: str) -> str:
        """`name` without slashes and what exporters append, printable and not long, numbered if it is taken."""
        plain = _short("".join(c if c.isprintable() else "_" for c in ".".join(_parts(name)))) or "tensor"
        found, n = plain, 2
        while found in self.names:
            found, n = f"{plain}.{n}", n + 1
        self.names.add(found)
        return found

    # -- writing

    def settle(self, view: View) -> str:
        """The written tensor that holds the values of `view`, all of them: gain and affine included."""
        key = (view.name, view.gain, id(view.affine))
        if key in self.written:
            return self.written[key][0]
        if view.affine is not None:
            affine = view.affine if view.gain == 1 else view.affine.times(view.gain)
            name = self.site(view.name)
            affine.write(self.builder, name, affine)
        elif view.gain == 1:
            return view.name
        else:
            name = self.unique(f"{view.name}.scaled")
            self.builder.add("Mul", name, view.name, self.builder.constant(f"{name}.factor", np.float32(view.gain)))
        self.written[key] = name, view.affine
        return name

    def placed(self, view: View) -> View:
        """`view` with its affine operator written; the gain still travels."""
        if view.affine is None:
            return view
        written = View(self.settle(replace(view, gain=1.0)), view.shape, view.batch, view.gain)
        return self.remade(written, view, lambda v: v)

    def reshaped(self, view: View, shape: Shape, batch: int | str | None = "any") -> View:
        """`view` with other axes; written only if the per-image shape changes."""
        axis = unit_axis(shape) if batch == "any" else batch
        assert not isinstance(axis, str)
        after = replace(self.placed(view), shape=tuple(shape), batch=axis)
        if shape and shape[-1] == view.shape[-1]:
            after = self.remade(after, view, lambda v: self.reshaped(v, shape, axis))
        if after.per_image == view.per_image:
            return after
        name = self.unique(self.last_name)
        return replace(after, name=self.builder.reshape(name, after.name, *after.per_image))

    def remade(self, after: View, before: View, move: Callable[[View], View]) -> View:
        """`after`, the result of `move` on `before`, with the way to make it anew."""

        def remake(change: Callable[[Affine], Affine | None]) -> View | None:
            changed = before.changed(change)
            return None if changed is None else move(changed)

        known = before.affine is not None or before.remake is not None
        return replace(after, remake=remake if known else None)

    def with_batch(self, view: View, batch: int | None) -> View:
        if view.batch == batch:
            return self.placed(view)
        if batch is not None and view.shape[batch] != 1:
            raise Refused(f"axes must agree on one for the batch, not {view.shape}")
        return self.reshaped(view, view.shape, batch)

    def clear_of(self, view: View, axes: Sequence[int]) -> View:
        """`view` such that none of `axes` is the dropped batch axis."""
        if view.batch not in axes:
            return self.placed(view)
        others = [i for i, n in enumerate(view.shape) if n == 1 and i not in axes]
        return self.reshaped(view, view.shape, others[0] if others else None)

    # -- what kinds of operators write

    def refused(self, why: str) -> Refused:
        """The exception to raise for a node that has no canonical form."""
        return Refused(why)

    def plus_constant(self, x: View, value: Array, label: str) -> View:
        """`x` plus a constant that broadcasts to it: into the affine operator that it comes from, or an Add."""
        if not np.any(value) and np.broadcast_shapes(value.shape, x.shape) == x.shape:
            return x
        if x.gain == 1 and last_axis_vector(value, x.shape):
            changed = x.changed(lambda affine: affine.plus(value))
            if changed is not None:
                return changed if changed.affine is None else replace(changed, name=label)
        if np.broadcast_shapes(value.shape, x.shape) != x.shape:
            raise Refused(f"a constant of shape {value.shape} must not enlarge {x.shape}")
        source = self.settle(x)
        aligned = value.reshape((1,) * (len(x.shape) - value.ndim) + value.shape).astype(np.float32)
        if x.batch is not None:
            aligned = np.take(aligned, 0, axis=x.batch)
        name = self.unique(label)
        self.builder.add("Add", name, source, self.builder.constant(f"{name}.value", aligned[None]))
        return View(name, x.shape, x.batch)

    def activation(self, op: str, x: View, name: str, **attributes: Any) -> View:
        """A canonical operator of one activation, element by element or over its last axis."""
        return View(self.builder.add(op, name, self.settle(x), **attributes), x.shape, x.batch)

    def softmax(self, x: View, name: str, axis: int) -> View:
        last = len(x.shape) - 1
        if axis % len(x.shape) != last:
            raise Refused(f"axis must be the last, not {axis % len(x.shape)}")
        return self.activation("Softmax", self.clear_of(x, [last]), name, axis=-1)

    def norm(
        self, write: Callable[[Builder, str, Affine], object], inputs: Sequence[Value], attrs: dict[str, Any],
        label: str, *, takes_offset: bool = True,
    ) -> View:  # fmt: skip
        """A norm of the last axis with gamma and maybe beta, still open for constants after it."""
        x, gamma, beta, *_ = (*inputs, None)
        if attrs.get("axis", -1) % len(x.shape) != len(x.shape) - 1:
            raise Refused(f"axis must be the last, not {attrs['axis']}")
        if isinstance(gamma, View) or isinstance(beta, View):
            raise Refused("gamma and beta must be constants")
        if not all(v is None or last_axis_vector(v, x.shape) for v in (gamma, beta)):
            raise Refused("gamma and beta must be one per channel")
        x = self.clear_of(x, [len(x.shape) - 1])
        beta = None if beta is None else np.broadcast_to(beta.reshape(-1), x.shape[-1:])
        gamma = np.broadcast_to(gamma.reshape(-1), x.shape[-1:]).astype(np.float32)
        affine = Affine(write, self.settle(x), gamma, beta, attrs.get("epsilon", 1e-5), takes_offset)
        return View(label, x.shape, x.batch, affine=affine)

    # -- the end

    def prune(self, output: str) -> None:
        """Drop what the output does not need."""
        self.builder.nodes = needed(self.builder.nodes, output)
        read = {name for node in self.builder.nodes for name in node.input}
        self.builder.initializers = {k: v for k, v in self.builder.initializers.items() if k in read}


def _short(name: str) -> str:
    length = 0
    for i, c in enumerate(name):
        length += 1 if c in PLAIN else 3 * len(c.encode())
        if length > LONGEST_NAME:
            return name[:i]
    return name


def _parts(name: str) -> list[str]:
    return [part for part in re.sub(r"_output_\d+$", "", name).replace("::", "/").split("/") if part]
