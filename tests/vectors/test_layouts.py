"""Where integers lie: against a scalar reference that places one bit after the other, and back."""

import doctest
import re
import tomllib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from drawn_layouts import layouts
from hypothesis import assume, given
from hypothesis import strategies as st

from intvit.errors import IntvitError
from intvit.graph.inttypes import IntType
from intvit.vectors.layouts.layout import Layout, Layouts, build_layout, build_layouts, read_layouts
from intvit.vectors.layouts.memory import Bank, Memory, Plan, pack, unpack

S8, S24 = IntType(8), IntType(24)


def words(memory, bank=0):
    """Address -> word of a bank."""
    held = memory.banks[bank]
    return {int(a): int.from_bytes(row.tobytes(), "little") for a, row in zip(held.addresses, held.words, strict=True)}


def axes_of(layout, rank):
    if isinstance(layout.order, str):
        return list(range(rank))[:: 1 if layout.order == "row_major" else -1]
    given = [axis % rank for axis in layout.order]
    return [axis for axis in range(rank) if axis not in given] + given


def walked(shape, layout):
    """Indexes of the tensor, None for padding, tile by tile: [[index]]."""
    axes = axes_of(layout, len(shape))
    sizes = [shape[axis] for axis in axes]
    levels = layout.levels or [sizes]
    n = len(levels[0])
    lead, tail = sizes[: len(sizes) - n], sizes[len(sizes) - n :]
    if not layout.levels:
        lead, tail, n = [], sizes, len(sizes)

    def inside(begin, levels):
        """Positions of a block that begins at `begin`, in order of its levels."""
        if len(levels) == 1:
            yield from (tuple(map(sum, zip(begin, at, strict=True))) for at in product(*map(range, levels[0])))
            return
        counts = [outer // inner for outer, inner in zip(levels[0], levels[1], strict=True)]
        for at in in_order(counts):
            corner = [b + a * size for b, a, size in zip(begin, at, levels[1], strict=True)]
            yield from inside(corner, levels[1:])

    def in_order(counts):
        if layout.tile_order == "row_major":
            return product(*map(range, counts))
        return (at[::-1] for at in product(*map(range, counts[::-1])))

    tiles = []
    for front in product(*map(range, lead)):
        for at in in_order([-(-size // tile) for size, tile in zip(tail, levels[0], strict=True)]):
            corner = [a * tile for a, tile in zip(at, levels[0], strict=True)]
            tile = []
            for position in inside(corner, levels):
                index = [0] * len(shape)
                for axis, i in zip(axes, (*front, *position), strict=True):
                    index[axis] = i
                fits = all(i < size for i, size in zip(index, shape, strict=True))
                tile.append(tuple(index) if fits else None)
            tiles.append(tile)
    return tiles


def reference(array, dtype, layout):
    """[{address: word}] of the banks, in plain integers."""
    tiles = []
    for tile in walked(array.shape, layout):
        row = []
        for i in range(0, len(tile), layout.lanes):
            beat = 0
            for lane, index in enumerate(tile[i : i + layout.lanes]):
                value = 0 if index is None else int(array[index])
                if value < 0:
                    value += 1 << (layout.element_bits if layout.extend == "sign" else dtype.bits)
                place = lane if layout.lane_order == "low" else layout.lanes - 1 - lane
                beat |= value << (place * layout.element_bits)
            parts = [(beat >> (w * layout.word_bits)) & ((1 << layout.word_bits) - 1) for w in range(layout.words)]
            row += parts if layout.word_order == "low" else parts[::-1]
        tiles.append(row)
    banks = [{} for _ in range(layout.banks)]
    n_tiles, n_words, n = len(tiles), len(tiles[0]), layout.banks
    step = layout.word_stride or (-(-layout.word_bits // 8) if layout.address_unit == "byte" else 1)
    far = layout.tile_stride or (-(-n_words // n) if layout.banking == "word" else n_words) * step
    for t, j in product(range(n_tiles), range(n_words)):
        if layout.banking == "word":
            bank, tile, word = j % n, t, j // n
        elif layout.banking == "tile":
            bank, tile, word = t % n, t // n, j
        elif layout.tiles:
            size = -(-n_tiles // n)
            bank, tile, word = t // size, t % size, j
        else:
            size = -(-n_words // n)
            bank, tile, word = j // size, 0, j % size
        banks[bank][layout.base + tile * far + word * step] = tiles[t][j]
    return banks


@given(layouts())
def test_words_are_those_of_the_reference_and_read_back(case):
    layout, array, dtype = case
    memory = pack(array, dtype, layout)
    assert [words(memory, i) for i in range(layout.banks)] == reference(array, dtype, layout)
    back = unpack(memory, array.shape, dtype, layout)
    assert back.complete
    assert np.array_equal(back.values, array)


@given(layouts(), st.integers(0, 2**32 - 1))
def test_what_a_dump_lacks_is_a_mask(case, seed):
    """Words that are taken away make just the elements unknown that have bits in them."""
    layout, array, dtype = case
    assume(array.size <= 30)
    memory, rng = pack(array, dtype, layout), np.random.default_rng(seed)
    keep = [rng.random(len(bank.words)) < 0.7 for bank in memory.banks]
    held = [np.asarray(bank.addresses) for bank in memory.banks]
    banks = [Bank(at[kept], b.words[kept]) for at, b, kept in zip(held, memory.banks, keep, strict=True)]
    back = unpack(Memory(memory.word_bits, tuple(banks), memory.unit), array.shape, dtype, layout)
    lost = {(i, int(a)) for i, (at, kept) in enumerate(zip(held, keep, strict=True)) for a in at[~kept]}
    expected = np.ones(array.shape, bool)
    for index in np.ndindex(array.shape):
        ones = np.zeros(array.shape, np.int64)
        ones[index] = -1  # all bits of this element and no others
        banks = reference(ones, IntType(64), layout.model_copy(update={"extend": "sign"}))
        expected[index] = lost.isdisjoint((i, a) for i, bank in enumerate(banks) for a, word in bank.items() if word)
    assert np.array_equal(back.valid, expected)
    assert np.array_equal(back.values, np.where(expected, array, 0))


def test_int8_four_a_word_in_tiles_of_64():
    """Worked example 1 of docs/layouts.md."""
    layout = Layout(tiles=[64, 64], lanes=4, element_bits=8)
    array = np.arange(100 * 130).reshape(100, 130).astype(np.int8)
    memory = pack(array, S8, layout)
    found = words(memory)
    assert len(found) == 2 * 3 * 64 * 64 // 4
    assert found[0] == 0x03020100
    assert found[16] == int.from_bytes(array[1, :4].tobytes(), "little")  # the second row of the first tile
    assert found[1024] == int.from_bytes(array[0, 64:68].tobytes(), "little")  # the second tile
    assert found[2048] == int.from_bytes(array[0, 128:130].tobytes() + b"\0\0", "little")  # beyond the edge
    assert found[3 * 1024 + 36 * 16] == 0  # row 100 is not there
    assert np.array_equal(unpack(memory, array.shape, S8, layout, partial=False).values, array)


def test_biases_of_24_bits_four_in_three_words():
    """Worked example 2 of docs/layouts.md."""
    layout = Layout(lanes=4, words=3, element_bits=24)
    array = np.array([1, -2, 0x123456, -0x800000, 5])
    memory = pack(array, S24, layout)
    assert words(memory) == dict(enumerate([0xFE000001, 0x3456FFFF, 0x80000012, 5, 0, 0]))
    assert np.array_equal(unpack(memory, (5,), S24, layout).values, array)
    high = pack(array, S24, layout.model_copy(update={"word_order": "high", "lane_order": "high"}))
    assert words(high)[0] == 0x000001FF


def test_a_value_that_is_no_extension_is_not_the_value():
    """Upper bits of a fixed width belong to what is compared."""
    for extend, good, bad in (("sign", 0xFFFFFFFF, 0x000000FF), ("zero", 0x000000FF, 0xFFFFFFFF)):
        layout = Layout(extend=extend)
        for word, equal in ((good, True), (bad, False), (good ^ 0x100, False)):
            bank = Bank(range(1), np.frombuffer(word.to_bytes(4, "little"), np.uint8)[None])
            value = int(unpack(Memory(32, (bank,)), (), S8, layout).values)
            assert (value == -1) == equal
            assert equal or not S8.min <= value <= S8.max
    wide = Layout(element_bits=64, word_bits=64, extend="zero")
    bank = Bank(range(1), np.full((1, 8), 255, np.uint8))
    assert int(unpack(Memory(64, (bank,)), (), S8, wide).values) > S8.max


def test_a_partial_dump_is_refused_where_a_whole_one_is_asked_for():
    memory = Memory(32, (Bank(np.array([0, 2]), np.zeros((2, 4), np.uint8)),))
    with pytest.raises(IntvitError, match=r"^dump: word at address 0x1 must be there, and is missing or unknown$"):
        unpack(memory, (3,), S8, Layout(), "dump", partial=False)


def test_addresses_outside():
    bank = Bank(np.array([0, 9]), np.zeros((2, 4), np.uint8), place=lambda i: f"f.hex: line {i + 1}")
    with pytest.raises(IntvitError, match=r"^f.hex: line 2: address 0x9 must lie in 0x0..0x2$"):
        unpack(Memory(32, (bank,)), (3,), S8, Layout())
    back = unpack(Memory(32, (bank,)), (3,), S8, Layout(depth=16))
    assert back.valid.tolist() == [True, False, False]
    with pytest.raises(IntvitError, match=r"address 0x9 must lie in 0x0..0x8$"):
        unpack(Memory(32, (bank,)), (3,), S8, Layout(depth=9))


def test_the_last_word_at_an_address_counts():
    rows = np.array([[1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0]], np.uint8)
    memory = Memory(32, (Bank(np.array([0, 1, 0]), rows),))
    assert unpack(memory, (2,), S8, Layout()).values.tolist() == [3, 2]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"tiles": [0]}, "layout: tiles.0: must be greater than or equal to 1, not 0"),
        ({"tile": [4]}, r"layout: tile: must be a known key \(tiles\?\), and is given \[4\]"),
        ({"lanes": 5, "element_bits": 8}, "layout: lanes must fit 1 word of 32 bits, not be 5 of 8 bits"),
        (
            {"lanes": 5, "words": 3, "element_bits": 24},
            "layout: lanes must fit 3 words of 32 bits, not be 5 of 24 bits",
        ),
        ({"word_bits": 4097}, "layout: word_bits: must be less than or equal to 4096, not 4097"),
        ({"word_bits": 0}, "layout: word_bits: must be greater than or equal to 1, not 0"),
        ({"lanes": True}, "layout: lanes: must be a valid integer, not True"),
        ({"lanes": "4"}, "layout: lanes: must be a valid integer, not '4'"),
        ({"order": [0, 2]}, r"layout: order must hold each of \[0, 1\] once, not \[0, 2\]"),
        ({"order": [-1, 0]}, r"layout: order must hold each of \[-2, -1\] once, not \[-1, 0\]"),
        (
            {"tiles": [[8, 8], [3, 8]]},
            r"layout: tiles must divide the tiles that they lie in, not \[3, 8\] in \[8, 8\]",
        ),
        ({"word_stride": 3, "address_unit": "byte"}, "layout: word_stride must be 4 bytes at least, not 3"),
        ({"format": "srec"}, "layout: format: must be 'memh', .*, not 'srec'"),
        ({"base": -1}, "layout: base: must be greater than or equal to 0, not -1"),
    ],
)
def test_bad_layouts(keys, says):
    with pytest.raises(IntvitError, match=f"^{says}$"):
        build_layout(keys)


@pytest.mark.parametrize(
    ("shape", "keys", "says"),
    [
        ((3, 4), {"order": [1, 2, 0]}, r"x: order must name the axes of \(3, 4\), not \[1, 2, 0\]"),
        ((3,), {"tiles": [2, 2]}, r"x: tiles \[2, 2\] must have at most the axes of \(3,\)"),
        ((3,), {"tiles": [2], "edges": "refuse"}, r"x: \[3\] must be whole tiles of \[2\]"),
        ((3, 0), {}, r"x: must have an element at least, and has the shape \(3, 0\)"),
        ((3,), {"element_bits": 4}, "x: s8 must fit element_bits, and they are 4"),
        ((9,), {"depth": 8}, r"x: address 0x8 must lie in the memory of depth 8 \(0x8 words\)"),
        (
            (9,),
            {"depth": 8, "address_unit": "byte"},
            r"x: address 0x20 must lie in the memory of depth 8 \(0x20 bytes\)",
        ),
        ((4, 4), {"tiles": [2, 2], "tile_stride": 3}, "x: tile_stride must leave room for 4 words of a tile, .* 0x3"),
        (
            (3,),
            {"base": 2, "address_unit": "byte"},
            "x: base must be a multiple of the 4 bytes of a word in memh, not 0x2",
        ),
        ((3,), {"word_stride": 1 << 48}, "x: address 0x2000000000000 must be 0x1000000000000 at most"),
        ((2, 2), {"tiles": [1 << 40, 1]}, "x: must fit 4294967296 bytes of memory, not .*"),
    ],
)
def test_arrays_that_do_not_fit_a_layout(shape, keys, says):
    with pytest.raises(IntvitError, match=f"^{says}$"):
        pack(np.zeros(shape, np.int8), S8, build_layout(keys), "x")


def test_values_must_fit_their_type():
    with pytest.raises(IntvitError, match=r"^x: values must fit s8, not 0..128$"):
        pack(np.array([0, 128]), S8, Layout(), "x")
    with pytest.raises(IntvitError, match=r"^x: must be integers, not float64$"):
        pack(np.array([0.0]), S8, Layout(), "x")
    with pytest.raises(IntvitError, match=r"^x: type must fit s64, not be u64$"):
        pack(np.array([0]), IntType(64, False), Layout(element_bits=64, word_bits=64), "x")


def test_tiles_may_lie_between_each_other():
    """A tile stride below a word stride: words of tiles alternate."""
    layout = Layout(tiles=[2], word_stride=4, tile_stride=1)
    memory = pack(np.arange(8), S8, layout)
    assert words(memory) == dict(enumerate([0, 2, 4, 6, 1, 3, 5, 7]))
    assert unpack(memory, (8,), S8, layout, partial=False).values.tolist() == list(range(8))


def test_a_file_of_layouts(tmp_path):
    path = tmp_path / "l.toml"
    path.write_text(
        'word_bits = 64\n[signals."input*"]\nlanes = 8\nelement_bits = 8\n'
        "[signals.weight]\ntiles = [[64, 64], [8, 8]]\n"
        '[signals."*"]\nformat = "mif"\n'
    )
    found = read_layouts(path)
    assert found.of("input0") == Layout(word_bits=64, lanes=8, element_bits=8)
    assert found.of("weight").levels == [[64, 64], [8, 8]]
    assert found.of("bias") == Layout(word_bits=64, format="mif")
    assert found.digest != Layouts().digest
    assert Layouts().of("bias") == Layout()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lanes = 3", "l.toml: lanes must fit 1 word of 32 bits, not be 3 of 32 bits"),
        ("[signals.a]\nlane = 3", r"l.toml: signals: a: lane: must be a known key \(lanes\?\), and is given 3"),
        ("[signals.a]\nlanes = 0", "l.toml: signals: a: lanes: must be greater than or equal to 1, not 0"),
        (
            "[signal.a]\nlanes = 1",
            r"l.toml: signal: must be a known key \(signals\?\), and is given {'a': {'lanes': 1}}",
        ),
        ("signals = 3", "l.toml: signals: must be a table of patterns, not 3"),
        ("[signals]\na = 3", "l.toml: signals: a: must be a table of keys, not 3"),
        ("lanes = ", "l.toml: must be a TOML file of layouts, not: .*"),
        ("[signals.a.b]\nlanes = 1", "l.toml: signals: a: b: must be a known key, and is given {'lanes': 1}"),
    ],
)
def test_bad_files_of_layouts(text, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "l.toml").write_text(text)
    with pytest.raises(IntvitError, match=f"^{says}$"):
        read_layouts("l.toml")


def test_an_unknown_order_of_a_pattern_is_the_order_of_the_file():
    found = build_layouts({"signals": {"w*": {"banks": 2}, "weight": {"banks": 3}}})
    assert found.of("weight").banks == 2
    assert Plan((2, 2), Layout(), "x").addresses(0) == range(4)


DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "layouts.md").read_text()


def test_the_document_shows_what_is_computed():
    examples = doctest.DocTestParser().get_doctest(DOCUMENT, {}, "layouts.md", "layouts.md", 0)
    said = []
    runner = doctest.DocTestRunner()
    runner.run(examples, out=said.append)
    result = runner.summarize(verbose=False)
    assert result.failed == 0, "".join(said)
    assert result.attempted > 15


def test_the_document_has_every_key_and_its_default():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) \| [^|]* \|$", DOCUMENT, re.MULTILINE))
    assert rows.keys() == Layout.model_fields.keys()
    for key, value in Layout().model_dump().items():
        shown = re.match(r"`?(\w+)", rows[key])[1]
        assert shown == (str(value).lower() if value not in (None, []) else shown), key
    assert [rows[key].split(";")[0] for key in ("tiles", "depth")] == ["none, sizes, or a list of such lists", "none"]


def test_the_file_of_the_document_is_one():
    found = build_layouts(tomllib.loads(re.search(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)[1]))
    assert found.of("input0").levels == [[64, 64]]
    assert found.of("weight").banks == 4
    assert found.of("bias").words == 3
    assert found.of("output").depth == 4096


@pytest.mark.parametrize("keys", [{"lanes": 5, "words": 3, "element_bits": 24}])
def test_refusals_of_the_document(keys):
    with pytest.raises(IntvitError, match=r"^mine.toml: signals: bias: (.*)$") as refused:
        build_layouts({"signals": {"bias": keys}}, "mine.toml")
    assert f"    {refused.value}\n" in DOCUMENT
