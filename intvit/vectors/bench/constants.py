"""The constants of a case as hardware takes them: widths, lengths, integers, the memories, and what follows from them.

Names are those of docs/quantization.md in capitals. A number of a site is `NAME`; an array is a memory, `NAME_FILE`,
of `NAME_WORDS` words of `NAME_BITS` bits, whose values lie in `NAME_MIN..NAME_MAX`. In a case of several sites the
name of the site stands in front. Streams are `S0_BITS`, `S0_ROW`, ... for the first stimulus, `M0_...` for the first
output.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from intvit.errors import IntvitError
from intvit.graph.inttypes import IntType
from intvit.graph.ir import LAYOUT_OPS, Array, IntGraph, Node, Tensor
from intvit.spec.numerics import Rounding
from intvit.vectors.bundle import declared_type
from intvit.vectors.part import parameters

REPEATED = ("residual", "mask")
"""Arrays that stand for a whole tensor: a memory of them repeats, or is written out whole."""
WIDEST = 64
"""Bits of a word in a memory."""
ROUNDINGS = get_args(Rounding)


@dataclass(frozen=True)
class Constant:
    """One localparam: an `int` for what counts, the narrowest signed type for an integer of the case, or a string."""

    name: str
    value: int | str
    counts: bool = False
    comment: str = ""

    @property
    def declared(self) -> str:
        """
        >>> Constant("X0", -20).declared, Constant("M_WORDS", 3, counts=True).declared
        ("logic signed [5:0] X0 = -6'sd20", 'int M_WORDS = 3')
        """
        if isinstance(self.value, str):
            return f'{self.name} = "{self.value}"'
        if self.counts:
            return f"int {self.name} = {self.value}"
        bits = declared_type(np.array(self.value)).bits
        number = f"{bits}'sd{self.value}" if self.value >= 0 else f"-{bits}'sd{-self.value}"
        return f"logic signed [{bits - 1}:0] {self.name} = {number}"


@dataclass(frozen=True, eq=False)
class Memory:
    """A parameter array in words of `bits` bits, as a file of the case's folder."""

    name: str
    values: Array
    bits: int


@dataclass(frozen=True)
class Stream:
    """A stimulus or an output: port `s0`, `s1`, ... or `m0`, ...; `words` of all images, `row` to a tlast."""

    port: str
    tensor: str
    bits: int
    row: int
    words: int
    file: str
    salt: int


def streams(part: IntGraph, names: Sequence[str], letter: str, images: int, folder: str, word: int | None
            ) -> list[Stream]:  # fmt: skip
    """The streams of inputs (`s`) or outputs (`m`) of a part."""
    found = []
    for i, name in enumerate(names):
        tensor = part.tensors[name]
        port = f"{letter}{i}"
        bits = word_bits(name, signed_bits(tensor.dtype), word)
        size = int(np.prod(tensor.shape, dtype=np.int64))
        salt = 2 * i + (letter == "m")
        found.append(Stream(port, name, bits, row_of(tensor), size * images, f"{folder}/{port}.hex", salt))
    return found


def row_of(tensor: Tensor) -> int:
    return tensor.shape[-1] if tensor.shape else 1


def signed_bits(dtype: IntType) -> int:
    """Of a signed word that holds the type."""
    return dtype.bits + (not dtype.signed)


def word_bits(what: str, needed: int, word: int | None) -> int:
    """The width of a word: what is needed, or the fixed one if it suffices."""
    if word is not None and word < needed:
        raise IntvitError(f"{what}: word must have {needed} bits at least, not {word}")
    if (word or needed) > WIDEST:
        raise IntvitError(f"{what}: word must have {WIDEST} bits at most, not {word or needed}")
    return word or needed


def identifier(name: str) -> str:
    """A name as a SystemVerilog identifier that is no keyword: letters, digits, `_`.

    >>> identifier("blocks.0.attn/qkv"), identifier("0")
    ('blocks_0_attn_qkv', 'c_0')
    """
    text = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "case"
    return (text if text[0].isalpha() else f"c_{text}")[:100]


def memories(part: IntGraph, word: int | None) -> list[Memory]:
    """Every array of every site, by the name of its constant in lower case."""
    return [
        Memory(f"{prefix}{key}", array, word_bits(f"{node.name}: {key}", declared_type(array).bits, word))
        for prefix, node in _sites(part)
        for key, array in _arrays(part, node)
    ]


def constants(part: IntGraph, images: int, folder: str, word: int | None = None) -> list[Constant]:
    """All constants of a case, in the order of the package."""
    found = [Constant("IMAGES", images, counts=True)]
    for letter, names in (("s", part.inputs), ("m", part.outputs)):
        for stream in streams(part, names, letter, images, folder, word):
            shape = part.tensors[stream.tensor].shape
            facts = {"BITS": stream.bits, "ROW": stream.row, "ROWS": shape[-2] if len(shape) > 1 else 1,
                     "WORDS": stream.words // images}  # fmt: skip
            said = f"{printable(stream.tensor)} {list(shape)}"
            for key, value in facts.items():
                found.append(Constant(f"{stream.port}_{key}".upper(), value, True, said if key == "BITS" else ""))
    for prefix, node in _sites(part):
        for key, array in parameters(node).items():
            if array.shape == ():
                found.append(Constant(f"{prefix}{key}".upper(), int(array)))
        for key, value in _derived(part, node):
            found.append(Constant(f"{prefix}{key}".upper(), value, counts=True))
    for memory in memories(part, word):
        name, values = memory.name.upper(), memory.values
        found += [
            Constant(f"{name}_FILE", f"{folder}/{memory.name}.hex", comment=str(list(values.shape))),
            Constant(f"{name}_WORDS", values.size, counts=True),
            Constant(f"{name}_BITS", memory.bits, counts=True),
            Constant(f"{name}_MIN", int(values.min())),
            Constant(f"{name}_MAX", int(values.max())),
        ]
    counted = Counter(constant.name for constant in found)
    for name, count in counted.items():
        if count > 1:
            raise IntvitError(f"{name}: must be the name of one constant of the case, not of {count}")
    return found


def printable(name: str) -> str:
    """A name for a comment: printable ASCII in one line."""
    return ascii(name)[1:-1]


def _sites(part: IntGraph) -> Iterator[tuple[str, Node]]:
    """What computes, and what stands in front of its names."""
    nodes = [node for node in part.nodes if node.op not in LAYOUT_OPS]
    for node in nodes:
        yield ("" if len(nodes) == 1 else f"{identifier(node.name)}_"), node


def _arrays(part: IntGraph, node: Node) -> Iterator[tuple[str, Array]]:
    shape = part.tensors[node.output].shape
    for key, array in parameters(node).items():
        if array.shape == ():
            continue
        whole = key in REPEATED and array.size != 1
        if whole and (array.shape[-1:] != shape[-1:] or not _is_suffix(array.shape, shape)):
            yield key, np.ascontiguousarray(np.broadcast_to(array, shape))
        else:
            yield key, array


def _is_suffix(shape: tuple[int, ...], of: tuple[int, ...]) -> bool:
    """Whether an array repeats as it stands: what it lacks are axes in front.

    >>> _is_suffix((1, 3, 4), (2, 3, 4)), _is_suffix((3, 4), (2, 3, 4)), _is_suffix((2, 1, 4), (2, 3, 4))
    (True, True, False)
    """
    kept = list(shape)
    while kept and kept[0] == 1:
        kept.pop(0)
    return not kept or tuple(kept) == of[len(of) - len(kept) :]


def _derived(part: IntGraph, node: Node) -> Iterator[tuple[str, int]]:
    """What hardware needs to know and follows from the constants: widths of registers, the rounding."""
    numbers = {key: int(value) for key, value in parameters(node).items() if value.shape == ()}
    row = row_of(part.tensors[node.inputs[0]])
    if node.op == "requantize":
        yield "ROUNDING", ROUNDINGS.index(node.attrs.get("numerics", {}).get("rounding", "half_even"))
    elif "c" in numbers and "x0" in numbers:
        most = numbers["c"] << numbers["n"]
        yield "EXP_BITS", max(most.bit_length(), 1)
        yield "SUM_BITS", max((most * row).bit_length(), 1) if "m" not in numbers else (32767 * row).bit_length()
    elif "x0" in numbers and node.op == "softmax":
        most = -numbers["x0"] << numbers["n"]
        yield "EXP_BITS", most.bit_length()
        yield "SUM_BITS", (most * row).bit_length()
    elif node.op in ("linear", "matmul", "log2_matmul"):
        yield "ACC_BITS", int(part.tensors[node.output].max_abs).bit_length() + 1
