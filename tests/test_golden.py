"""Golden vectors: exported, recomputed by both backends, and caught when one bit changes."""

import dataclasses
import errno
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_graph import small_graph, small_images

from intvit.errors import IntvitError
from intvit.graph.inttypes import IntType
from intvit.vectors.bundle import declared_type
from intvit.vectors.check import check
from intvit.vectors.compare import word
from intvit.vectors.export import export
from intvit.vectors.manifest import Part, layout
from intvit.vectors.memh import format_memh, parse_memh, size_memh
from intvit.vectors.npz import format_npz, parse_npz

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
    part = Part.model_validate_json((folder / site / "part.json").read_text())
    constant = key in {p.key for p in part.parameters}
    path = folder / site / "parameters.npz" if constant else folder / site / "image0" / "case.npz"
    with np.load(path) as file:
        arrays = {name: np.array(file[name]) for name in file.files}
    arrays[key][index] ^= 1 << bit
    path.write_bytes(format_npz(arrays, layout(part.parameters if constant else part.signals)))


def test_exported_vectors_are_equal_in_both_backends(vectors):
    report = check(vectors)
    assert (report.n_cases, report.mismatches) == (29, ())


def test_every_operator_is_among_them(vectors):
    ops = {json.loads(p.read_text())["nodes"][0]["op"] for p in vectors.rglob("part.json")}
    assert ops == {"gelu", "layernorm", "linear", "log2_matmul", "matmul", "requantize", "softmax"}


def test_every_signal_names_the_float_tensor_that_it_stands_for(vectors, vit):
    tensors = [t for p in vectors.rglob("part.json") for t in json.loads(p.read_text())["tensors"].values()]
    assert len(tensors) > 50
    assert {t["source"] for t in tensors} <= set(vit.graph.tensors)


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
    npz = "case.npz" if key.startswith("input") else "parameters.npz"
    assert f"{site}: {key}.hex against {npz} differs first at index {list(index)}" in out


def test_a_flipped_output_is_found_by_both_backends_without_hex_files(mixed, vit, cli, tmp_path):
    folder, site = tmp_path / "v", "blocks.0.attn.proj"
    export(mixed, vit.test.read(0, 1), folder, sites=[site], hex_files=False)
    assert sorted(p.name for p in (folder / site / "image0").iterdir()) == ["case.json", "case.npz"]
    flip(folder, site, "output", (1, 2))
    status, out, _ = cli("golden", "check", folder)
    assert status == 1
    assert f"{site}: output (spec) differs first at index [1, 2]" in out
    assert f"{site}: output (kernel) differs first at index [1, 2]" in out


def test_values_are_printed_as_words_of_their_width():
    assert word(-3, IntType(6)) == "-3 (0x3d)"
    assert word(-1, IntType(33)) == "-1 (0x1ffffffff)"
    assert word(5, IntType(64)) == "5 (0x0000000000000005)"
    assert word(128, IntType(8)) == "128 (beyond s8)"


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
        manifest = json.loads((case.parent / "part.json").read_text())
        manifest["nodes"][0]["attrs"]["method"] = "magic"
        (case.parent / "part.json").write_text(json.dumps(manifest))


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
    before = sorted(copied.rglob("*"))
    status, _, err = cli("golden", "export", mixed_path, "fashion-mnist:test", "-o", copied)
    assert (status, "must not exist yet" in err) == (2, True)
    assert (sorted(copied.rglob("*")), list(copied.parent.iterdir())) == (before, [copied])


def test_export_says_the_digest_that_check_demands(cli, mixed_path, tmp_path):
    folder = tmp_path / "v"
    status, _, err = cli("golden", "export", mixed_path, "fashion-mnist:test", "-o", folder, "--site", "logits")
    images, wrote = err.splitlines()
    digest = wrote.split()[-1]
    assert (status, images[:8], wrote) == (0, "images: ", f"wrote 1 cases to {folder}, digest {digest}")
    assert cli("golden", "check", folder, "--digest", digest)[0] == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_write_that_fails_leaves_nothing(monkeypatch, tmp_path, number):
    write, written, failing_at = Path.write_bytes, [], [-1]

    def failing(path, data):
        if len(written) == failing_at[0]:
            write(path, data[: len(data) // 2])
            raise OSError(number, os.strerror(number), str(path))
        written.append(path)
        return write(path, data)

    def run(folder):
        written.clear()
        export(small_graph(), small_images(), folder, sites=["fc", "codes"])

    monkeypatch.setattr(Path, "write_bytes", failing)
    run(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole")
    for at in range(len(written)):
        failing_at[0] = at
        with pytest.raises(IntvitError) as caught:
            run(tmp_path / "v")
        assert str(caught.value) == f"{tmp_path / 'v'}: cannot be written: {os.strerror(number)}"
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["/proc/vectors", "/dev/null/vectors", "/sys/kernel/a/b"])
def test_a_folder_that_cannot_be_made_is_one_line(folder):
    with pytest.raises(IntvitError, match="cannot be written"):
        export(small_graph(), small_images(), folder)


def test_two_exports_into_one_folder_at_a_time(tmp_path):
    def second(done, total):
        with pytest.raises(IntvitError, match="one writer at a time"):
            export(small_graph(), small_images(), tmp_path / "v")

    export(small_graph(), small_images(), tmp_path / "v", progress=second)
    assert check(tmp_path / "v").mismatches == ()


@pytest.mark.parametrize(
    ("metadata", "rule"),
    [
        ({"spec_version": 0, "recipe": {}}, "spec version must be 1, not 0"),
        ({"recipe": {}}, "spec version must be 1, not None"),
        ({"spec_version": 1, "recipe": []}, "recipe: input should be a valid dictionary"),
        ({"spec_version": 1, "recipe": {"x": float("nan")}}, "plain JSON values"),
        ({"spec_version": 1, "recipe": {"x": "y" * (1 << 24)}}, "must not pass 16777216 bytes"),
    ],
)
def test_metadata_that_no_bundle_holds_are_refused_before_anything_is_written(tmp_path, metadata, rule):
    graph = dataclasses.replace(small_graph(), metadata=metadata)
    with pytest.raises(IntvitError, match=rule):
        export(graph, small_images(), tmp_path / "v")
    assert list(tmp_path.iterdir()) == []


def test_sites_of_one_name_are_refused(tmp_path):
    graph = small_graph()
    twins = tuple(dataclasses.replace(node, name="fc") if node.name == "fc.quant" else node for node in graph.nodes)
    with pytest.raises(IntvitError, match="fc: name must be of one node only"):
        export(dataclasses.replace(graph, nodes=twins), small_images(), tmp_path / "v")


def test_a_pattern_that_matches_nothing_exits_2(cli, mixed_path, tmp_path):
    status, _, err = cli("golden", "export", mixed_path, "fashion-mnist:test", "-o", tmp_path / "n", "--site", "nope*")
    assert (status, "matches none" in err) == (2, True)
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("text", ["s1", "u1", "s2", "u4", "s8", "u7", "s33", "u63", "s64"])
def test_memh_and_npz_round_trip(text):
    dtype = IntType.parse(text)
    values = [dtype.min, dtype.max, 0, dtype.max - 1, dtype.min + 1, min(1, dtype.max)]
    array = np.array(values, np.int64).reshape(2, 3)
    data = format_memh(array, dtype, "x")
    digits = -(-dtype.bits // 4)
    assert data.decode() == "// x\n" + "".join(f"{v % 2**dtype.bits:0{digits}x}\n" for v in values)
    assert size_memh(dtype, (2, 3), "x") == len(data)
    assert np.array_equal(parse_memh(data, dtype, (2, 3), "x", "here"), array)
    layout = {"a": (dtype, (2, 3))}
    data = format_npz({"a": array}, layout)
    assert np.array_equal(parse_npz(data, layout, "here")["a"], array)
    assert np.array_equal(np.load(io.BytesIO(data))["a"], array)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_the_type_of_a_parameter_is_the_narrowest(values):
    dtype = declared_type(np.array(values, np.int64))
    assert all(dtype.min <= v <= dtype.max for v in values)
    narrower = IntType(max(2, dtype.bits - 1))
    assert dtype.bits == 2 or not all(narrower.min <= v <= narrower.max for v in values)
