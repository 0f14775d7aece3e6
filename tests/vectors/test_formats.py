"""Files of memories: read as written, held against bincopy, a simulator and a compiler; foreign and damaged ones."""

import io
import os
import shutil
import subprocess
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import bincopy
import numpy as np
import pytest
from drawn_layouts import layouts
from hypothesis import assume, given
from hypothesis import strategies as st

from intvit.errors import IntvitError
from intvit.graph.inttypes import IntType
from intvit.vectors.layouts.dump import encoded, read_dump, write_dump
from intvit.vectors.layouts.formats import SUFFIXES, constants, detect, header_of, read, write
from intvit.vectors.layouts.layout import Layout, Layouts, build_layout, build_layouts
from intvit.vectors.layouts.memory import Bank, Memory, Plan, pack, unpack
from intvit.vectors.layouts.numbers import identifier

S8 = IntType(8)
MEMORIES = ("memh", "memb", "coe", "mif", "ihex", "bin")
NUMBERS = ("npy", "npz", "c", "sv")


def files_of(memory, layout, header="what it is"):
    return [(f"x{end}", data) for end, data in write(memory, layout.format, header, "x").items()]


def round_trip(layout, array, dtype):
    files = files_of(pack(array, dtype, layout, "x"), layout)
    return unpack(read(files, layout, "x"), array.shape, dtype, layout, "x", partial=False).values


def refused(layout, shape):
    """What a format cannot hold: C wide words, formats of words a byte address inside of one."""
    wide = layout.format == "c" and layout.packed and layout.word_bits > 64
    plan = Plan(shape, layout.as_stored(), "x")
    addresses = np.concatenate([np.asarray(plan.addresses(i), np.int64) for i in range(plan.layout.banks)])
    empty = layout.format in ("c", "sv") and any(not len(plan.addresses(i)) for i in range(plan.layout.banks))
    return wide or empty or (layout.format not in ("bin", "ihex") and bool((addresses % plan.layout.step).any()))


@given(layouts(MEMORIES))
def test_memories_are_read_as_they_were_written(case):
    layout, array, dtype = case
    assume(not refused(layout, array.shape))
    assert np.array_equal(round_trip(layout, array, dtype), array)


@given(layouts(NUMBERS))
def test_numbers_are_read_as_they_were_written(case):
    layout, array, dtype = case
    assume(not refused(layout, array.shape))
    assert np.array_equal(round_trip(layout, array, dtype), array)


@given(st.binary(min_size=1, max_size=300), st.integers(0, 2**32 - 301), st.integers(1, 70), st.integers(0, 3))
def test_intel_hex_as_bincopy_has_it(data, base, stride, gaps):
    """Runs of bytes at addresses: what we write it reads, what it writes we read."""
    at = np.arange(len(data)) if not gaps else np.arange(len(data)) * stride % (300 * gaps)
    at = np.sort(np.unique(at))
    chosen = np.frombuffer(data, np.uint8)[: len(at)]
    memory = Memory(8, (Bank(at + min(base, 2**32 - 1 - int(at.max())), chosen[:, None]),), "byte")
    addresses = memory.banks[0].addresses
    (text,) = write(memory, "ihex").values()
    oracle = bincopy.BinFile()
    oracle.add_ihex(text.decode())
    assert {a: v for s in oracle.segments for a, v in enumerate(s.data, s.address)} == dict(
        zip(addresses.tolist(), chosen.tolist(), strict=True)
    )
    again = read([("b.ihex", oracle.as_ihex(number_of_data_bytes=7).encode())], Layout(format="ihex"))
    held = dict(zip(np.asarray(again.banks[0].addresses).tolist(), again.banks[0].words[:, 0].tolist(), strict=True))
    assert held == dict(zip(addresses.tolist(), chosen.tolist(), strict=True))


@given(layouts(("bin", "ihex")))
def test_bytes_of_a_layout_as_bincopy_has_them(case):
    """Binary at addresses, gaps zero; the same bytes as Intel HEX."""
    layout, array, dtype = case
    memory = pack(array, dtype, layout)
    raw, text = (list(write(memory, kind).values()) for kind in ("bin", "ihex"))
    for i, bank in enumerate(memory.banks):
        oracle, records = bincopy.BinFile(), bincopy.BinFile()
        scale = 1 if layout.address_unit == "byte" else layout.word_bytes
        for address, word in zip(np.asarray(bank.addresses).tolist(), bank.words, strict=True):
            value = int.from_bytes(word.tobytes(), "little")
            oracle.add_binary(value.to_bytes(layout.word_bytes, layout.byte_order), address * scale)
        records.add_ihex(text[i].decode())
        assert bytes(oracle.as_binary(padding=b"\0")) == raw[i]
        assert bytes(records.as_binary(padding=b"\0")) == raw[i]


def read_words(text, kind="memh", **keys):
    """Address -> (word, unknown bits) of a text."""
    layout = build_layout({"format": kind, "word_bits": 16, "element_bits": 16, **keys})
    (bank,) = read([("f", text.encode())], layout).banks
    lacking = np.zeros_like(bank.words) if bank.unknown is None else bank.unknown
    return {
        int(a): tuple(int.from_bytes(row.tobytes(), "little") for row in rows)
        for a, *rows in zip(np.asarray(bank.addresses), bank.words, lacking, strict=True)
    }


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("memh", "12ab\nFFFF\n", {0: (0x12AB, 0), 1: (0xFFFF, 0)}),
        ("memh", "12ab", {0: (0x12AB, 0)}),
        ("memh", "", {}),
        ("memh", "// only a comment", {}),
        ("memh", "1 /* two\nlines */ 2 // 3\n4", {0: (1, 0), 1: (2, 0), 2: (4, 0)}),
        ("memh", "@10 1 2\r\n@4\t3\n", {16: (1, 0), 17: (2, 0), 4: (3, 0)}),
        ("memh", "5 @A 6 @b 7", {0: (5, 0), 10: (6, 0), 11: (7, 0)}),
        ("memh", "@10\n0001\n0002\n", {16: (1, 0), 17: (2, 0)}),
        ("memh", "1_2_3_4\n00000012", {0: (0x1234, 0), 1: (0x12, 0)}),
        ("memh", "x\n1x\nzzzz\n00Z0", {0: (0, 0xFFFF), 1: (0x10, 0xF), 2: (0, 0xFFFF), 3: (0, 0xF0)}),
        ("memh", "0001 0002  0003\n0004", {0: (1, 0), 1: (2, 0), 2: (3, 0), 3: (4, 0)}),
        ("memb", "1010 x1\n1111_0000_1111_0000", {0: (10, 0), 1: (1, 0xFFFE), 2: (0xF0F0, 0)}),
        ("memb", "0000000000000001\n1000000000000000\n", {0: (1, 0), 1: (0x8000, 0)}),
        ("coe", "; hi\nMEMORY_INITIALIZATION_RADIX = 16;\nmemory_initialization_vector= 1,2 ,\n ff;\n; end",
            {0: (1, 0), 1: (2, 0), 2: (255, 0)}),
        ("coe", "memory_initialization_radix=2;\nmemory_initialization_vector=1 10;", {0: (1, 0), 1: (2, 0)}),
        ("coe", "memory_initialization_radix=10;\nmemory_initialization_vector=10, -1;", {0: (10, 0), 1: (0xFFFF, 0)}),
        ("mif", "-- c\nwidth = 16;\nDEPTH=32; % a\nb %\nCONTENT\nBEGIN\n0 : 12ab;\n[1..3]:1 2;\n1F : F;\nEND;\n",
            {0: (0x12AB, 0), 1: (1, 0), 2: (2, 0), 3: (1, 0), 31: (15, 0)}),
        ("mif", "DEPTH=32;WIDTH=16;ADDRESS_RADIX=DEC;DATA_RADIX=DEC;CONTENT BEGIN 10: -1 2; 20:3; END;",
            {10: (0xFFFF, 0), 11: (2, 0), 20: (3, 0)}),
        ("mif", "DEPTH=32;WIDTH=16;ADDRESS_RADIX=BIN;DATA_RADIX=OCT;CONTENT BEGIN 10: 17; END;", {2: (15, 0)}),
        ("mif", "DEPTH=32;WIDTH=16;ADDRESS_RADIX=HEX;DATA_RADIX=BIN;CONTENT BEGIN A: 11; B: 1; END;",
            {10: (3, 0), 11: (1, 0)}),
        ("c", "#include <stdint.h>\nconst uint16_t a[2][1] = {{0x12}, {3U}}; // {9}", {0: (0x12, 0), 1: (3, 0)}),
        ("c", "static int16_t\n a[] = { -1, /* 5 */ 2, };", {0: (0xFFFF, 0), 1: (2, 0)}),
        ("sv", "localparam logic [15:0] A [0:1] = '{16'hAB_cd, 16'b1x};", {0: (0xABCD, 0), 1: (2, 1)}),
        ("sv", "package p; parameter int A = 7; endpackage", {0: (7, 0)}),
        ("sv", "localparam bit signed [15:0] A[2] = '{-16'sd5, -6};", {0: (0xFFFB, 0), 1: (0xFFFA, 0)}),
    ],
)  # fmt: skip
def test_what_others_write(kind, text, expected):
    assert read_words(text, kind, packed=True) == expected


def test_a_sized_literal_is_extended_to_its_constant():
    layout = Layout(format="sv")
    for text, value in (("8'shfb", -5), ("8'hfb", 251), ("-8'sd5", -5), ("'1", None), ("32'hffff_fffb", -5)):
        source = [("f", f"localparam int A = {text};".encode())]
        if value is None:
            with pytest.raises(IntvitError, match=r"^f: line 1: .* must be an integer$"):
                read(source, layout)
        else:
            assert int(unpack(read(source, layout), (), IntType(32), layout).values) == value


def test_words_of_odd_widths():
    """A digit may have more bits than are left for it."""
    assert read_words("1ff\n0aa\n", word_bits=9, element_bits=9) == {0: (0x1FF, 0), 1: (0xAA, 0)}
    for text in ("1ff\n2aa\n", "1ff 2aa", "1ff 02aa"):
        with pytest.raises(IntvitError, match=r"must fit 9 bits, at address 0x1$"):
            read_words(text, word_bits=9, element_bits=9)
    assert read_words("x\n", word_bits=9, element_bits=9) == {0: (0, 0x1FF)}


def test_records_of_intel_hex():
    """Extended segment and linear addresses, start records, lower case, CR LF."""
    text = ":020000021000ec\r\n:0100050007f3\r\n:020000040001F9\n:0100000009f6\n:0400000500000000F7\n:00000001FF\n"
    memory = read([("f", text.encode())], Layout(format="ihex"))
    assert np.asarray(memory.banks[0].addresses).tolist() == [0x10005, 0x10000]
    assert memory.banks[0].words[:, 0].tolist() == [7, 9]


COE = "memory_initialization_radix=16;\nmemory_initialization_vector=\n"
MIF = "WIDTH=16;\nDEPTH=4;\nADDRESS_RADIX=HEX;\nDATA_RADIX=HEX;\nCONTENT BEGIN\n"


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("memh", "0001\n12345\n", "f: line 2: '12345' must fit 16 bits, at address 0x1"),
        ("memh", "@20\n0001\n1ffff\n", "f: line 3: '1ffff' must fit 16 bits, at address 0x21"),
        ("memh", "// c\n00g1\n", "f: line 2: '00g1' must be hex digits"),
        ("memh", "0001\n@\n0001", "f: line 2: '@' must be @ and an address of at most 15 hex digits"),
        ("memh", "@12345678901234567\n1", "f: line 1: '@12345678901234567' must be @ and an address .*"),
        ("memh", "@0x10\n1", "f: line 1: '@0x10' must be @ and an address of at most 15 hex digits"),
        ("memh", "0001\n/* 0002\n0003", r"f: line 2: comment must end with \*/, and the file ends first"),
        ("memh", "\0\0\0\0\0", r"f: line 1: '\\x00\\x00\\x00\\x00\\x00' must be hex digits"),
        ("memh", "\u00e9", r"f: line 1: '\\ufffd\\ufffd' must be hex digits"),
        ("memh", "-1", "f: line 1: '-1' must be hex digits"),
        ("memh", "1" * 200, "f: line 1: '1+' must have 4 hex digits at most"),
        ("memb", "2", "f: line 1: '2' must be binary digits"),
        ("memb", "1" * 17, "f: line 1: '1+' must fit 16 bits, at address 0x0"),
        ("coe", "0001\n", "f: line 1 and on must be memory_initialization_radix=.*"),
        ("coe", COE + "1,\n2,\n", "f: line 5: vector must end with ;, and the file ends first"),
        ("coe", COE + "1,\n2;\n3", "f: line 5: nothing must stand behind the vector"),
        ("coe", COE + "1,\n12345;", "f: line 4: '12345' must fit 16 bits, at address 0x1"),
        ("coe", COE + "1,\n@5;", "f: must have no addresses"),
        ("coe", COE.replace("16", "8") + "1;", "f: line 1: radix must be 2, 10 or 16, not 8"),
        ("coe", COE.replace("16", "10") + "1,\na;", "f: line 4: 'a' must be a number of base 10"),
        ("coe", COE.replace("16", "10") + "1,\n65536;", "f: line 4: 65536 must fit 16 bits"),
        ("mif", MIF + "0 : 1;\n", "f: line 7: must be WIDTH, DEPTH, radices, CONTENT BEGIN ... END;, and is not"),
        ("mif", MIF + "0 : 1\n1 : 2;\nEND;", "f: line 6: must be ADDRESS : WORDS;, and is not"),
        ("mif", MIF + "0 : 1;\n4 : 2;\nEND;", "f: line 7: address 0x4 must be below DEPTH, 4"),
        ("mif", MIF + "0 : 1;\n1 : 12345;\nEND;", "f: line 7: '12345' must fit 16 bits, at address 0x1"),
        ("mif", MIF + "0 : 1;\n0 : 2;\nEND;", "f: line 7: address 0x0 must be given once, not twice"),
        ("mif", MIF + "[2..1] : 1;\nEND;", "f: line 6: address must be a number of base 16 or .*"),
        ("mif", MIF + "[0..FFFFFFFFF] : 1;\nEND;", "f: line 6: range must have words, and at most .*"),
        ("mif", MIF.replace("16", "8") + "END;", "f: WIDTH must be 16, as in the layout, not 8"),
        ("mif", MIF.replace("DATA_RADIX=HEX", "DATA_RADIX=X") + "END;", "f: DATA_RADIX must be HEX, .*, not 'X'"),
        ("mif", MIF.replace("DEPTH=4", "DEPTH=0") + "END;", "f: DEPTH must be a number above 0, not '0'"),
        ("mif", "SIZE=4;" + MIF + "END;", "f: must begin with WIDTH, DEPTH and radices, each once, not 'SIZE=4'"),
        ("ihex", ":0100000001FE\n", "f: must end with the record :00000001FF, and the file ends first"),
        ("ihex", ":0100000001FF\n", "f: line 1: checksum at address 0x0 must be FE, not FF"),
        ("ihex", ":0200000001FE\n", "f: line 1: must be : and a record as long as its first byte says, .*"),
        ("ihex", "0001\n", "f: line 1: must be : and a record as long as its first byte says, not '0001'"),
        ("ihex", ":01000G0001FE\n", "f: line 1: must be a record of hex digits, not: .*"),
        ("ihex", ":01000006FFFA\n", "f: line 1: kind of record must be 0 to 5, not 6"),
        ("ihex", ":0100000001FE\n" * 2 + ":00000001FF", "f: line 2: address 0x0 must be given once, not twice"),
        ("ihex", ":00000001FF\n:00000001FF", "f: line 2: nothing must stand behind the end record"),
        ("c", "int x;", "f: must have a constant of integers, and has none"),
        ("c", "const uint8_t x[] = {1,\n2.5};", "f: line 2: '2.5' must be an integer"),
        ("c", "const uint8_t x[] = {1,\n017};", "f: line 2: '017' must be an integer"),
        ("c", "const uint8_t x[] = {1,\n256};", "f: line 2: 256 at address 0x1 must fit its type of 8 bits"),
        ("c", "const uint32_t x[] = {1,\n65536};", "f: line 2: 65536 at address 0x1 must fit 16 bits"),
        ("c", "const int8_t a = 1, b = 2;\nconst int8_t c = 1;", "f: must have a constant memory, and has 2 others"),
        ("c", "const int8_t a = 1;\nconst int8_t a = 1;", "f: line 2: a must be given once, not twice"),
        ("c", "const int8_t a[] = {1", "f: must have a constant of integers, and has none"),
        ("sv", "localparam int X = 8'h1FF;", "f: line 1: .* must be an integer"),
        ("sv", "localparam int X = 'dx;", "f: line 1: .* must be an integer"),
        ("sv", "localparam int X = " + "9" * 1000 + ";", "f: line 1: a number of 3322 bits at address 0x0 must fit .*"),
        (
            "mif",
            MIF.replace("DATA_RADIX=HEX", "DATA_RADIX=OCT") + "0 : 1;\n1 : 1\n " + "7" * 9999 + ";\nEND;",
            "f: line 8: a number of 29997 bits must fit 16 bits",
        ),
        ("npy", "0001\n", "f: must be an npy file, and does not begin as one"),
        ("npz", "0001\n", "f: must be a whole npz file, not: File is not a zip file"),
    ],
)
def test_bad_files(kind, text, says):
    with pytest.raises(IntvitError, match=f"^{says}$"):
        read_words(text, kind, packed=True)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("memh", "/*" * 100_000),
        ("memh", "0" * 200_000),
        ("memh", "@" * 200_000),
        ("mif", MIF + "0" * 200_000 + "\nEND;"),
        ("mif", MIF + "[" * 200_000 + "\nEND;"),
        ("mif", MIF + "0 : " + "0" * 200_000 + ";\nEND;"),
        ("mif", "CONTENT BEGIN " * 20_000),
        ("mif", "%" * 199_999),
        ("coe", ";" * 200_000),
        ("coe", COE + "1" * 200_000),
        ("c", "int8_t " * 30_000),
        ("c", "const int8_t a" + " " * 200_000 + "[" * 100_000),
        ("sv", "localparam" + " " * 200_000),
        ("sv", "localparam int signed [7:0] a" + "[0]" * 60_000),
        ("sv", "localparam int a = " + "1" * 200_000 + ";"),
        ("ihex", ":" * 200_000),
    ],
)
def test_long_texts_are_refused_at_once(kind, text):
    """Nothing is tried again from every byte on: that would take minutes."""
    start = time.process_time()
    with pytest.raises(IntvitError) as refused:
        read_words(text, kind, packed=True)
    assert len(str(refused.value)) < 300
    assert time.process_time() - start < 20


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (npy(np.zeros(3)), "f: must hold integers, not float64"),
        (npy(np.array([None])), "f: must hold integers, not object"),
        (npy(np.zeros(3, np.int8))[:-1], "f: must have 3 bytes of .* int8, not 2"),
        (npy(np.zeros(3, np.int8)) + b"0", "f: must have 3 bytes of .* int8, not 4"),
        (npy(np.zeros(3, np.int8)).replace(b"(3,)", b"(-3,"), "f: must be a whole npy file, not: .*"),
        (npy(np.zeros(3, np.int8)).replace(b"(3,), ", b"(1<<9)"), "f: must be a whole npy file, not: .*"),
        (npy(np.full(3, 2**64 - 1, np.uint64)), "f: values must fit s64, not 18446744073709551615"),
        (npy(np.zeros(3, np.int8))[:20], "f: must be a whole npy file, and ends in its header"),
    ],
)
def test_bad_npy(data, says):
    with pytest.raises(IntvitError, match=f"^{says}$"):
        read([("f", data)], Layout(format="npy"))


def test_arrays_of_others():
    """Any integers, in either order of memory; truth values; a shape, or flat."""
    array = np.array([[1, -2, 300], [0, 1, 2]])
    layout = Layout(format="npy", element_bits=8)
    for given_ in (array, np.asfortranarray(array), array.astype(">i4"), array.reshape(-1)):
        back = unpack(read([("f", npy(given_))], layout), (2, 3), S8, layout)
        assert np.array_equal(back.values, array)  # 300 is no s8, and not 44
    with pytest.raises(IntvitError, match=r"^memory: shape must be \[2, 3\], not \[3, 2\]$"):
        unpack(read([("f", npy(array.T))], layout), (2, 3), S8, layout)
    assert unpack(read([("f", npy(np.array([True])))], layout), (1,), S8, layout).values.tolist() == [1]
    with pytest.raises(IntvitError, match=r"^memory: shape must be \[2, 3\], not \[4\]$"):
        unpack(read([("f", npy(array.reshape(-1)[:4]))], layout), (2, 3), S8, layout)


def test_a_zip_that_swells_is_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy(np.zeros(1 << 20, np.int8)))
    memory = read([("f", file.getvalue())], Layout(format="npz"), "a")
    assert unpack(memory, (1 << 20,), S8, Layout(format="npz")).complete
    data = bytearray(file.getvalue())
    at = data.rindex(b"PK\1\2") + 24
    data[at : at + 4] = (1 << 31).to_bytes(4, "little")
    with pytest.raises(IntvitError, match=r"^f: must"):
        read([("f", bytes(data))], Layout(format="npz"), "a")


def test_where_a_text_without_addresses_begins():
    """At base; or at 0 where it is the whole memory."""
    layout = Layout(base=2, depth=4)
    for text, expected in (("1\n2\n", [1, 2]), ("8\n9\n1\n2\n", [1, 2]), ("@2 1 2", [1, 2]), ("@3\n2", [None, 2])):
        back = unpack(read([("f", text.encode())], layout), (2,), S8, layout)
        assert [int(v) if ok else None for v, ok in zip(back.values, back.valid, strict=True)] == expected


def test_bytes_that_end_inside_of_a_word():
    layout = Layout(format="bin")
    files = [("f.bin", bytes(7))]
    with pytest.raises(IntvitError, match=r"^f.bin: byte 7: the word at address 0x1 must have 4 bytes, not 3$"):
        unpack(read(files, layout), (2,), S8, layout)
    with pytest.raises(IntvitError, match=r"^f.bin: byte 8: address 0x8 must lie in 0x0..0x7$"):
        unpack(read([("f.bin", bytes(9))], layout), (2,), S8, layout)
    assert unpack(read([("f.bin", bytes(4))], layout), (2,), S8, layout).valid.tolist() == [True, False]


def test_bits_above_a_word_of_bytes():
    layout = Layout(format="bin", word_bits=12, element_bits=12)
    with pytest.raises(IntvitError, match=r"^m: word at address 0x1 must have 12 bits, not more$"):
        unpack(read([("f", b"\xff\x0f\xff\x10")], layout), (2,), S8, layout, "m")


def test_unknown_bits_make_elements_unknown():
    layout = Layout(lanes=4, element_bits=8)
    back = unpack(read([("f", b"01xx03z4\nxxxxxxxx")], layout), (6,), S8, layout)
    assert back.valid.tolist() == [False, True, False, True, False, False]
    assert back.values.tolist() == [0, 3, 0, 1, 0, 0]
    with pytest.raises(IntvitError, match=r"^memory: word at address 0x0 must have all its bits, and is .*"):
        unpack(read([("f", b"01xx03z4\n0")], layout), (6,), S8, layout, partial=False)


def test_unknown_bits_of_constants():
    layout = Layout(format="sv", packed=True, lanes=2, element_bits=8, word_bits=16)
    text = b"localparam logic [15:0] m [0:1] = '{16'h02z1, 16'h0403};"
    back = unpack(read([("f", text)], layout, "m"), (4,), S8, layout)
    assert back.valid.tolist() == [False, True, True, True]
    assert back.values.tolist() == [0, 2, 3, 4]


def test_unknown_bits_are_written_where_a_format_has_them():
    bank = Bank(range(2), np.array([[1, 2], [3, 4]], np.uint8), np.array([[0xF, 0], [0, 0]], np.uint8))
    memory, layout = Memory(16, (bank,)), Layout(word_bits=16, element_bits=16, packed=True)
    for kind, text in (("memh", b"020x\n0403\n"), ("sv", b"16'h020x"), ("memb", b"000000100000xxxx\n")):
        (data,) = write(memory, kind).values()
        assert text in data
        (again,) = read([("f", data)], layout, kind=kind).banks
        assert np.array_equal(again.unknown, bank.unknown)
    for kind in ("coe", "mif", "ihex", "bin", "npy", "c"):
        with pytest.raises(IntvitError, match=f"^memory: every word must be known in {kind}$"):
            write(memory, kind)


def test_headers():
    memory = pack(np.arange(3), S8, Layout())
    for kind in ("memh", "memb", "coe", "mif", "c", "sv"):
        (data,) = write(memory, kind, "sha256 of %2e").values()
        assert header_of(data) == "sha256 of %2e"
    for text in ("two\nlines", "\u00e9", "*/"):
        with pytest.raises(IntvitError, match=r"^header: must be one line of printable ASCII"):
            write(memory, "c", text)
    assert header_of(b"") == header_of(b"0001\n") == ""


def test_names_of_formats():
    layout = Layout(format="memb")
    assert detect("a.mem", b"1", layout) == "memb"
    assert detect("a.mem", b"1", Layout()) == "memh"
    assert detect("a.hex", b"\n:00", layout) == "ihex"
    assert detect("a.hex", b"00", layout) == "memh"
    with pytest.raises(IntvitError, match=r"^a.exe: must end in a known suffix"):
        detect("a.exe", b"", layout)
    assert [identifier(name) for name in ("", "0a", "a.b", "logic", "\u00e9")] == ["_", "_0a", "a_b", "logic_", "_"]


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="needs Icarus Verilog")
@pytest.mark.parametrize("keys", [{}, {"word_stride": 3, "base": 5}, {"tiles": [2, 2], "tile_stride": 9}])
def test_a_simulator_reads_and_dumps_them(keys, tmp_path):
    """`$readmemh` into a memory whose `$writememh` we read: equal, and unknown where nothing was."""
    array = np.arange(-12, 12).reshape(4, 6)
    layout = build_layout({"lanes": 2, "element_bits": 9, "word_bits": 20, "depth": 64, **keys})
    (data,) = write(pack(array, S8, layout), "memh", "x").values()
    (tmp_path / "in.hex").write_bytes(data)
    (tmp_path / "t.v").write_text(
        'module t; reg [19:0] m [0:63]; initial begin $readmemh("in.hex", m); $writememh("out.hex", m);\n'
        '$writememb("out.memb", m); end endmodule\n'
    )
    for command in (["iverilog", "-o", "t", "t.v"], ["vvp", "t"]):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    for kind, name in (("memh", "out.hex"), ("memb", "out.memb")):
        dumped = (tmp_path / name).read_bytes()
        assert b"x" in dumped
        back = unpack(read([(name, dumped)], layout, kind=kind), array.shape, S8, layout, partial=False)
        assert np.array_equal(back.values, array)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_compiler_reads_the_header(tmp_path):
    values = {
        "weight": (np.array([[-128, 127], [0, -1]]), S8),
        "wide": (np.array([-(2**63), 2**63 - 1]), IntType(64)),
        "u": (np.array([255]), IntType(8, False)),
        "n": (np.array(-20), IntType(6)),
    }
    chosen = build_layouts({"signals": {"wide": {"element_bits": 64, "word_bits": 64}, "[wu]*": {"element_bits": 8}}})
    (tmp_path / "p.h").write_bytes(constants("c", "p", values, chosen, "all"))
    (tmp_path / "t.c").write_text(
        '#include "p.h"\n#include <stdio.h>\n#include <inttypes.h>\nint main(void)'
        '{for(int i=0;i<4;i++)printf("%d ",weight[i]);'
        'printf("%" PRId64 " %" PRId64 " %d %d %zu",wide[0],wide[1],u[0],(int)n,sizeof weight[0]);return 0;}'
    )
    command = ["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "t.c", "-o", "t"]
    subprocess.run(command, cwd=tmp_path, check=True)
    said = subprocess.run(["./t"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert said == f"-128 127 0 -1 {-(2**63)} {2**63 - 1} 255 -20 1"


def test_constants_of_a_site_in_one_text():
    values = {"x0": (np.array(-20), IntType(6)), "b.0": (np.array([1, 2]), S8)}
    text = constants("sv", "softmax", values, Layouts(), "digest 12").decode()
    assert text == (
        "// digest 12\npackage softmax;\n  localparam logic signed [31:0] x0 = 32'shffffffec;  // -20\n"
        "  localparam logic signed [31:0] b_0 [0:1] = '{\n    32'sh00000001, 32'sh00000002\n  };\nendpackage\n"
    )
    for key, (array, dtype) in values.items():
        layout = Layout(format="sv")
        back = unpack(read([("p.sv", text.encode())], layout, key), array.shape, dtype, layout)
        assert np.array_equal(back.values, array)
    with pytest.raises(IntvitError, match=r"^b_0: must have a name of its own in c, and b_0 is taken$"):
        constants("c", "p", {"b.0": values["b.0"], "b_0": values["b.0"]}, Layouts())


# folders


SIGNALS = {
    "input0": (np.arange(-60, 60).reshape(2, 60), S8),
    "blocks.0/W": (np.arange(24).reshape(4, 6), IntType(5, False)),
    "n": (np.array(-3), IntType(3)),
}
WANTED = {key: (array.shape, dtype) for key, (array, dtype) in SIGNALS.items()}


@pytest.mark.parametrize("kind", list(SUFFIXES))
@pytest.mark.parametrize("banks", [1, 3])
def test_a_folder_of_signals(kind, banks, tmp_path):
    chosen = build_layouts({"format": kind, "banks": banks, "signals": {"input*": {"lanes": 4, "element_bits": 8}}})
    names = write_dump(tmp_path / "d", SIGNALS, chosen, "h")
    assert sorted(os.listdir(tmp_path / "d")) == sorted(names)
    found = read_dump(tmp_path / "d", WANTED, chosen, partial=False)
    assert found.extra == () == found.missing(WANTED)
    assert sorted(name for files in found.files.values() for name in files) == sorted(names)
    for key, (array, _) in SIGNALS.items():
        assert np.array_equal(found.signals[key].values, array)
    if banks == 1:
        one = read_dump(tmp_path / "d" / found.files["n"][0], WANTED, chosen)
        assert list(one.signals) == ["n"]
        assert int(one.signals["n"].values) == -3


def test_a_folder_with_other_files(tmp_path):
    (tmp_path / "input0.bin").write_bytes(np.arange(-60, 60).astype("<i4").tobytes())
    (tmp_path / "log.txt").write_text("hello")
    (tmp_path / "sub").mkdir()
    found = read_dump(tmp_path, WANTED, Layouts())
    assert list(found.signals) == ["input0"]
    assert found.extra == ("log.txt", "sub")
    assert found.missing(WANTED) == ("blocks.0/W", "n")
    (tmp_path / "input0.hex").write_text("0")
    with pytest.raises(IntvitError, match=r"input0 must have one file a bank, not input0.bin and input0.hex$"):
        read_dump(tmp_path, WANTED, Layouts())


def test_a_bank_that_is_not_there_is_missing(tmp_path):
    chosen = Layouts(default=Layout(banks=2))
    write_dump(tmp_path / "d", {"a": (np.arange(4), S8)}, chosen)
    (tmp_path / "d" / "a.bank1.hex").unlink()
    found = read_dump(tmp_path / "d", {"a": ((4,), S8)}, chosen)
    assert found.signals["a"].valid.tolist() == [True, False, True, False]
    (tmp_path / "d" / "a.bank2.hex").write_text("")
    with pytest.raises(IntvitError, match=r"a.bank2.hex: bank must be below 2, as in the layout$"):
        read_dump(tmp_path / "d", {"a": ((4,), S8)}, chosen)


def test_one_npz_of_all_signals(tmp_path):
    arrays = {"input0": SIGNALS["input0"][0], "n": np.array(-3), "n.valid": np.array(False), "other": np.zeros(2)}
    del arrays["other"]
    np.savez_compressed(tmp_path / "d.npz", **arrays, extra=np.arange(2))
    found = read_dump(tmp_path / "d.npz", WANTED, Layouts())
    assert found.missing(WANTED) == ("blocks.0/W",)
    assert found.extra == ("extra",)
    assert np.array_equal(found.signals["input0"].values, arrays["input0"])
    assert not found.signals["n"].valid
    with pytest.raises(IntvitError, match=r"d.npz: input0 must have one bank in an npz of many signals$"):
        read_dump(tmp_path / "d.npz", WANTED, Layouts(default=Layout(packed=True, banks=2)))


def test_dumps_that_are_refused(tmp_path):
    (tmp_path / "x.hex").write_text("0")
    os.symlink(tmp_path / "x.hex", tmp_path / "n.hex")
    with pytest.raises(IntvitError, match=r"n.hex: must lie in .*, without links out of it$"):
        read_dump(tmp_path, WANTED, Layouts())
    with pytest.raises(IntvitError, match=r"x.hex: must be named after one of the signals \(input0\.\*, .*\)$"):
        read_dump(tmp_path / "x.hex", WANTED, Layouts())
    assert not read_dump(tmp_path / "x.hex", {"n": ((), S8)}, Layouts()).signals["n"].values
    with pytest.raises(IntvitError, match=r"nowhere: no such file$"):
        read_dump(tmp_path / "nowhere", WANTED, Layouts())
    (tmp_path / "n.hex").unlink()
    os.mkfifo(tmp_path / "n.hex")
    with pytest.raises(IntvitError, match=r"n.hex: must be a plain file$"):
        read_dump(tmp_path, WANTED, Layouts())


def test_a_flipped_digit_changes_a_value():
    """No bit of a file that holds an element can change unnoticed."""
    layout = Layout(lanes=4, element_bits=8)
    ((_, data),) = encoded({"a": (np.arange(8), S8)}, Layouts(default=layout))
    first = data.index(b"\n") + 1
    for i in range(first, len(data)):
        if data[i] == ord("\n"):
            continue
        changed = data[:i] + (b"0" if data[i] != ord("0") else b"1") + data[i + 1 :]
        back = unpack(read([("f", changed)], layout), (8,), S8, layout)
        assert (back.values != np.arange(8)).sum() == 1


def test_bytewise_memories_are_not_written():
    memory = read([("f", b"\0\0")], Layout(format="bin"))
    with pytest.raises(IntvitError, match=r"^memory: must be words to be written, not bytes$"):
        write(memory, "bin")
    with pytest.raises(IntvitError, match=r"^format: must be one of memh, .*, not 'srec'$"):
        write(replace(memory, bytewise=False), "srec")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bias.hex", "// bias s24\n@00000401\n1fe000001\n"),
        ("bias.hex", "\n@400\nfe000001\n@402\n0\n0\n\n@500 0\n"),
        ("bias.ihex", ":0110000001FF\n"),
        ("bias.bin", "0000000"),
    ],
)
def test_refusals_of_the_document(name, text):
    layout = Layout(element_bits=24, lanes=4, words=3, base=0 if name == "bias.bin" else 0x400)
    layout = layout.model_copy(update={"format": detect(name, text.encode(), layout)})
    with pytest.raises(IntvitError) as refused:
        unpack(read([(name, text.encode())], layout), (5,), IntType(24), layout)
    document = (Path(__file__).resolve().parents[2] / "docs" / "layouts.md").read_text()
    assert f"    {refused.value}\n" in document
