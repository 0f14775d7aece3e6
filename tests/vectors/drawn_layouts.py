"""Layouts of every key, each with an array that it can hold."""

import math

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from intvit.graph.inttypes import IntType
from intvit.vectors.layouts.layout import build_layout


@st.composite
def layouts(draw, kinds=("memh",)):
    """Layouts of all keys but strides, which need a shape."""
    lanes, element_bits = draw(st.integers(1, 9)), draw(st.integers(1, 64))
    n_words = draw(st.integers(1, 5))
    least = -(-lanes * element_bits // n_words)
    assume(least <= 4096)
    common = [st.sampled_from([8, 16, 32, 64, 128]), st.integers(1, 200)]
    word_bits = max(least, draw(st.one_of(common)))
    rank = draw(st.integers(0, 3))
    tiles = draw(st.lists(st.integers(1, 4), max_size=rank))
    if tiles and draw(st.booleans()):
        tiles = [[size * draw(st.integers(1, 3)) for size in tiles], tiles]
    orders = [st.just("row_major"), st.just("column_major")]
    if rank:
        orders += [st.permutations(range(rank)).map(list), st.permutations(range(-rank, 0)).map(list)]
    either = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    keys = {
        "format": either(*kinds),
        "order": draw(st.one_of(orders)),
        "tiles": tiles,
        "tile_order": either("row_major", "column_major"),
        "lanes": lanes,
        "words": n_words,
        "lane_order": either("low", "high"),
        "word_order": either("low", "high"),
        "element_bits": element_bits,
        "extend": either("sign", "zero"),
        "word_bits": word_bits,
        "byte_order": either("little", "big"),
        "banks": draw(st.integers(1, 4)),
        "banking": either("word", "tile", "block"),
        "address_unit": either("word", "byte"),
        "packed": draw(st.booleans()),
    }
    size = -(-word_bits // 8) if keys["address_unit"] == "byte" else 1
    keys["base"] = draw(st.integers(0, 100)) * size
    shape = tuple(draw(st.integers(1, 7)) for _ in range(rank))
    layout = build_layout(keys)
    strides = draw(st.integers(0, 2))
    if strides:
        step = size * draw(st.integers(1, 3))
        keys["word_stride"] = step
        if strides == 2:
            most = math.prod(shape) * 64 * step
            keys["tile_stride"] = draw(st.integers(1, 4)) * size + most
        layout = build_layout(keys)
    bits = draw(st.integers(1, element_bits))
    dtype = IntType(bits, draw(st.booleans()) or bits == 64)
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    array = rng.integers(dtype.min, dtype.max, shape, np.int64, endpoint=True)
    return layout, array, dtype
