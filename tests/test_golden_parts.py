"""Cases that are parts of a graph: blocks, spans, intermediates, zips, exports that were ended, large sites."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from small_graph import small_graph, small_images

from intvit.engine import Engine, quantize_images
from intvit.errors import IntvitError
from intvit.graph.inttypes import IntType
from intvit.graph.ir import LAYOUT_OPS, Graph, Node, Tensor
from intvit.spec import SPEC_VERSION
from intvit.spec.taps import intermediates
from intvit.vectors import check as checking
from intvit.vectors.bundle import open_bundle
from intvit.vectors.check import check, chosen_rows
from intvit.vectors.export import Stimuli, export, export_stimuli, select_parts
from intvit.vectors.manifest import schema
from intvit.vectors.part import between, parameters, part_of, reaching, run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def graph():
    return small_graph()


@pytest.fixture(scope="module")
def tensors(graph):
    return Engine(graph).evaluate(quantize_images(graph, small_images(2)), list(graph.tensors))


PARTS = {
    "a site": (["fc"], ("x",), ("fc",)),
    "linear and requantize": (["fc", "fc.quant"], ("x",), ("fc.quant",)),
    "attention": (["codes", "qk", "av", "sum"], ("fc.quant", "v"), ("sum",)),
    "with layout between": (["fc.quant", "qk"], ("fc",), ("fc.quant", "v", "qk")),
    "all": (["fc", "fc.quant", "codes", "av", "qk", "sum", "weights", "act", "norm", "pool"], ("x",),
            ("weights", "act", "norm", "pool")),
}  # fmt: skip


@pytest.mark.parametrize(("sites", "inputs", "outputs"), PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_a_part_computes_what_the_graph_does(graph, tensors, sites, inputs, outputs, backend):
    part = part_of(graph, sites)
    assert (part.inputs, part.outputs) == (inputs, outputs)
    found = run(part, tensors, backend=backend)
    for name in outputs:
        np.testing.assert_array_equal(found[name], tensors[name])


def test_it_goes_on_from_any_tensors_to_any_others(graph, tensors):
    part = between(graph, ["fc.quant"], ["sum", "norm"])
    assert [node.name for node in part.nodes] == ["codes", "v", "av", "qk", "sum", "norm"]
    changed = {"fc.quant": tensors["fc.quant"] // 2}
    found = run(part, changed)
    assert not np.array_equal(found["sum"], tensors["sum"])
    with pytest.raises(IntvitError, match=r"must start where all that it reads is known, and x is not"):
        between(graph, ["av"], ["sum"])
    with pytest.raises(IntvitError, match="nope: no such tensor"):
        between(graph, ["nope"], ["sum"])
    assert reaching(graph, "codes", "sum") == ["codes", "av", "sum"]
    with pytest.raises(IntvitError, match="norm: must depend on codes, and does not"):
        reaching(graph, "codes", "norm")


def test_a_part_that_would_wait_for_itself_is_refused(graph):
    with pytest.raises(IntvitError, match="must read nothing that depends on the part, and reads av"):
        part_of(graph, ["fc.quant", "sum"])


@pytest.mark.parametrize(
    ("stimuli", "rule"),
    [
        ({}, "x: must have a stimulus"),
        ({"x": np.zeros((1, 2, 2), np.int8)}, "x: stimulus must be integers"),
        ({"x": np.zeros((1, 1, 3, 4))}, "x: stimulus must be integers"),
        ({"x": np.full((1, 1, 3, 4), 200)}, "x: stimulus must lie in -128..127, not 200..200"),
    ],
)
def test_stimuli_that_do_not_fit_are_refused(graph, stimuli, rule):
    with pytest.raises(IntvitError, match=rule):
        run(part_of(graph, ["fc"]), stimuli)


def test_every_integer_of_a_site_has_one_name(graph):
    assert set(parameters(graph.node("sum"))) == {"bits", "m", "e", "residual_m", "residual_e"}
    assert set(parameters(graph.node("weights"))) == {"x0", "b", "c", "n", "m", "e", "out_bits"}
    assert parameters(graph.node("sum"))["bits"] == 16


@pytest.fixture(scope="module")
def bundle(graph, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts") / "v"
    parts = select_parts(graph, ["softmax"], {"block": ["fc*", "codes", "av"]}, {"span": ("fc", "sum")})
    export(graph, small_images(2), folder, parts=parts, taps=True)
    return folder


def test_parts_and_intermediates_are_checked(bundle):
    assert check(bundle).mismatches == ()
    names = [listed["part"] for listed in json.loads((bundle / "index.json").read_bytes())["parts"]]
    assert names == ["codes", "block", "span", "weights"]


def test_a_case_gives_what_the_graph_computes(bundle, tensors):
    for case in open_bundle(bundle):
        for image in case.images:
            for name, array in {**case.stimuli(image), **case.expected(image)}.items():
                np.testing.assert_array_equal(array, tensors[name][image])
    with pytest.raises(IntvitError, match=r"codes: image must be one of 0\.\.1, not 7"):
        open_bundle(bundle)[0].stimuli(7)


def test_intermediates_are_those_of_the_specification(bundle, graph, tensors):
    from intvit.graph.parameters import method_params, node_method

    node = graph.node("weights")
    with np.load(bundle / "weights" / "image0" / "case.npz") as file:
        arrays = {key: file[key] for key in file.files}
    rows = tensors["sum"][0].reshape(-1, tensors["sum"].shape[-1])
    for i, row in enumerate(rows.tolist()):
        for name, values in intermediates(node_method(node).spec, row, method_params(node)).items():
            if name != "y":
                assert arrays[f"tap.{name}"][i].tolist() == values


@pytest.mark.parametrize("method", ["ibert", "fqvit"])
def test_rows_that_do_not_come_by_an_intermediate_keep_their_place(vit, tmp_path, method):
    """A LayerNorm of equal values, and on another image none; products of s64 are left out."""
    from intvit.graph.parameters import method_params, node_method
    from intvit.lowering.recipe import build_recipe

    graph = vit.lower(build_recipe({"preset": "accurate", "layernorm": {"method": method}}))
    parts = select_parts(graph, ["blocks.0.norm1", "blocks.0.norm1.quant"])
    tensor = parts[0].graph.tensors[parts[0].graph.inputs[0]]
    x = np.random.default_rng(1).integers(-100, 100, (2, *tensor.shape))
    x[0, 3] = 7
    stored = Engine(graph).evaluate(quantize_images(graph, vit.test.read(0, 2)), [tensor_of(parts[1])])
    stimuli = {"blocks.0.norm1": Stimuli({parts[0].graph.inputs[0]: x.astype(np.int16)})}
    stimuli["blocks.0.norm1.quant"] = Stimuli({tensor_of(parts[1]): stored[tensor_of(parts[1])]})
    export_stimuli(graph, stimuli, tmp_path / "v", parts=parts, taps=True)
    assert check(tmp_path / "v").mismatches == ()
    node = graph.node("blocks.0.norm1")
    for image in (0, 1):
        with np.load(tmp_path / "v" / node.name / f"image{image}" / "case.npz") as file:
            arrays = {key: file[key] for key in file.files}
        for i, row in enumerate(x[image].tolist()):
            found = intermediates(node_method(node).spec, row, method_params(node))
            for key in (key for key in arrays if key.startswith("tap.") and not key.endswith(".known")):
                known = arrays.get(f"{key}.known", np.ones_like(arrays[key]))[i].astype(bool)
                values = found.get(key.removeprefix("tap."), [])
                assert arrays[key][i][known].tolist() == [v for v in values if v is not None]
                assert known.any() == bool(values)
    lacking = [key for key in arrays if key.endswith(".known")]
    assert len(lacking) == (3 if method == "ibert" else 15)
    wide = graph.tensors[tensor_of(parts[1])].dtype.bits == 64
    with np.load(tmp_path / "v" / "blocks.0.norm1.quant" / "image0" / "case.npz") as file:
        assert ("tap.product" in file.files) == (not wide)


def tensor_of(wanted):
    """What a part of one input reads."""
    (name,) = wanted.graph.inputs
    return name


@pytest.mark.parametrize("key", ["tap.sum", "tap.exp"])
def test_a_flipped_intermediate_is_found(bundle, tmp_path, key):
    import test_golden_tampering as tampering

    shutil.copytree(bundle, tmp_path / "v")
    path = tmp_path / "v" / "weights" / "image0" / "case.npz"
    (path.parent / "case.json").read_bytes()
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays[key] = arrays[key].copy()
    arrays[key].reshape(-1)[0] ^= 1
    from intvit.vectors.manifest import Part, layout
    from intvit.vectors.memh import format_memh
    from intvit.vectors.npz import format_npz

    part = Part.model_validate_json((tmp_path / "v" / "weights" / "part.json").read_text())
    path.write_bytes(format_npz(arrays, layout(part.signals)))
    signal = next(s for s in part.signals if s.key == key)
    (path.parent / f"{key}.hex").write_bytes(format_memh(arrays[key], signal.type, part.header(signal)))
    sealed = tampering.Bundle(tmp_path / "v")
    sealed.manifest("weights", lambda m: m["signals"].update({key: tampering.hashed(arrays[key])}))
    sealed.seal()
    (found,) = check(tmp_path / "v").mismatches
    assert f"weights: {key} differs first at index [0, 0]" in str(found)


def test_a_zip_is_the_same_bundle_and_the_same_bytes(bundle, graph, tmp_path):
    parts = select_parts(graph, ["softmax"], {"block": ["fc*", "codes", "av"]}, {"span": ("fc", "sum")})
    for name in ("a.zip", "b.zip"):
        export(graph, small_images(2), tmp_path / name, parts=parts, taps=True)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "b.zip"]
    assert check(tmp_path / "a.zip") == check(bundle)
    assert check(tmp_path / "a.zip", jobs=2) == check(bundle)
    with pytest.raises(IntvitError, match=r"a\.zip: must not exist yet"):
        export(graph, small_images(2), tmp_path / "a.zip", parts=parts)


def rezipped(path, change):
    """The members of a zip, changed: name -> bytes."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in change(members):
            archive.writestr(name, data)


ZIPS = {
    "above": lambda m: [*m, ("../x", b"")],
    "absolute": lambda m: [*m, ("/x", b"")],
    "a file more": lambda m: [*m, ("x", b"")],
    "a file less": lambda m: m[:-1],
    "another byte": lambda m: [(n, d[:-2] + b"0\n" if n.endswith("output.hex") else d) for n, d in m],
    "a folder": lambda m: [*m, ("y/", b"")],
    "a backslash": lambda m: [*m, ("a\\b", b"")],
}


@pytest.mark.parametrize("change", ZIPS.values(), ids=ZIPS)
def test_a_zip_that_was_altered_is_noticed(graph, tmp_path, cli, change):
    export(graph, small_images(1), tmp_path / "v.zip", sites=["fc", "sum"])
    rezipped(tmp_path / "v.zip", change)
    status, out, err = cli("golden", "check", tmp_path / "v.zip")
    assert status in (1, 2)
    assert "every bit equal" not in out
    assert err.count("\n") == (status == 2)


@pytest.mark.parametrize("name", ["v", "v.zip"])
def test_an_export_that_was_ended_goes_on(graph, tmp_path, name):
    class Ended(Exception):
        pass

    def end_at(n):
        def report(done, total):
            if done == n:
                raise Ended

        return report

    whole = export(graph, small_images(2), tmp_path / "whole", sites=["fc", "sum", "act"])
    for n, sites in ((2, ["fc", "pool"]), (3, ["fc", "sum", "act"])):  # of another export first
        with pytest.raises(Ended):
            export(graph, small_images(2), tmp_path / name, sites=sites, resume=True, progress=end_at(n))
    left = tmp_path / (f"{name}.folder" if name.endswith(".zip") else f"{name}.partial")
    kept = left / "sum" / "image0" / "output.hex"
    before = kept.stat().st_mtime_ns
    (left / "fc" / "image0" / "output.hex").write_bytes(b"damaged")
    with pytest.raises(Ended):
        export(graph, small_images(2), tmp_path / name, sites=["fc", "sum", "act"], resume=True, progress=end_at(5))
    assert kept.stat().st_mtime_ns == before
    index = export(graph, small_images(2), tmp_path / name, sites=["fc", "sum", "act"], resume=True)
    assert index == whole
    assert check(tmp_path / name).mismatches == ()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["whole", name])
    if name == "v":
        files = sorted(p.relative_to(tmp_path / "v") for p in (tmp_path / "v").rglob("*") if p.is_file())
        for path in files:
            assert (tmp_path / "whole" / path).read_bytes() == (tmp_path / "v" / path).read_bytes()


def test_stimuli_of_its_own_for_every_part(graph, tmp_path):
    parts = select_parts(graph, ["fc", "act"])
    rng = np.random.default_rng(0)
    stimuli = {
        "fc": Stimuli({"x": rng.integers(-128, 128, (3, 1, 3, 4)).astype(np.int8)}, {"classes": 3}),
        "act": Stimuli({"fc.quant": rng.integers(-128, 128, (1, 1, 3, 4)).astype(np.int8)}, {"classes": 1}),
    }
    index = export_stimuli(graph, stimuli, tmp_path / "v", parts=parts)
    assert (index.stimuli, [len(listed.cases) for listed in index.parts]) == ("directed", [3, 1])
    assert check(tmp_path / "v").mismatches == ()
    assert json.loads((tmp_path / "v" / "fc" / "coverage.json").read_bytes()) == {"classes": 3}
    (tmp_path / "v" / "fc" / "coverage.json").write_bytes(b"{}\n")
    (found,) = check(tmp_path / "v").mismatches
    assert "coverage.json: sha256 of the file" in str(found)


def large(op, rows=300, depth=200, columns=100):
    rng = np.random.default_rng(1)
    x = Tensor("x", (rows, depth), IntType(8), np.asarray(0.1))
    weight = rng.integers(-128, 128, (columns, depth)).astype(np.int8)
    nodes = [Node("linear", "y", ("x",), "y", {}, {"weight": weight})]
    tensors = {"x": x, "y": Tensor("y", (rows, columns), IntType(32), np.asarray(0.01), bound=depth * 128 * 128)}
    return Graph(("x",), ("y",), tuple(nodes), tensors, {"spec_version": SPEC_VERSION, "recipe": {}})


def test_of_large_sites_the_specification_computes_some_rows(tmp_path, monkeypatch):
    graph = large("linear")
    node = graph.node("y")
    rows = chosen_rows(graph, node)
    assert (rows[0], rows[-1], len(rows)) == (0, 299, checking.SPEC_STEPS // (200 * 100))
    images = np.random.default_rng(0).integers(-128, 128, (1, 300, 200)).astype(np.int8)
    export(graph, images, tmp_path / "v")
    assert check(tmp_path / "v").rows == (len(rows), 300)
    assert check(tmp_path / "v", full=True).rows == (0, 0)
    monkeypatch.setattr(checking, "SPEC_STEPS", 200 * 100 * 3)
    assert chosen_rows(graph, node).tolist() == [0, 149, 299]
    from intvit.spec import matmul

    def wrong(rows, weight, bias):
        return [[sum(x * w for x, w in zip(row, column, strict=True)) + (row is rows[1]) for column in weight]
                for row in rows]  # fmt: skip

    monkeypatch.setattr(matmul, "linear", wrong)
    (found,) = check(tmp_path / "v").mismatches
    assert "y: output (spec) differs first at index [149, 0]" in str(found)


def test_rows_are_computed_as_in_the_whole(vit, mixed):
    """For every kind of site that says that it goes by rows: some rows alone are the same rows of all."""
    from intvit.engine.evaluate import prepare_in

    values = Engine(mixed).evaluate(quantize_images(mixed, vit.test.read(0, 1)), list(mixed.tensors))
    seen = set()
    for node in mixed.nodes:
        kind = checking.operators.get(node.op)
        if node.op in LAYOUT_OPS or not kind.row_inputs or (node.op, node.attrs.get("method")) in seen:
            continue
        shape = mixed.tensors[node.output].shape
        if len(shape) < 2:
            continue
        seen.add((node.op, node.attrs.get("method")))
        rows = np.array([0, shape[-2] - 1])
        given = [values[name][..., rows, :] if i < kind.row_inputs else values[name]
                 for i, name in enumerate(node.inputs)]  # fmt: skip
        found = prepare_in(mixed, node, "spec")(given)
        np.testing.assert_array_equal(found, values[node.output][..., rows, :], node.name)
    assert {op for op, _ in seen} >= {"linear", "requantize", "softmax", "gelu", "layernorm", "matmul"}


def test_the_published_schema_is_that_of_the_manifests(bundle):
    text = json.dumps(schema(), indent=1, sort_keys=True) + "\n"
    assert (ROOT / "golden" / "schema" / "golden.schema.json").read_text() == text
    known = {name: set(each["properties"]) for name, each in schema()["$defs"].items() if "properties" in each}
    for name, path in {"Index": "index.json", "Part": "codes/part.json", "Case": "codes/image0/case.json"}.items():
        assert set(json.loads((bundle / path).read_bytes())) <= known[name]


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--part", "block0"], "--part: must be NAME=SITE,..., not 'block0'"),
        (["--part", "a=logits"], "a: a part of one site must have its name, logits (--site)"),
        (["--part", "head=blocks.0.*"], "head: a part of 21 sites must not have the name of one"),
        (["--part", "p=blocks.0.norm1,blocks.0.add1"], "p: must read nothing that depends on the part, and reads "),
        (["--site", ""], "'': must match a site or operator"),
        (["--seed", "5"], "--seed: must go with --directed"),
        (["--count", "0"], "greater than or equal to 1 ("),
        (["--part", "a=nope"], "nope: must match a site or operator"),
        (["--part", "a=logits", "--part", "a=logits"], "--part: a must be given once"),
        (["--part", "logits=logits", "--site", "logits"], "logits: must name one part"),
        (["--span", "a=logits"], "--span: must be NAME=SITE..SITE"),
        (["--span", "a=logits..patch_embed.proj"], "patch_embed.proj: must depend on logits"),
        (["--span", "a=nope..logits"], "nope: no such site"),
    ],
)
def test_parts_that_are_none_are_refused(cli, mixed_path, tmp_path, options, rule):
    status, _, err = cli("golden", "export", mixed_path, "fashion-mnist:test", "-o", tmp_path / "v", *options)
    assert (status, list(tmp_path.iterdir())) == (2, [])
    assert rule in " ".join(err.split())


def test_a_block_on_the_command_line(cli, mixed_path, tmp_path):
    arguments = ["golden", "export", mixed_path, "fashion-mnist:test", "-o", tmp_path / "v.zip", "--no-hex"]
    status, _, err = cli(*arguments, "--part", "block0=blocks.0.*", "--span", "mlp=blocks.1.mlp.fc1..blocks.1.mlp.fc2")
    assert (status, "wrote 2 cases" in err) == (0, True)
    status, out, _ = cli("golden", "check", tmp_path / "v.zip", "--json")
    assert (status, json.loads(out)["mismatches"]) == (0, [])
    block, mlp = open_bundle(tmp_path / "v.zip")
    assert (len(block.part.inputs), len(block.part.outputs)) == (1, 1)
    assert next(node.op for node in mlp.part.nodes if node.op not in LAYOUT_OPS) == "linear"


LAYOUT = """
element_bits = 64
word_bits = 64
[signals.weight]
element_bits = 8
lanes = 4
word_bits = 32
[signals."input*"]
element_bits = 8
lanes = 4
word_bits = 32
format = "{format}"
"""


@pytest.mark.parametrize("kind", ["memh", "mif", "bin"])
def test_memory_files_lie_as_a_layout_says(graph, tmp_path, cli, kind):
    from intvit.vectors.layouts.layout import build_layouts, read_values

    (tmp_path / "l.toml").write_text(LAYOUT.format(format=kind))
    values = read_values(tmp_path / "l.toml")
    index = export(graph, small_images(1), tmp_path / "v", sites=["fc"], layouts=values)
    assert index.layout == build_layouts(values).digest
    assert check(tmp_path / "v").mismatches == ()
    (weight,) = [p for p in (tmp_path / "v" / "fc").iterdir() if p.name.startswith("weight")]
    assert f"layout {index.layout[:16]}" in weight.read_text()
    (case,) = [c for c in open_bundle(tmp_path / "v") if c.name == "fc"]
    assert case.layouts == build_layouts(values)
    (path,) = [p for p in (tmp_path / "v" / "fc" / "image0").iterdir() if p.name.startswith("input0")]
    data = path.read_bytes()
    path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    status, out, _ = cli("golden", "check", tmp_path / "v")
    assert (status, "input0" in out) == (1, True)
    path.write_bytes(data)
    path.rename(path.with_name("input0.other"))
    assert cli("golden", "check", tmp_path / "v")[0] == 2


def test_a_layout_that_does_not_fit_is_refused(cli, mixed_path, tmp_path):
    (tmp_path / "l.toml").write_text("element_bits = 4\n")
    arguments = ["golden", "export", mixed_path, "fashion-mnist:test", "-o", tmp_path / "v", "--site", "logits"]
    status, _, err = cli(*arguments, "--layout", tmp_path / "l.toml")
    assert (status, err.count("\n")) == (2, 1)
    assert "must fit element_bits" in err
    (tmp_path / "l.toml").write_text("tile = 4\n")
    status, _, err = cli(*arguments, "--layout", tmp_path / "l.toml")
    assert (status, "l.toml: tile: must be a known key" in " ".join(err.split())) == (2, True)
    assert [p.name for p in tmp_path.iterdir()] == ["l.toml"]
