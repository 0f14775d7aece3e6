"""Numerics from a recipe to the bits: nodes, files, hashes, both backends, accumulators, the command line."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from intvit.engine import Engine, quantize_images
from intvit.engine.evaluate import prepare_in
from intvit.engine.plan import make_plan
from intvit.errors import Beyond, Infeasible, IntvitError
from intvit.graph.check import check
from intvit.graph.inttypes import IntType
from intvit.graph.ir import LAYOUT_OPS, Graph, Node, Tensor
from intvit.graph.operators.accumulators import numerics_of, proven
from intvit.graph.store import load, save
from intvit.kernels import gemm
from intvit.kernels.accumulators import follow, saturating
from intvit.kernels.gemm import available_paths
from intvit.kernels.gemm.layout import BLOCK
from intvit.kernels.gemm.lengths import longest_column
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe
from intvit.spec import SPEC_VERSION
from intvit.spec.accumulators import accumulate
from intvit.spec.numerics import PRESETS, Numerics

POLICIES = ("raise", "saturate", "saturate_end", "wrap")
FITTING = {"ita": {"softmax_bits": 8}, "deeploy": {"datapaths": {"layernorm": "hawq"}}}
"""What a preset asks of the rest of a recipe."""


def recipe_for(name, **more):
    fitting = FITTING.get(name, {}) if isinstance(name, str) else {}
    return build_recipe({"bits": 8, "numerics": name, **fitting, **more})


def lowered(vit, name, **more):
    return lower(vit.graph, vit.calibration, recipe_for(name, **more))


def computed_by(graph, name):
    """The operator that computes a tensor, behind whatever moves elements."""
    while (node := graph.by_output.get(name)) is not None and node.op in LAYOUT_OPS:
        name = node.inputs[0]
    return None if node is None else node.op


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "hawq"])
def test_a_preset_is_in_every_requantization_and_in_the_hash(vit, name, tmp_path):
    graph, usual = lowered(vit, name), lowered(vit, "hawq", **FITTING.get(name, {}))
    check(graph)
    how = PRESETS[name]
    stated = {node.name for node in graph.nodes if numerics_of(node) == how.requantizing != Numerics()}
    behind = {n.name: computed_by(graph, n.inputs[0]) for n in graph.nodes if n.op == "requantize"}
    del behind["logits"]
    but = {site for site, maker in behind.items() if name == "deeploy" and maker == "layernorm"}
    assert stated == set(behind) - but
    assert graph.content_hash != usual.content_hash
    save(graph, tmp_path / "g.h5")
    assert load(tmp_path / "g.h5").content_hash == graph.content_hash
    again = build_recipe(graph.metadata["recipe"])
    assert lower(vit.graph, vit.calibration, again).content_hash == graph.content_hash


def test_the_default_says_nothing(vit):
    graph = lowered(vit, "hawq")
    assert "numerics" not in graph.metadata["recipe"]
    assert not any("numerics" in node.attrs for node in graph.nodes)
    assert graph.content_hash == lower(vit.graph, vit.calibration, build_recipe({"bits": 8})).content_hash


@pytest.mark.parametrize("name", ["tosa_double", "cmsis_nn", "ita", "deeploy"])
def test_engine_is_the_specification(vit, name):
    """Fused steps, nodes by the kernels, and nodes by the specification, on the values of a whole run."""
    graph = lowered(vit, name)
    x = quantize_images(graph, vit.test.read(0, 1))
    names = list(graph.tensors)
    values = Engine(graph).evaluate(x, names)
    fused = Engine(graph).evaluate(x, graph.outputs)
    for output in graph.outputs:
        np.testing.assert_array_equal(fused[output], values[output])
    for node in graph.nodes:
        given = [values[i] for i in node.inputs]
        np.testing.assert_array_equal(prepare_in(graph, node)(given), values[node.output], err_msg=node.name)
        if node.op == "requantize":
            np.testing.assert_array_equal(prepare_in(graph, node, "spec")(given), values[node.output], node.name)


def test_single_rounding_half_up_changes_no_bit_where_no_tie_is_reached(vit):
    """What `intvit prove` says of ties, seen on images."""
    images = vit.test.read(0, 4)
    usual, other = (Engine(lowered(vit, n)).run(images)["logits"] for n in ("hawq", "tflite_single"))
    np.testing.assert_array_equal(usual, other)
    assert not np.array_equal(usual, Engine(lowered(vit, {"rounding": "floor"})).run(images)["logits"])


# ------------------------------------------------------------------------------------------- accumulators


def product_graph(op, policy, bits, depth=12, seed=0):
    """A graph of one product, whose sums may leave its accumulator."""
    rng = np.random.default_rng(seed)
    attrs = {"numerics": Numerics(accumulator_bits=bits, accumulator=policy).stated}
    x = Tensor("x", (3, depth), IntType(8), np.asarray(0.1))
    tensors = {"x": x}
    if op == "linear":
        arrays = {"weight": rng.integers(-128, 128, (5, depth)).astype(np.int8), "bias": rng.integers(-9000, 9000, 5)}
        nodes = (Node("linear", "y", ("x",), "y", attrs, arrays),)
        shape = (3, 5)
    else:
        turned = Node("transpose", "t", ("x",), "t", {"perm": [1, 0]})
        tensors["t"] = Tensor("t", (depth, 3), IntType(8), np.asarray(0.1))
        nodes, shape = (turned, Node("matmul", "y", ("x", "t"), "y", attrs)), (3, 3)
    tensors["y"] = Tensor("y", shape, IntType(bits), np.asarray(0.01))
    return Graph(("x",), ("y",), nodes, tensors, {"spec_version": SPEC_VERSION})


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("bits", [16, 18])
@pytest.mark.parametrize("policy", POLICIES[1:])
@pytest.mark.parametrize("op", ["linear", "matmul"])
def test_narrow_accumulators(op, policy, bits, seed):
    graph = product_graph(op, policy, bits, seed=seed)
    check(graph)
    x = np.random.default_rng(seed).integers(-128, 128, (2, 3, 12)).astype(np.int8)
    x[0, 0], x[1, 1, :6] = 127, -128
    (found,) = Engine(graph).run(x).values()
    (by_spec,) = Engine(graph, "spec").run(x).values()
    np.testing.assert_array_equal(found, by_spec)
    node = graph.node("y")
    weight = [node.arrays["weight"].astype(int)] * 2 if op == "linear" else list(x.astype(int))
    bias = node.arrays.get("bias", np.zeros(5, int))
    for image, rows in enumerate(x.astype(int).tolist()):
        for i, row in enumerate(rows):
            for j, column in enumerate(weight[image].tolist()):
                products = [a * b for a, b in zip(row, column, strict=True)]
                assert found[image, i, j] == accumulate(products, int(bias[j]), bits, policy)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("lift", [0, 1 << 14, 1 << 15])
def test_partial_sums_are_followed_only_where_one_may_leave(lift, seed):
    """By lengths of rows and columns, by parts of the depth, product by product: as if always product by product."""
    rng = np.random.default_rng([lift, seed])
    n, rows, depth, columns = (int(rng.integers(1, most)) for most in (4, 9, 200, 140))
    a = rng.integers(-lift if lift else -128, (1 << 15) if lift else 128, (n, rows, depth)).astype(np.int16)
    b = rng.integers(-128, 128, (n, depth, columns)).astype(np.int8)
    a[0, 0], b[0, :, 0] = -lift if lift else -128, -128
    bias = rng.integers(-5000, 5000, columns)
    wide = a.astype(np.int64) + lift
    exact = (wide @ b.astype(np.int64)).astype(np.int32)
    asked, opened = [], rng.integers(0, 2, (n * rows, -(-columns // BLOCK))).astype(np.uint8)

    def bounded(reach, out):
        """Knows everything but what it draws."""
        asked.append(reach)
        out[...] = saturating(wide[0], b[0], bias, width)
        out.reshape(rows, -1)[np.repeat(opened, BLOCK, 1)[:, :columns] > 0] = 7
        return opened

    bits = {max(2, int(x).bit_length() + 1) for q in (0.2, 0.5, 0.9, 1) for x in [np.quantile(np.abs(exact), q)]}
    for width in [*bits, 31]:
        expected = saturating(wide, b, bias, width)
        np.testing.assert_array_equal(follow(a, lift, b, bias, width, lambda: exact), expected)
        if n == 1:
            found = follow(a, lift, b, bias, width, lambda: exact, longest_column(b), bounded)
            np.testing.assert_array_equal(found, expected)
    assert (n == 1) == bool(asked)


@pytest.mark.parametrize("path", [p for p in available_paths() if p != "blas"])
@pytest.mark.parametrize("seed", range(8))
def test_what_parts_say_of_partial_sums_is_true(path, seed):
    """No partial sum leaves the word where a block is not left open, and the sum is right; some are open, some not."""
    rng = np.random.default_rng(seed)
    rows, depth, columns = int(rng.integers(1, 40)), int(rng.integers(65, 300)), int(rng.integers(1, 150))
    kind = np.int8 if seed % 2 else np.int16
    x = rng.integers(-128, 128, (rows, depth)).astype(kind)
    weight = (rng.normal(size=(columns, depth)) * rng.choice([3, 40], (columns, 1))).clip(-128, 127).astype(np.int8)
    x[0], weight[0] = 127, 127
    bias = rng.integers(-90000, 90000, columns)
    products = x.astype(np.int64)[:, :, None] * weight.T.astype(np.int64)
    partial = np.cumsum(products, axis=1)
    whole = gemm.prepare_linear(weight, None, 128, kind, gemm.Epilogue.raw(), path)
    kept = []
    for bits in range(15, 26):
        high = (1 << (bits - 1)) - 1
        leaves = ((partial > high) | (partial < -high - 1)).any(1)
        for n_parts in (1, 2, 5, 400):
            out = np.empty((rows, columns), np.int32)
            opened = gemm.in_parts(whole, weight, bias, n_parts).run(x, bits, out)
            left = np.repeat(opened, BLOCK, 1)[:, :columns] > 0
            assert not (leaves & ~left).any()
            np.testing.assert_array_equal(out[~left], (partial[:, -1] + bias).clip(-high - 1, high)[~left])
            kept.append(left.mean())
    assert min(kept) == 0
    assert max(kept) == 1


@pytest.mark.parametrize("path", available_paths())
@pytest.mark.parametrize("policy", ["saturate", "saturate_end", "wrap"])
@pytest.mark.parametrize(("op", "bits"), [("linear", 18), ("linear", 20), ("matmul", 18), ("matmul", 21)])
def test_narrow_accumulators_on_every_product_path(op, bits, policy, path):
    graph = product_graph(op, policy, bits, depth=150, seed=3)
    x = np.random.default_rng(bits).integers(-128, 128, (2, 3, 150)).astype(np.int8)
    x[0, 0], x[1, 1, :60] = 127, -128
    values = {"x": x}
    for step in make_plan(graph, ["y"], path):
        values[step.output] = step.run([values[name] for name in step.inputs])
    np.testing.assert_array_equal(values["y"], Engine(graph, "spec").run(x)["y"])


def test_every_policy_differs_where_it_acts():
    x = np.zeros((1, 3, 12), np.int8)
    x[0, 0] = [127] * 8 + [-128] * 4
    weight = np.array([127] * 12, np.int8)
    found = {}
    for policy in POLICIES[1:]:
        graph = product_graph("linear", policy, 16)
        node = graph.node("y")
        arrays = {"weight": np.stack([weight] * 5), "bias": np.zeros(5, np.int64)}
        graph = dataclasses.replace(graph, nodes=(dataclasses.replace(node, arrays=arrays),))
        found[policy] = int(Engine(graph).run(x)["y"][0, 0, 0])
    assert found == {"saturate": 32767 - 4 * 128 * 127, "saturate_end": 32767, "wrap": 64008 - 65536}


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_raise_names_site_image_index_and_value(backend, batch):
    graph = product_graph("matmul", "raise", 16)
    x = np.zeros((5, 3, 12), np.int8)
    x[3, 1] = 127
    with pytest.raises(IntvitError) as caught:
        Engine(graph, backend).run(x, batch=batch, threads=2)
    text = str(caught.value)
    assert text.startswith("y: accumulator")
    assert str(12 * 127 * 127) in text
    assert "[1, 1]" in text
    if backend == "kernel":
        assert text.endswith("at [1, 1] of image 3")
        assert isinstance(caught.value, Beyond)
    assert Engine(graph, backend).run(x[:3])["y"].any() == np.False_


def test_sums_that_cannot_leave_are_not_looked_at(vit):
    """The fast paths, and the same bits, where the weights prove that a policy cannot act."""
    usual = lowered(vit, "hawq")
    images = vit.test.read(0, 2)
    expected = Engine(usual).run(images)["logits"]
    for policy in POLICIES:
        graph = lowered(vit, {"accumulator_bits": 40, "accumulator": policy})
        assert graph.content_hash != usual.content_hash
        assert [len(s.nodes) for s in Engine(graph).program(()).steps] == [
            len(s.nodes) for s in Engine(usual).program(()).steps
        ]
        np.testing.assert_array_equal(Engine(graph).run(images)["logits"], expected)


def test_a_network_with_accumulators_of_16_bits(vit):
    """Kernel and specification on every product of a network in which all policies act."""
    images = vit.test.read(0, 1)
    outputs = {}
    for policy in POLICIES[1:]:
        graph = lowered(vit, {"accumulator_bits": 16, "accumulator": policy})
        names = list(graph.tensors)
        values = Engine(graph).evaluate(quantize_images(graph, images), names)
        outputs[policy] = values["logits"].tobytes()
        for node in [n for n in graph.nodes if n.op in ("linear", "matmul")][:4]:
            given = [values[i] for i in node.inputs]
            np.testing.assert_array_equal(prepare_in(graph, node, "spec")(given), values[node.output], node.name)
    assert len(set(outputs.values())) == 3


def test_the_sum_of_a_mean_must_fit():
    """Its operator has no policy, so that none is silently left out."""
    node = Node("mean", "pool", ("x",), "pool", {"axis": 0, "keepdims": False})
    for policy in POLICIES:
        context = SimpleNamespace(recipe=build_recipe({"numerics": {"accumulator_bits": 16, "accumulator": policy}}))
        proven(context, node, 255 * 128)
        with pytest.raises(Infeasible, match=r"pool: accumulator of a mean must be proven to fit 16 bits, .* 32768"):
            proven(context, node, 256 * 128)


# ------------------------------------------------------------------------------------------- bad input


def test_what_does_not_fit_names_the_site_the_bound_and_the_width(vit):
    rule = r"attn.softmax: accumulator of .*matmul_av must be proven to fit 26 bits, and its sums reach \d+, \d+ bits"
    with pytest.raises(Infeasible, match=rule):
        lower(vit.graph, vit.calibration, build_recipe({"numerics": "ita"}))
    with pytest.raises(Infeasible, match=r"act: requantize: ratio of scales must not be negative"):
        lowered(vit, "ita", gelu={"method": "ibert"})
    with pytest.raises(Infeasible, match=r"norm1: requantize: product must have \d+ bits at least, as its x reaches"):
        lowered(vit, "deeploy", layernorm={"method": "ibert"}, datapaths={})


@pytest.mark.parametrize(
    ("attr", "rule"),
    [
        ({}, "numerics must not be stated where they are as usual"),
        ({"rounding": "half_even"}, "must be what is not as usual"),
        ({"rounding": "up"}, "numerics: rounding: must be"),
        ({"preset": "ita"}, "must be what is not as usual"),
        ({"accumulator_bits": 20}, "numerics must not be of accumulators"),
        ("ita", "numerics must be dict"),
        ({"multiplier_bits": 8}, r"m must lie in -128..127"),
        ({"shift_most": 3}, r"e must lie in -1100..3"),
    ],
)
def test_nodes_that_say_nonsense_are_refused(vit, attr, rule):
    graph = lowered(vit, "hawq")
    site = "patch_embed.proj.quant" if "patch_embed.proj.quant" in graph.by_name else next(
        n.name for n in graph.nodes if n.op == "requantize"
    )  # fmt: skip
    node = graph.node(site)
    changed = dataclasses.replace(node, attrs={**node.attrs, "numerics": attr})
    nodes = tuple(changed if n is node else n for n in graph.nodes)
    with pytest.raises(IntvitError, match=rule) as caught:
        check(dataclasses.replace(graph, nodes=nodes))
    assert site in str(caught.value)


def test_on_the_command_line(vit, cli, tmp_path):
    common = ["lower", vit.onnx_path, "--recording", vit.recording_path, "--preset", "published"]
    own = tmp_path / "mine.toml"
    own.write_text('preset = "ita"\naccumulator_bits = 32\nrounding = "floor"\n')
    for numerics in ("tosa_double", own):
        status, _, err = cli(*common, "--numerics", numerics, "-o", tmp_path / "g.h5")
        assert status == 0, err
    assert load(tmp_path / "g.h5").metadata["recipe"]["numerics"]["rounding"] == "floor"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('bits = 8\nnumerics = { preset = "tflite_double", rounded_bits = 24 }\n')
    assert cli(*common, "--recipe", recipe, "-o", tmp_path / "r.h5")[0] == 0
    assert load(tmp_path / "r.h5").metadata["recipe"]["numerics"]["rounded_bits"] == 24
    own.write_text("rounding = 3\n")
    for given, words in [("nope", "numerics: must be one of hawq"), (own, "mine.toml: rounding: must be"),
                         (tmp_path / "none.toml", "none.toml"), ("ita", "must be proven to fit 26 bits")]:  # fmt: skip
        status, _, err = cli(*common, "--numerics", given, "-o", tmp_path / "x.h5")
        assert status == 2
        assert words in " ".join(err.split())
        assert len(err.strip().splitlines()) == 1
        assert not (tmp_path / "x.h5").exists()


def test_a_method_that_does_not_fit_is_no_candidate(vit, cli, tmp_path):
    """ITA: FQ-ViT's softmax asks for wider sums, I-BERT's GELU for a sign; the others are mapped."""
    (tmp_path / "r.toml").write_text('numerics = "ita"\nsoftmax_bits = 8\n')
    common = ["--recording", vit.recording_path, "--limit", "8", "--recipe", tmp_path / "r.toml"]
    arguments = ["map", vit.onnx_path, "--images", "fashion-mnist:calibration", *common[2:], "-o", tmp_path / "m.json"]
    status, _, err = cli(*arguments)
    assert status == 0, err
    skipped = json.loads((tmp_path / "m.json").read_text())["skipped"]
    assert {(each["operator"], each["method"]) for each in skipped} == {("softmax", "fqvit"), ("gelu", "ibert")}
    mapped = ["lower", vit.onnx_path, *common[:4], "--mapping", tmp_path / "m.json", "-o", tmp_path / "g.h5"]
    assert cli(*mapped)[0] == 0
    recipe = load(tmp_path / "g.h5").metadata["recipe"]
    assert recipe["numerics"] == PRESETS["ita"].stated


def test_golden_vectors_hold_their_numerics(vit, cli, tmp_path):
    save(lowered(vit, "tosa_double"), tmp_path / "g.h5")
    arguments = ["golden", "export", tmp_path / "g.h5", "fashion-mnist:test", "--site", "blocks.0.mlp*", "--no-hex"]
    status, _, err = cli(*arguments, "-o", tmp_path / "v")
    assert status == 0, err
    assert cli("golden", "check", tmp_path / "v")[0] == 0
    texts = {path: path.read_text() for path in (tmp_path / "v").rglob("part.json")}
    assert any("double_rounding" in text for text in texts.values())


# ------------------------------------------------------------------------------------------------ strict


def test_a_strict_run_gives_the_same_bits(mixed, vit, monkeypatch):
    """All methods and both kinds of products; no carrier of integers in floats is asked for."""
    images = vit.test.read(0, 3)
    expected = Engine(mixed).run(images)
    for path in (None, "blas"):
        if path:
            monkeypatch.setattr("intvit.kernels.gemm.chosen_path", lambda: "blas")
        engine = Engine(mixed, strict=True)
        engine.program(mixed.outputs)
        with monkeypatch.context() as patched:
            patched.setattr("intvit.kernels.matmul.carrier", lambda bound: pytest.fail("a float"))
            patched.setattr("intvit.kernels.matmul._product", lambda *_: pytest.fail("a float"))
            found = engine.run(images)
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)
        assert all(value.dtype.kind == "i" for value in found.values())


@pytest.mark.parametrize("broken", [lambda y: y.astype(np.float64), lambda y: y.astype(np.int64) + 1000])
def test_a_strict_run_refuses_floats_and_values_beyond_their_type(broken, vit, monkeypatch):
    graph = lowered(vit, "hawq")
    site = next(n for n in graph.nodes if n.op == "requantize" and n.attrs["bits"] == 8).name
    images = vit.test.read(0, 1)
    steps = Engine(graph).program(tuple(graph.tensors)).steps
    at = next(i for i, step in enumerate(steps) if step.output == site)
    run = steps[at].run
    changed = dataclasses.replace(steps[at], run=lambda values: broken(run(values)))
    monkeypatch.setattr("intvit.engine.make_plan", lambda graph, wanted: [*steps[:at], changed, *steps[at + 1 :]])
    with pytest.raises(IntvitError, match=rf"{site}: must (hold signed integers, and holds float64|lie in -128..127)"):
        Engine(graph, strict=True).run(images)


def test_strict_on_the_command_line(vit, cli, tmp_path):
    save(lowered(vit, "hawq"), tmp_path / "g.h5")
    for name, options in {"a": [], "b": ["--strict"], "c": ["--strict", "--backend", "spec"]}.items():
        assert (
            cli("run", tmp_path / "g.h5", "fashion-mnist:test", "--limit", "1", *options, "-o", tmp_path / name)[0] == 0
        )
    one, *others = (np.load(tmp_path / name)["logits"] for name in "abc")
    assert all(np.array_equal(one, other) for other in others)
