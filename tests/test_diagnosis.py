"""`doctor MODEL --images`: what parts cost, which rules are broken, which lines of a recipe mend it."""

import json
import math
from contextlib import contextmanager
from functools import cache

import numpy as np
import onnx
import pytest

from intvit.analysis.demo import SWIN_WEIGHTS, WEIGHTS, embedded
from intvit.analysis.diagnosis import broken_rules, diagnose, with_line
from intvit.analysis.emulation import OPERATOR, ROUNDING, Emulation, dequantized, flipped
from intvit.analysis.outputs import outcomes, summary
from intvit.engine import Engine, quantize_images
from intvit.errors import IntvitError
from intvit.floats.images import open_images
from intvit.floats.importers.kinds import import_model
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import import_timm
from intvit.floats.live import LiveActivations
from intvit.floats.model import FloatModel
from intvit.lowering.bias import fitted
from intvit.lowering.calibrate import calibrate
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe


@contextmanager
def silent(title):
    yield lambda done, total: None


@cache
def network(weights):
    """(float model, images) of an embedded network."""
    model = FloatModel(import_timm(embedded(weights)))
    graph = float_graph(model.proto)
    size = graph.tensors[graph.inputs[0]].shape[1:]
    return model, open_images("fashion-mnist:calibration", size=size, channels=1, metadata=graph.metadata)


def emulation_of(weights, method, preset="accurate", bits=8, n_images=4, **values):
    model, source = network(weights)
    graph = float_graph(model.proto)
    recipe = build_recipe({"preset": preset, "bits": bits, **values}).with_method(method)
    calibration = calibrate(graph, LiveActivations(model, source, 8), recipe)
    images = source.read(0, n_images)
    integer = lower(graph, calibration, recipe)
    return Emulation(graph, integer, model, images, calibration.samples), images


@pytest.mark.parametrize("method", ["ibert", "fqvit", "ivit"])
@pytest.mark.parametrize("values", [{}, {"preset": "published"}, {"slope_correction": True}])
@pytest.mark.parametrize("weights", [WEIGHTS, SWIN_WEIGHTS])
def test_every_node_gives_what_its_integers_stand_for(weights, values, method):
    """Fed what the engine has before it; but for ties, one step of the output's scale apart."""
    emulation, images = emulation_of(weights, method, **values)
    integer = emulation.integer
    q = Engine(integer).evaluate(quantize_images(integer, images), list(integer.tensors))
    for _, node, _ in emulation.walk(images, lambda part: True):
        values = [dequantized(q[x], integer.tensors[x]) for x in node.inputs]
        found, tensor = emulation.evaluate(node, values, lambda part: True), integer.tensors[node.output]
        want = dequantized(q[node.output], tensor)
        noise = np.sum((found - want).astype(float) ** 2)
        assert noise <= 1e-4 * np.sum(want.astype(float) ** 2), node.name
        if node.op == "requantize":
            assert np.abs(found - want).max() <= 1.01 * np.max(tensor.scale)


@pytest.mark.parametrize("slopes", [False, True])
@pytest.mark.parametrize("weights", [WEIGHTS, SWIN_WEIGHTS])
def test_with_everything_off_it_is_the_float_network(weights, slopes):
    emulation, images = emulation_of(weights, "ibert", slope_correction=slopes)
    (real,) = emulation.model.run(images).values()
    assert np.abs(emulation.outputs(images, lambda part: False) - real).max() <= 1e-4 * np.abs(real).max()


def test_what_is_switched_is_what_changes():
    """One part on: the tensors before it are the float network's, those behind it are not."""
    emulation, images = emulation_of(WEIGHTS, "ivit")
    part = emulation.parts["blocks.3.attn.softmax"]
    assert (part.what, part.detail) == (OPERATOR, "ivit")
    states = [
        {node.name: state[node.inputs[0]] for _, node, state in emulation.walk(images, on)}
        for on in (lambda other: False, lambda other: other == part)
    ]
    equal = [name for name in states[0] if np.array_equal(states[0][name], states[1][name])]
    assert "blocks.3.attn.softmax" in equal
    assert "blocks.3.attn.proj" not in equal
    assert not any(name.startswith("blocks.4") for name in equal)


def test_weights_have_slopes_where_something_is_on_that_they_correct():
    emulation, _ = emulation_of(WEIGHTS, "ivit", slope_correction=True)
    node = emulation.integer.node("blocks.1.mlp.fc2")
    chain, _ = emulation.corrections[node.name]
    real, step = emulation.graph.node(node.name).arrays["weight"], np.eye(node.arrays["weight"].shape[1])
    own = emulation.parts[node.name]
    slopes = fitted(emulation.integer, node.inputs[0], emulation.samples).slopes
    assert np.abs(slopes - 1).max() > 0.02
    for parts, wanted in (((), real), ((own,), real), (chain[:1], real * slopes), ((own, *chain), real * slopes)):
        on = flipped(False, parts)
        zero = emulation.evaluate(node, [np.zeros_like(step)], on)
        found = (emulation.evaluate(node, [step], on) - zero).T
        y, x = (emulation.integer.tensors[name].scale for name in (node.output, node.inputs[0]))
        assert np.abs(found - wanted).max() <= (0.6 * np.max(y / x) if own in parts else 1e-5)


def test_a_bias_is_corrected_for_what_is_on():
    """With a GELU and its rounding left float, the bias behind them is the float one."""
    emulation, _ = emulation_of(WEIGHTS, "ibert", n_images=8)  # those of the calibration
    node = emulation.integer.node("blocks.1.mlp.fc2")
    chain, means = emulation.corrections[node.name]
    assert [part.what for part in chain] == [OPERATOR, ROUNDING]
    x = np.zeros((1, emulation.integer.tensors[node.inputs[0]].shape[-1]), np.float32)
    weight, bias = (emulation.graph.node(node.name).arrays[key] for key in ("weight", "bias"))
    assert np.allclose(emulation.evaluate(node, [x], lambda part: False), bias, atol=1e-6)
    for state in ((True, True), (True, False), (False, True)):
        on = dict(zip(chain, state, strict=True))
        (found,) = emulation.evaluate(node, [x], lambda part, on=on: on.get(part, False)) - bias
        wanted = weight @ (means[False, False] - means[state])
        assert np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted)


@pytest.fixture(scope="module")
def found(vit):
    recipe = build_recipe({"preset": "published", "bits": 6}).with_method("ibert")
    return diagnose(
        vit.graph, LiveActivations(FloatModel(vit.onnx_path), vit.recorded, 4), recipe, sample=4, progress=silent
    )


def test_the_worst_is_named_and_mended(found):
    """I-BERT's GELU with n = 6 throws away the bits that a 6-bit input has."""
    worst = found.kinds[0] if found.kinds[0].kind != "all" else found.kinds[1]
    assert (worst.what, worst.kind, worst.n_parts) == ("operator", "gelu", 6)
    assert found.sqnr < 3
    assert worst.gain > 10
    best = next(remedy for remedy in found.remedies if remedy.line.startswith("gelu"))
    assert best.gain > 10
    gains = [remedy.gain for remedy in found.remedies if remedy.gain is not None]
    assert gains == sorted(gains, reverse=True)


def test_losses_are_of_every_part_once(found, vit):
    parts = found.parts
    assert len({(loss.what, loss.site, loss.detail) for loss in parts}) == len(parts)
    assert sum(loss.n_parts for loss in found.kinds if loss.kind == "all") == len(parts)
    operators = {node.name for node in vit.graph.nodes if node.op in ("softmax", "gelu", "layernorm")}
    assert {loss.site for loss in parts if loss.what == "operator"} == operators
    unread = [loss for loss in parts if loss.what == "rounding" and loss.kind == "softmax"]
    assert unread
    assert all(math.isnan(loss.gain) for loss in unread)


def rules_of(model, source, recipe, n_images=2):
    graph = float_graph(model.proto)
    calibration = calibrate(graph, LiveActivations(model, source, 4), recipe)
    images = source.read(0, n_images)
    emulation = Emulation(graph, lower(graph, calibration, recipe), model, images, {})
    return broken_rules(emulation, images, recipe)


def test_a_range_of_one_sign_is_named_with_the_line_that_mends_it():
    """GELU outputs, and `published` has no zero points."""
    model, source = network(WEIGHTS)
    found = rules_of(model, source, build_recipe({}))
    sided = [f for f in found if "one sign" in f.rule]
    assert {f.line for f in sided} == {"quantizers.linear.zero_point = true"}
    assert {f.site for f in sided} >= {f"blocks.{i}.mlp.act" for i in range(6)}
    mended = rules_of(model, source, with_line(build_recipe({}), sided[0].line))
    assert not [f for f in mended if "one sign" in f.rule]


@pytest.mark.parametrize(
    ("method", "change", "rule"),
    [
        ("softmax.ivit", [0] * 70000, "sum of exponentials"),
        ("gelu.ivit", [0, 1, 2], None),
        ("layernorm.ivit", [0, 0, 1, -1], "ten Newton steps"),
        ("layernorm.ivit", [4000, -4000, 100, 7], None),
        ("layernorm.ibert", [100, -100, 0, 0], "a root of 7 bits"),
        ("layernorm.ibert", [4000, -4000, 0, 0], None),
        ("layernorm.ibert", [2**20, -(2**20), 0, 0], "below 2**32"),
        ("rmsnorm.ivit", [1, 0, 0, 0], "ten Newton steps"),
        ("rmsnorm.ibert", [1, 0, 0, 0], "a root of 7 bits"),
    ],
)
def test_rows_outside_the_range_of_a_method(method, change, rule):
    from intvit.kernels import registry
    from intvit.spec.taps import listening

    operator, name = method.split(".")
    found = registry.get(operator, name)
    c = len(change)
    facts = {"out_bits": 16, "x_max": 127, "gamma": np.ones(c), "beta": np.zeros(c), "shift": 3}
    params = found.constants(0.01, facts, {})[0]
    with listening() as taps:
        found.spec(change, params)
    told = found.outside(params, taps)
    assert told is None if rule is None else rule in told


def test_outlier_channels_and_saturation():
    """Behind a norm one channel a hundred times the others; an observer that clips."""
    model, source = network(WEIGHTS)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    node = next(n for n in proto.graph.node if n.output[0] == "blocks.2.norm1")
    gamma = next(t for t in proto.graph.initializer if t.name == node.input[1])
    values = onnx.numpy_helper.to_array(gamma).copy()
    values[5] *= 300
    gamma.CopyFrom(onnx.numpy_helper.from_array(values, gamma.name))
    recipe = build_recipe({"observer": {"kind": "percentile", "percentile": 90.0}})
    found = rules_of(FloatModel(proto), source, recipe)
    (outlier,) = [f for f in found if "median" in f.rule]
    assert outlier.site == "blocks.2.norm1"
    assert "channel 5" in outlier.found
    assert outlier.line == "quantizers.layernorm.equalize = 0.7"
    saturated = [f for f in found if "saturate" in f.rule]
    assert saturated
    assert {f.line for f in saturated} == {'observer.kind = "minmax"'}


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ('gelu = { method = "ibert", n = 3 }', "gelu", {"method": "ibert", "n": 3}),
        (
            "quantizers.softmax.input_bits = 16",
            "quantizers",
            {"softmax": {"input_bits": 16}, "gelu": {"input_bits": 12}},
        ),
        ('observer.kind = "mse"', "observer", {"kind": "mse", "percentile": 99.0}),
        ("bits = 6", "bits", 6),
    ],
)
def test_a_line_joins_a_recipe(line, key, value):
    base = build_recipe({"quantizers": {"gelu": {"input_bits": 12}}, "observer": {"percentile": 99.0}})
    changed = with_line(base, line).model_dump(exclude_none=True, exclude_unset=True)
    assert changed[key] == value
    assert {k: v for k, v in changed.items() if k != key} == {
        k: v for k, v in {**base.model_dump(exclude_none=True, exclude_unset=True), "sites": {}}.items()
        if k != key and (k != "sites" or key == "gelu")
    }  # fmt: skip


def test_doctor_prints_tables_and_json(cli, vit):
    common = ["doctor", vit.onnx_path, "--images", "fashion-mnist:calibration", "--limit", "2", "--sample", "1"]
    status, out, _ = cli(*common, "--no-try", "--rows", "3")
    assert status == 0
    assert "SQNR of the outputs" in out
    assert out.count("weights of linear") >= 1
    status, out, _ = cli(*common, "--no-try", "--json", "--method", "ibert", "--preset", "published")
    assert status == 0
    answer = json.loads(out)
    assert (answer["format"], answer["n_images"], answer["n_sampled"]) == ("intvit.diagnosis", 2, 1)
    assert all(loss["error"] is None for loss in answer["losses"])  # of one image there is none


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--images", "fashion-mnist:test"], "--images: must come with a float model"),
        (["--method", "ivit"], "--method: must come with a float model and --images"),
        (["v.onnx", "--sample", "3"], "--sample: must come with a float model and --images"),
        (["v.onnx"], "v.onnx: a float model must come with --images"),
        (["--bits", "8"], "--bits: must come with"),
        (["gone.onnx", "--images", "fashion-mnist:test"], "gone.onnx"),
    ],
)
def test_options_of_doctor_that_do_not_go_together(cli, arguments, rule):
    status, out, err = cli("doctor", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert rule in err


def test_a_method_that_is_undefined_is_a_finding(vit):
    """I-BERT's softmax at a scale above 1.67: another one stands in, and the line that is for it mends it."""
    model = FloatModel(vit.onnx_path)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for node in proto.graph.node:
        if node.output[0] == "blocks.1.attn.scores" or (node.op_type == "Mul" and "blocks.1.attn" in node.output[0]):
            scale = next(t for t in proto.graph.initializer if t.name in node.input)
            scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * 300, scale.name))
    model, graph = FloatModel(proto), float_graph(proto)
    recipe = build_recipe({"preset": "published"}).with_method("ibert")
    found = diagnose(graph, LiveActivations(model, vit.recorded, 2), recipe, sample=1, progress=silent)
    assert found.sqnr is None
    (finding,) = [f for f in found.findings if "defined" in f.rule]
    assert finding.site == "blocks.1.attn.softmax"
    assert finding.line == "quantizers.softmax.input_bits = 16"
    mended = {remedy.line: remedy for remedy in found.remedies}
    assert mended[finding.line].sqnr is not None
    refused = [remedy for remedy in found.remedies if remedy.refused]
    assert refused
    assert all("1.67" in remedy.refused for remedy in refused)


def test_a_sweep_gives_every_kind_other_widths(vit, cli):
    common = [
        "doctor",
        vit.onnx_path,
        "--images",
        "fashion-mnist:calibration",
        "--limit",
        "3",
        "--sample",
        "1",
        "--no-try",
    ]
    status, out, _ = cli(*common, "--sweep", "4,8,16", "--json")
    assert status == 0
    answer = json.loads(out)
    found = {(s["kind"], s["key"], s["bits"]): s for s in answer["sweeps"]}
    kinds = [
        ("linear", "weight_bits"),
        *((kind, "input_bits") for kind in ("linear", "matmul", "softmax", "gelu", "layernorm")),
    ]
    assert set(found) == {(*kind, bits) for kind in kinds for bits in (4, 8, 16)}
    assert found["linear", "weight_bits", 8]["sqnr"] > found["linear", "weight_bits", 4]["sqnr"] + 3
    recipe = with_line(build_recipe({"preset": "accurate"}), "quantizers.matmul.input_bits = 4")
    live = LiveActivations(FloatModel(vit.onnx_path), vit.recorded, 3)
    integer = lower(vit.graph, calibrate(vit.graph, live, recipe), recipe)
    expected = summary(outcomes(integer, vit.recorded, live.model, limit=3))["sqnr"]
    assert found["matmul", "input_bits", 4]["sqnr"] == pytest.approx(expected)
    assert found["linear", "weight_bits", 16]["sqnr"] is None
    assert "8" in found["linear", "weight_bits", 16]["refused"]
    status, out, _ = cli(*common, "--sweep", "8,4")
    assert status == 0
    assert "matmul.input_bits" in out
    for wrong in ("3,8", "8,17", "8;4", "", "8,"):
        status, _, err = cli(*common, "--sweep", wrong)
        assert (status, err.count("\n")) == (2, 1)
        assert "--sweep: must be widths of 4 to 16, separated by commas" in err


def test_lines_of_unknown_keys_are_refused():
    with pytest.raises(IntvitError, match="must be a known key"):
        with_line(build_recipe({}), "foo = 1")


def test_trained_quantizers_are_left_alone(tmp_path, cli):
    """Of a network that was trained in integers only methods are tried, and no line names its quantizers."""
    from safetensors.numpy import save_file

    from tests.test_import_ivit import checkpoint, published

    meta, arrays = published("swin")
    save_file(checkpoint(arrays), tmp_path / "c.safetensors")
    options = {key: meta["config"][key] for key in ("num_heads", "img_size")}
    proto = import_model(tmp_path / "c.safetensors", **options)
    onnx.save(proto, str(tmp_path / "m.onnx"))
    shape = float_graph(proto).tensors["input"].shape
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32))
    arguments = ["doctor", tmp_path / "m.onnx", "--images", tmp_path / "x.npy", "--sample", "1", "--json"]
    status, out, _ = cli(*arguments)
    answer = json.loads(out)
    assert status == 0
    assert {f["line"] for f in answer["findings"]} == {None}
    assert any("ten Newton steps" in f["rule"] for f in answer["findings"])
    assert {remedy["line"].split(" ")[0] for remedy in answer["remedies"]} == {"softmax", "gelu", "layernorm"}
    status, _, err = cli(*arguments, "--observer", "auto")
    assert (status, err.count("\n")) == (2, 1)
    assert "must not be auto" in err
