"""Layouts: how a tensor lies in a memory, read from a TOML file, one section per pattern of signal names."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from intvit.errors import IntvitError, reading, shortened
from intvit.files import read_text
from intvit.graph.inttypes import IntType

WIDEST_WORD, WIDEST_ELEMENT = 4096, 64
MOST_LANES, MOST_BANKS, MOST_TILED_AXES = 4096, 1024, 16
HIGHEST = 1 << 48
"""No address, stride or depth is above it."""

Format = Literal["memh", "memb", "coe", "mif", "ihex", "bin", "npy", "npz", "c", "sv"]
Walk = Literal["row_major", "column_major"]
Size = Annotated[int, Field(ge=1, le=HIGHEST)]

NUMBERS = ("npy", "npz", "c", "sv")
"""Formats that hold numbers, not memories: elements, unless `packed` asks for words."""


class Layout(BaseModel):
    """How one tensor lies in memory. The default: row-major, a 32-bit word for each element, sign-extended, from 0.

    The elements are walked tile by tile; `lanes` of them are a beat, which is `words` words; every tile begins with a
    beat of its own. Word j of tile t lies at base + t * tile_stride + j * word_stride of its bank.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Format = "memh"
    order: Walk | Annotated[list[int], Field(min_length=1, max_length=64)] = "row_major"
    """Axes, outermost first. Numbers below 0 count from the last axis: those that are not named stay in front."""
    tiles: Annotated[list[Size], Field(max_length=MOST_TILED_AXES)] | list[Annotated[list[Size], Field(
        min_length=1, max_length=MOST_TILED_AXES)]] = Field(default_factory=list)  # fmt: skip
    """Sizes along the last axes of `order`; a list of such lists is tiles in tiles, the largest first."""
    tile_order: Walk = "row_major"
    """How tiles follow one another; inside the innermost, elements are row-major."""
    edges: Literal["zero", "refuse"] = "zero"
    """Of tiles that reach beyond the tensor: filled with zeros, or such a tensor is refused."""
    lanes: Annotated[int, Field(ge=1, le=MOST_LANES)] = 1
    words: Annotated[int, Field(ge=1, le=MOST_LANES)] = 1
    """`lanes` elements lie in this many words: 4 of 24 bits in 3 words of 32."""
    lane_order: Literal["low", "high"] = "low"
    """The first element of a beat has its lowest bits, or its highest."""
    word_order: Literal["low", "high"] = "low"
    """The first word of a beat has its lowest bits, or its highest."""
    element_bits: Annotated[int, Field(ge=1, le=WIDEST_ELEMENT)] = 32
    extend: Literal["sign", "zero"] = "sign"
    """What fills an element above the bits of its type; unsigned types have zeros either way."""
    word_bits: Annotated[int, Field(ge=1, le=WIDEST_WORD)] = 32
    byte_order: Literal["little", "big"] = "little"
    """Of a word where it is bytes: in `bin` and `ihex`."""
    banks: Annotated[int, Field(ge=1, le=MOST_BANKS)] = 1
    banking: Literal["word", "tile", "block"] = "word"
    """Words or tiles dealt out to the banks in turn; or whole blocks of tiles (of words where there are no tiles)."""
    base: Annotated[int, Field(ge=0, le=HIGHEST)] = 0
    word_stride: Size | None = None
    tile_stride: Size | None = None
    """None: one after the other without a gap."""
    address_unit: Literal["word", "byte"] = "word"
    """Of base, strides and the addresses in messages. A word of 12 bits has 2 bytes."""
    depth: Size | None = None
    """Words of each bank's memory. Without it nothing but the signal may be in its file."""
    packed: bool = False
    """For npy, npz, c and sv: hold words as a memory does, not elements one by one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lanes * self.element_bits > self.words * self.word_bits:
            held = f"{self.words} words" if self.words > 1 else "1 word"
            raise ValueError(
                f"lanes must fit {held} of {self.word_bits} bits, not be {self.lanes} of {self.element_bits} bits"
            )
        if isinstance(self.order, list):
            below = self.order[0] < 0
            wanted = range(-len(self.order), 0) if below else range(len(self.order))
            if sorted(self.order) != list(wanted):
                raise ValueError(f"order must hold each of {list(wanted)} once, not {self.order}")
        for outer, inner in zip(self.levels, self.levels[1:], strict=False):
            if len(outer) != len(inner) or any(o % i for o, i in zip(outer, inner, strict=True)):
                raise ValueError(f"tiles must divide the tiles that they lie in, not {inner} in {outer}")
        if self.word_stride is not None and self.word_stride < self.step:
            raise ValueError(f"word_stride must be {self.step} {self.address_unit}s at least, not {self.word_stride}")
        return self

    @property
    def levels(self) -> list[list[int]]:
        """Tiles from the outermost to the innermost."""
        if self.tiles and isinstance(self.tiles[0], int):
            return [self.tiles]  # type: ignore[list-item]
        return self.tiles  # type: ignore[return-value]

    @property
    def word_bytes(self) -> int:
        return -(-self.word_bits // 8)

    @property
    def step(self) -> int:
        """Addresses that a word takes."""
        return self.word_bytes if self.address_unit == "byte" else 1

    @property
    def digest(self) -> str:
        """sha256 of every key and value, for headers: another layout has another."""
        text = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def as_stored(self) -> Layout:
        """The layout of the words that `format` holds: one element each where it holds numbers."""
        if self.format not in NUMBERS or self.packed:
            return self
        kept = {key: getattr(self, key) for key in ("format", "order", "tiles", "tile_order", "edges", "element_bits")}
        return Layout(**kept, word_bits=self.element_bits)

    def check_type(self, dtype: IntType, where: object) -> None:
        """IntvitError unless the elements hold this type, and 64-bit integers do."""
        if dtype.bits > self.element_bits:
            raise IntvitError(f"{where}: {dtype} must fit element_bits, and they are {self.element_bits}")
        if dtype.bits + (not dtype.signed) > 64:
            raise IntvitError(f"{where}: type must fit s64, not be {dtype}")


@dataclass(frozen=True)
class Layouts:
    """Layouts by shell pattern of the signal's name, or of PART:NAME; the first that matches counts."""

    sections: tuple[tuple[str, Layout], ...] = ()
    default: Layout = field(default_factory=Layout)

    def of(self, key: str) -> Layout:
        """The layout of a signal."""
        return next((layout for pattern, layout in self.sections if fnmatchcase(key, pattern)), self.default)

    def within(self, folder: str) -> Layouts:
        """Those of the signals of a part, by the name of its folder."""
        return Layouts(tuple(_within(self.sections, folder)), self.default)

    @property
    def digest(self) -> str:
        """sha256 over all of it."""
        text = "".join(f"{pattern!r} {layout.digest}\n" for pattern, layout in (*self.sections, ("", self.default)))
        return hashlib.sha256(text.encode("ascii", "backslashreplace")).hexdigest()


def _within(sections: Iterable[tuple[str, Layout]], folder: str) -> Iterator[tuple[str, Layout]]:
    for pattern, layout in sections:
        part, colon, name = pattern.rpartition(":")
        if not colon or fnmatchcase(folder, part):
            yield name, layout


def read_layouts(path: str | Path) -> Layouts:
    """A TOML file: keys of a layout for all signals, and a table of further keys for each pattern in `signals`."""
    return build_layouts(read_values(path), path)


def read_values(path: str | Path) -> dict[str, Any]:
    """The values of such a file, as `build_layouts` takes them: checked."""
    text = read_text(path)
    with reading(path, "a TOML file of layouts"):
        values = tomllib.loads(text)
    build_layouts(values, path)
    return values


def build_layouts(values: Mapping[str, Any], where: object = "layouts") -> Layouts:
    """Check plain data; one line that names section, key, rule and value otherwise.

    >>> build_layouts({"lanes": 4, "signals": {"bias": {"lanes": 1}}, "element_bits": 8}).of("bias").lanes
    1
    """
    common = dict(values)
    signals = common.pop("signals", {})
    if not isinstance(signals, dict):
        raise IntvitError(f"{where}: signals: must be a table of patterns, not {shortened(signals)}")
    default = build_layout(common, where)
    sections = []
    for pattern, keys in signals.items():
        place = f"{where}: signals: {shortened(pattern)[1:-1]}"
        if not isinstance(keys, dict):
            raise IntvitError(f"{place}: must be a table of keys, not {shortened(keys)}")
        known(keys, place)
        sections.append((pattern, build_layout({**common, **keys}, place)))
    return Layouts(tuple(sections), default)


def build_layout(values: Mapping[str, Any], where: object = "layout") -> Layout:
    """Check the keys of one layout.

    >>> build_layout({"tile": [8, 8]})
    Traceback (most recent call last):
    intvit.errors.IntvitError: layout: tile: must be a known key (tiles?), and is given [8, 8]
    """
    known(values, where)
    try:
        return Layout.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            raise IntvitError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
        rule = first["msg"].removeprefix("Input should be ")
        key = _key(first["loc"])
        raise IntvitError(f"{where}: {key}: must be {rule}, not {shortened(first['input'])}") from None


def _key(loc: Sequence[int | str]) -> str:
    """The key, and where in its list; the rest is pydantic's way into a union."""
    return ".".join(str(part) for i, part in enumerate(loc) if i == 0 or isinstance(part, int))


def known(values: Mapping[str, Any], where: object) -> None:
    """IntvitError for the first key that no layout has."""
    for name in sorted(values.keys() - Layout.model_fields.keys()):
        near = get_close_matches(name, [*Layout.model_fields, "signals"], 1)
        key = f"a known key ({near[0]}?)" if near else "a known key"
        raise IntvitError(f"{where}: {shortened(name)[1:-1]}: must be {key}, and is given {shortened(values[name])}")
