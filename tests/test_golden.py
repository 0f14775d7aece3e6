"""Golden vectors: exported, recomputed by both backends, and caught when one bit changes."""

import json
import shutil

import numpy as np
import pytest

from intvit.inttypes import IntType
from intvit.vectors.check import check
from intvit.vectors.export import export
from intvit.vectors.memh import format_memh, parse_memh

SITES = (
    "blocks.0.*",
    "blocks.1.attn.softmax",
    "blocks.2.attn.softmax",
    "blocks.1.norm1",
    "blocks.1.norm1.quant",
    "blocks.2.norm1",
    "logits",
    "blocks.2.attn.matmul_av",
    "blocks.1.mlp.act",
)


@pytest.fixture(scope="module")
def vectors(vit, mixed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden") / "vectors"
    export(mixed, vit.test.read(0, 1), folder, sites=SITES)
    return folder


@pytest.fixture
def copied(vectors, tmp_path):
    shutil.copytree(vectors, tmp_path / "v")
    return tmp_path / "v"


def flip(folder, site, key, index, bit=0):
    path = folder / site / "image0" / "case.npz"
    with np.load(path) as file:
        arrays = {name: np.array(file[name]) for name in file.files}
    arrays[key][index] ^= 1 << bit
    np.savez_compressed(path, **arrays)


def test_exported_vectors_are_equal_in_both_backends(vectors):
    n_cases, mismatches = check(vectors)
    assert (n_cases, mismatches) == (29, [])


def test_every_operator_is_among_them(vectors):
    ops = {json.loads(p.read_text())["op"] for p in vectors.rglob("case.json")}
    assert ops == {"gelu", "layernorm", "linear", "log2_matmul", "matmul", "requantize", "softmax"}


@pytest.mark.parametrize(
    ("site", "key", "index"),
    [
        ("blocks.0.attn.softmax", "output", (2, 17, 3)),
        ("blocks.0.mlp.act", "output", (4, 5)),
        ("blocks.0.norm1", "output", (49, 95)),
        ("blocks.0.attn.qkv", "output", (0, 0)),
        ("logits", "output", (9,)),
    ],
)
def test_one_flipped_output_bit_exits_1_and_names_site_and_index(copied, cli, site, key, index):
    flip(copied, site, key, index)
    status, out, _ = cli("golden", "check", copied)
    assert status == 1
    assert site in out
    assert f"index {list(index)}" in out


@pytest.mark.parametrize(
    ("site", "key", "index"),
    [
        ("blocks.0.attn.softmax", "input0", (0, 0, 0)),
        ("blocks.0.attn.qkv", "weight", (3, 3)),
        ("blocks.1.norm1.quant", "m", (5,)),
    ],
)
def test_one_flipped_stimulus_or_parameter_bit_exits_1(copied, cli, site, key, index):
    flip(copied, site, key, index)
    status, out, _ = cli("golden", "check", copied)
    assert status == 1
    assert f"{site}: {key}.hex against case.npz differs first at index {list(index)}" in out


def test_flipped_bit_without_hex_files_is_caught_by_the_digest(copied, cli):
    site = "blocks.0.attn.qkv"
    for path in (copied / site / "image0").glob("*.hex"):
        path.unlink()
    flip(copied, site, "weight", (0, 0))
    assert cli("golden", "check", copied)[0] == 1


def test_one_flipped_hex_digit_exits_1(copied, cli):
    path = copied / "blocks.0.mlp.act" / "image0" / "output.hex"
    lines = path.read_text().splitlines()
    lines[7] = f"{int(lines[7], 16) ^ 1:0{len(lines[7])}x}"
    path.write_text("\n".join(lines) + "\n")
    status, out, _ = cli("golden", "check", copied)
    assert status == 1
    assert "index [0, 6]" in out


def damage(folder, kind):
    case = folder / "blocks.0.attn.softmax" / "image0"
    if kind == "truncated npz":
        (case / "case.npz").write_bytes((case / "case.npz").read_bytes()[:100])
    elif kind == "missing case":
        shutil.rmtree(case)
    elif kind == "bad manifest":
        (case / "case.json").write_text("{")
    elif kind == "stale":
        manifest = json.loads((case / "case.json").read_text())
        (case / "case.json").write_text(json.dumps({**manifest, "spec_version": 0}))
    elif kind == "unknown key":
        manifest = json.loads((case / "case.json").read_text())
        (case / "case.json").write_text(json.dumps({**manifest, "surprise": 1}))
    elif kind == "unknown method":
        manifest = json.loads((case / "case.json").read_text())
        manifest["attrs"]["method"] = "magic"
        (case / "case.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "kind", ["truncated npz", "missing case", "bad manifest", "stale", "unknown key", "unknown method"]
)
def test_damaged_vectors_exit_2_with_one_line(copied, cli, kind):
    damage(copied, kind)
    status, _, err = cli("golden", "check", copied)
    assert status == 2
    assert err.startswith("intvit: ")
    assert err.count("\n") == 1


def test_export_never_mixes_with_older_vectors(copied, cli, mixed_path):
    status, _, err = cli("golden", "export", mixed_path, "fashion-mnist:test", "-o", copied)
    assert (status, "must not exist yet" in err) == (2, True)


def test_a_pattern_that_matches_nothing_exits_2(cli, mixed_path, tmp_path):
    status, _, err = cli("golden", "export", mixed_path, "fashion-mnist:test", "-o", tmp_path / "n", "--site", "nope*")
    assert (status, "matches none" in err) == (2, True)
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("text", ["s8", "u4", "s33", "s2"])
def test_memh_round_trip(text):
    dtype = IntType.parse(text)
    array = np.array([[dtype.min, dtype.max, 0], [1, -1 if dtype.signed else 2, dtype.max - 1]], np.int64)
    assert np.array_equal(parse_memh(format_memh(array, dtype, "x"), dtype, (2, 3), "here"), array)
