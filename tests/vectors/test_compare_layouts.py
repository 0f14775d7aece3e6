"""`golden compare` reads dumps as memories lie, and says where in them an element is."""

import json
import shutil

import numpy as np
import pytest
from small_graph import small_graph, small_images

from intvit.vectors.bundle import open_bundle
from intvit.vectors.export import export
from intvit.vectors.layouts.dump import encoded
from intvit.vectors.layouts.layout import build_layouts

LAYOUT = """
format = "{format}"
element_bits = 32
lanes = 2
word_bits = 64
banks = {banks}
base = 16
"""


@pytest.fixture
def dumped(tmp_path):
    """(bundle, function that dumps changed outputs under a layout)"""
    export(small_graph(), small_images(1), tmp_path / "v", sites=["fc", "sum"])

    def dump(kind, banks, change):
        (tmp_path / "l.toml").write_text(LAYOUT.format(format=kind, banks=banks))
        layouts = build_layouts({"format": kind, "element_bits": 32, "lanes": 2, "word_bits": 64, "banks": banks,
                                 "base": 16})  # fmt: skip
        for case in open_bundle(tmp_path / "v"):
            folder = tmp_path / "dump" / case.name / "image0"
            folder.mkdir(parents=True)
            (tensor,) = case.part.outputs
            array = np.array(case.expected(0)[tensor], np.int64)
            change(case.name, array)
            for name, data in encoded({"output": (array, case.part.tensors[tensor].dtype)}, layouts):
                (folder / name).write_bytes(data)
        return tmp_path / "v", tmp_path / "dump", tmp_path / "l.toml"

    return dump


@pytest.mark.parametrize("kind", ["memh", "memb", "mif", "ihex", "bin"])
@pytest.mark.parametrize("banks", [1, 2])
def test_a_right_dump_is_equal(dumped, cli, kind, banks):
    vectors, dump, layout = dumped(kind, banks, lambda name, array: None)
    status, out, err = cli("golden", "compare", vectors, dump, "--layout", layout)
    assert (status, err) == (0, "")
    assert "differ" not in out.splitlines()[0]


def test_a_pattern_with_a_colon_is_of_one_part(tmp_path, cli):
    """Written, read back from the manifest, and compared under it: other words in one of two sites only."""
    values = {"element_bits": 32, "signals": {"s?m:output": {"word_bits": 64, "lanes": 2}, "*:input0": {"base": 8}}}
    bundle = tmp_path / "v"
    export(small_graph(), small_images(1), bundle, sites=["fc", "sum"], layouts=values)
    texts = {name: (bundle / name / "image0" / "output.hex").read_text().splitlines()[1] for name in ("fc", "sum")}
    assert [len(texts["fc"]), len(texts["sum"])] == [8, 16]
    assert "@00000008" in (bundle / "fc" / "image0" / "input0.hex").read_text()
    assert cli("golden", "check", bundle)[0] == 0
    (tmp_path / "l.toml").write_text('element_bits = 32\n[signals."s?m:output"]\nword_bits = 64\nlanes = 2\n')
    for name in texts:
        (tmp_path / "d" / name / "image0").mkdir(parents=True)
        shutil.copy(bundle / name / "image0" / "output.hex", tmp_path / "d" / name / "image0" / "output.hex")
    assert cli("golden", "compare", bundle, tmp_path / "d", "--layout", tmp_path / "l.toml")[0] == 0


@pytest.mark.parametrize("kind", ["memh", "bin"])
def test_where_an_element_lies_is_said(dumped, cli, kind):
    def change(name, array):
        if name == "sum":
            array.reshape(-1)[7] += 1

    vectors, dump, layout = dumped(kind, 2, change)
    status, out, _ = cli("golden", "compare", vectors, dump, "--layout", layout)
    assert status == 1
    # the eighth element: beat 3, lane 1; word 3 of two banks is the second of bank 1
    assert "address 0x11, bank 1, beat 3, lane 1" in " ".join(out.split())
    status, out, _ = cli("golden", "compare", vectors, dump, "--layout", layout, "--json")
    assert status == 1
    assert json.loads(out)


def test_a_dump_that_is_cut_short_is_partial_or_refused_and_never_equal(dumped, cli):
    vectors, dump, layout = dumped("memh", 1, lambda name, array: None)
    path = next((dump / "sum" / "image0").iterdir())
    whole = path.read_text().splitlines()
    path.write_text("\n".join(whole[:-2]) + "\n")
    status, _, err = cli("golden", "compare", vectors, dump, "--layout", layout)
    assert (status, err.count("\n")) == (2, 1)
    assert f"{path.name}: element [" in err
    assert ", address 0x" in err
    assert "are missing; --partial compares the others" in err
    status, out, _ = cli("golden", "compare", vectors, dump, "--layout", layout, "--json", "--partial")
    found = {site["site"]: site["status"] for site in json.loads(out)["sites"]}
    assert (status, found["sum"]) == (0, "missing")
    path.write_text("\n".join([*whole[:-2], *("x" * len(word) for word in whole[-2:])]) + "\n")
    status, out, _ = cli("golden", "compare", vectors, dump, "--layout", layout)
    assert (status, "got x or z" in out) == (1, True)
    path.write_bytes(b"\xff\xfe")
    status, _, err = cli("golden", "compare", vectors, dump, "--layout", layout)
    assert (status, err.count("\n")) == (2, 1)
    path.rename(path.with_name("output.txt"))
    status, _, err = cli("golden", "compare", vectors, dump, "--layout", layout)
    assert (status, err.count("\n")) == (2, 1)
