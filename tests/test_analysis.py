"""Observers, SQNR and mapping: known numbers, and choices that a user can predict."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from intvit.analysis.sqnr import ERRORS, errors, mean_decibel
from intvit.errors import IntvitError
from intvit.lowering.observers import MeanSquaredError, MinMax, Percentile
from intvit.lowering.recipe import build_recipe, read_recipe
from intvit.mapping.rules import RULES, decide, rule_of
from intvit.mapping.scores import ROW, Key
from intvit.mapping.tables import Table


def test_minmax_of_everything():
    observer = MinMax(0.0)
    for batch in ([-1.0, 2.0], [-3.0, 1.0]):
        observer.update(np.array(batch))
    assert observer.range(8) == (-3.0, 2.0)


def test_minmax_with_momentum_is_exponential():
    observer = MinMax(0.95)
    for top in (1.0, 2.0, 3.0):
        observer.update(np.array([-top, top]))
    expected = 0.95 * (0.95 * 1.0 + 0.05 * 2.0) + 0.05 * 3.0
    assert observer.range(8) == pytest.approx((-expected, expected))


def test_percentile_ignores_the_tail():
    values = np.concatenate([np.linspace(-1, 1, 9990), np.full(10, 50.0)])
    observer = Percentile(99.5)
    observer.update(values)
    assert observer.range(8) == pytest.approx((-1.0, 1.0), abs=0.02)


def test_mse_clips_an_outlier_at_few_bits_and_not_at_many():
    values = np.concatenate([np.random.default_rng(0).normal(size=100_000), [12.0]])
    observer = MeanSquaredError()
    observer.update(values[:50_000])
    observer.update(values[50_000:])
    assert observer.range(4)[1] < 4
    assert observer.range(16)[1] > 11.5


@pytest.mark.parametrize("observer", [Percentile(99.9), MeanSquaredError()])
def test_the_smaller_side_of_a_range_ends_where_the_values_do(observer):
    """A GELU: clipped above, and never below -0.17."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.uniform(-0.17, 0, 5000), np.abs(rng.normal(size=5000)), [30.0]])
    for sign in (1, -1):
        fresh = type(observer)(99.9) if isinstance(observer, Percentile) else type(observer)()
        fresh.update(sign * values)
        near, far = fresh.range(4)[::sign]
        assert sign * near == pytest.approx(-0.17, abs=0.001)
        assert 2 < sign * far < 10


def test_a_range_of_least_error_is_that_of_the_width_at_a_site(vit):
    """Another method at a site may read another width; the clip is that width's, whatever was calibrated with."""
    from intvit.floats.recording import Recording
    from intvit.lowering.calibrate import calibrate
    from intvit.lowering.context import lower

    narrow = build_recipe({"observer": {"kind": "mse"}})
    wide = narrow.model_copy(
        update={"quantizers": build_recipe({"quantizers": {"gelu": {"input_bits": 12}}}).quantizers}
    )
    with Recording(vit.recording_path) as recording:
        calibrations = [calibrate(vit.graph, recording, recipe) for recipe in (narrow, wide)]
    found = [lower(vit.graph, calibration, wide).content_hash for calibration in calibrations]
    assert found[0] == found[1]
    site = "blocks.0.mlp.act"
    clips = []
    for recipe in (narrow, wide):
        graph = lower(vit.graph, calibrations[0], recipe)
        tensor = graph.tensors[graph.node(site).inputs[0]]
        clips.append(float(tensor.scale) * tensor.dtype.max)
    assert clips[0] < clips[1]


def defined(real, quantized):
    """The ratios of Eq. 10, an entry per image, by its text."""
    real, quantized = (values.astype(np.float64).reshape(len(real), -1) for values in (real, quantized))
    with np.errstate(divide="ignore"):
        return (np.mean(real**2, axis=1) / np.mean((real - quantized) ** 2, axis=1)).tolist()


def test_asqnr_known_values():
    ratios = defined(np.array([[3.0, 4.0], [3.0, 4.0]]), np.array([[3.0, 4.5], [3.5, 4.0]]))
    assert mean_decibel(ratios) == pytest.approx(20 * math.log10(100.0))
    assert mean_decibel(ratios, 10.0) == pytest.approx(20.0)
    assert mean_decibel([math.inf, 10.0], 10.0) == pytest.approx(10.0)


def table_of(site, methods, n_images=1):
    """Rows of methods at a site, (ASQNR in, out) in dB or arrays of them by image."""
    found = {}
    for method, values in methods.items():
        rows = np.zeros(n_images, ROW)
        rows["image"] = np.arange(n_images)
        for side, decibel in zip(("in", "out"), values, strict=True):
            rows[f"ratio_{side}"] = 10 ** (np.asarray(decibel) / 20)
        found[Key("m", "r", "uniform", site, "softmax", method)] = rows
    return Table(found)


SCORES = table_of("s", {"a": (50, 20), "b": (40, 38), "c": (60, 65)})


@pytest.mark.parametrize(("rule", "expected"), [("sqnr_diff", "b"), ("sqnr_diff_signed", "a"), ("sqnr_output", "c")])
def test_rules(rule, expected):
    assert decide(SCORES, rule_of(rule), "abc")["s"].method == expected


def test_unknown_rule_lists_the_known_ones():
    with pytest.raises(IntvitError, match=", ".join(RULES)):
        rule_of("best")


def test_map_and_lower_with_its_mapping(cli, vit, tmp_path):
    mapping = tmp_path / "m.json"
    common = ["--recording", vit.recording_path]
    arguments = ["map", vit.onnx_path, *common, "--images", "fashion-mnist:calibration", "-o", mapping, "--limit", "8"]
    status, out, _ = cli(*arguments)
    assert status == 0
    assert "blocks.5.mlp.act" in out
    report = json.loads(mapping.read_text())
    sites = report["recipe"]["sites"]
    assert len(sites) == 6 + 6 + 13
    assert {s["method"] for s in report["scores"] if s["operator"] == "gelu"} == {"ibert", "ivit"}
    assert cli("lower", vit.onnx_path, *common, "--mapping", mapping, "-o", tmp_path / "g.h5")[0] == 0
    assert read_recipe(mapping).sites["blocks.0.norm1"].method == sites["blocks.0.norm1"]["method"]
    status, out, _ = cli("eval", tmp_path / "g.h5", "fashion-mnist:test", "--limit", "64", "--json")
    assert status == 0
    assert json.loads(out)["integer"] > 0.8


def test_a_mixed_model_that_is_worse_is_not_handed_out(cli, vit, tmp_path):
    """The signed reading of the rule takes the method that loses most, site by site."""
    common = ["map", vit.onnx_path, "--recording", vit.recording_path, "--images", "fashion-mnist:calibration"]
    common += ["--limit", "8", "--rule", "sqnr_diff_signed", "-o", tmp_path / "m.json"]
    status, out, err = cli(*common)
    report = json.loads((tmp_path / "m.json").read_text())
    assert status == 0
    outputs, best = report["outputs_sqnr"], report["fallback"]
    assert outputs["mixed"] < outputs[best] == max(outputs.values())
    assert f"note: rule sqnr_diff_signed chose a model of {outputs['mixed']:.1f} dB at the outputs" in err
    assert f"mixed {outputs['mixed']:.1f}" in out
    uniform = read_recipe(tmp_path / "m.json")
    assert {choice.method for choice in uniform.sites.values()} <= {best, "ivit"}  # no GELU of FQ-ViT
    for uniform_site in ("blocks.0.attn.softmax", "norm"):
        assert uniform.sites[uniform_site].method == best
    status, _, err = cli(*common, "--no-fallback")
    report = json.loads((tmp_path / "m.json").read_text())
    assert status == 0
    assert "note: rule sqnr_diff_signed chose a model of" in err
    assert "map --no-fallback" not in err
    assert report["fallback"] is None
    assert report["outputs_sqnr"] == outputs
    assert read_recipe(tmp_path / "m.json").sites != uniform.sites


def test_the_measured_models_are_those_that_the_recipe_lowers_to(vit):
    """`outputs` of the mixed model is what its graph gives."""
    from intvit.engine import Engine
    from intvit.floats.model import FloatModel
    from intvit.floats.recording import Recording
    from intvit.lowering.context import lower
    from intvit.mapping.mapping import map_methods

    recipe = build_recipe({})
    with Recording(vit.recording_path) as recording:
        found = map_methods(
            vit.graph, recording, vit.recorded, vit.calibration, recipe, ("ivit", "ibert"), limit=6, batch=4,
            fallback=False,
        )  # fmt: skip
    images = vit.recorded.read(0, 6)
    (real,) = FloatModel(vit.onnx_path).run(images).values()
    for name, chosen in {"mixed": found.recipe, "ivit": recipe.with_method("ivit")}.items():
        graph = lower(vit.graph, vit.calibration, chosen)
        y = Engine(graph).run(images)["logits"] * graph.tensors["logits"].scale
        ratio = np.sum(real.astype(float) ** 2) / np.sum((real - y) ** 2)
        assert found.outputs[name] == pytest.approx(10 * np.log10(ratio), abs=0.01)


def test_without_a_recording_the_float_model_runs_along(cli, vit, tmp_path):
    source = ["--images", "fashion-mnist:calibration", "--limit", "16"]
    recorded = ["--recording", vit.recording_path, "--images", "fashion-mnist:calibration"]
    for name, options in (("live", source), ("recorded", recorded)):
        assert cli("map", vit.onnx_path, *options, "-o", tmp_path / f"{name}.json")[0] == 0
    live, recorded = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("live", "recorded"))
    assert live["recipe"] == recorded["recipe"]
    for a, b in zip(live["scores"], recorded["scores"], strict=True):
        assert abs(a["sqnr_diff"] - b["sqnr_diff"]) < 0.1  # onnxruntime's sums may differ by batch
    assert cli("lower", vit.onnx_path, *source, "--method", "ivit", "-o", tmp_path / "g.h5")[0] == 0
    status, _, err = cli("lower", vit.onnx_path, "--method", "ivit", "-o", tmp_path / "h.h5")
    assert status == 2
    assert "--recording: must be given" in err


def test_fqvit_has_no_gelu_of_its_own():
    assert build_recipe({}).with_method("fqvit").gelu.method == "ivit"


@pytest.mark.parametrize("zero_point", [0, -5])
@pytest.mark.parametrize(("encoding", "scale"), [("linear", 0.5), ("linear", [0.5, 0.25, 2.0]), ("log2", 1.0)])
def test_errors_are_those_of_the_dequantized_values(encoding, scale, zero_point):
    from intvit.engine.trace import dequantize
    from intvit.graph.inttypes import IntType
    from intvit.graph.ir import Tensor

    rng = np.random.default_rng(0)
    q = rng.integers(-1, 8, (4, 5, 3)).astype(np.int8)
    tensor = Tensor("t", (5, 3), IntType(8), np.array(scale), encoding, zero_point=zero_point * (encoding == "linear"))
    real = (dequantize(q, tensor) + rng.normal(0, 0.1, q.shape)).astype(np.float32)
    real[2] = dequantize(q[2], tensor)
    found = errors(real, q, tensor)
    assert found.dtype == ERRORS
    assert np.allclose(found["ratio"], defined(real, dequantize(q, tensor)), rtol=1e-12)
    assert found["ratio"][2] == np.inf
    off = (dequantize(q, tensor).astype(np.float64) - real).reshape(4, -1)
    assert np.allclose(found["mean"], off.mean(axis=1), rtol=0, atol=1e-7)
    assert np.allclose(found["max"], np.abs(off).max(axis=1), rtol=1e-6)
    assert found["saturated"].tolist() == [0, 0, 0, 0]
    assert errors(real, np.full_like(q, 127), tensor)["saturated"].tolist() == [1, 1, 1, 1]


# ----------------------------------------------------------------- values behind layout moves


def layout_graph():
    from intvit.graph.ir import FloatTensor, Graph, Node

    shapes = {
        "a": (4, 6), "sliced": (2, 6), "turned": (6, 2), "flat": (12,), "b": (6, 2), "joined": (6, 5), "picked": (5,),
        "before": (3, 4), "between": (4, 3), "after": (12,), "lost": (2, 2),
    }  # fmt: skip
    nodes = [
        Node("slice", "n0", ("a",), "sliced", {"axis": 0, "start": 1, "stop": 4, "step": 2}),
        Node("transpose", "n1", ("sliced",), "turned", {"perm": [1, 0]}),
        Node("reshape", "n2", ("turned",), "flat", {"shape": [12]}),
        Node("concat", "n3", ("turned", "b"), "joined", {"axis": 1, "order": [0, "c", 1]}, {"c": np.full((6, 1), 7.0)}),
        Node("take", "n4", ("joined",), "picked", {"axis": 0, "index": 3}),
        Node("transpose", "n5", ("before",), "between", {"perm": [1, 0]}),
        Node("reshape", "n6", ("between",), "after", {"shape": [12]}),
        Node("gelu", "n7", ("lost",), "gelu"),
    ]
    tensors = {name: FloatTensor(name, shape) for name, shape in {**shapes, "gelu": (2, 2)}.items()}
    return Graph(("a",), ("flat",), tuple(nodes), tensors)


def test_values_behind_layout_moves_are_moved_values():
    from intvit.mapping.values import float_values

    rng = np.random.default_rng(0)
    recorded = {"a": rng.normal(size=(3, 4, 6)), "b": rng.normal(size=(3, 6, 2)), "after": rng.normal(size=(3, 12))}
    turned = recorded["a"][:, 1:4:2].transpose(0, 2, 1)
    joined = np.concatenate([turned, np.full((3, 6, 1), 7.0), recorded["b"]], axis=2)
    expected = {
        "a": recorded["a"], "turned": turned, "flat": turned.reshape(3, 12), "joined": joined, "picked": joined[:, 3],
        "between": recorded["after"].reshape(3, 4, 3),
        "before": recorded["after"].reshape(3, 4, 3).transpose(0, 2, 1),
    }  # fmt: skip
    graph = layout_graph()
    for name, values in expected.items():
        assert np.array_equal(float_values(graph, name, set(recorded), recorded.get), values), name
    for name in ("lost", "gelu"):
        with pytest.raises(IntvitError, match=f"{name}: no recorded activation"):
            float_values(graph, name, set(recorded), recorded.get)
    recorded["a"] = recorded["a"][:, :3]
    for name in ("a", "turned"):
        with pytest.raises(IntvitError, match=f"{name}: recorded activation must have the shape"):
            float_values(graph, name, set(recorded), recorded.get)


@pytest.mark.parametrize("until", ["view_11", "view_10", "layer_norm_4"])
def test_the_error_of_an_output_behind_layout_moves_is_that_of_its_values(cli, tmp_path, until):
    """The ranges of a slice are its source's, its values are not: a map once read beyond them and printed -6.86."""
    from intvit.engine import Engine
    from intvit.floats.images import open_images
    from intvit.floats.importers.onnx import float_graph, load_model
    from intvit.floats.live import LiveActivations
    from intvit.floats.model import FloatModel
    from intvit.lowering.calibrate import calibrate
    from intvit.lowering.context import lower
    from intvit.mapping.mapping import map_methods

    foreign = Path(__file__).resolve().parent.parent / "golden" / "foreign" / "dense_new20.onnx"
    assert cli("import", foreign, "--until", until, "-o", tmp_path / "m.onnx")[0] == 0
    graph, model = float_graph(load_model(tmp_path / "m.onnx")), FloatModel(tmp_path / "m.onnx", threads=1)
    images = np.random.default_rng(0).normal(size=(4, *model.input_shape)).astype(np.float32)
    np.save(tmp_path / "x.npy", images)
    source = open_images(str(tmp_path / "x.npy"), size=model.input_shape[1:], channels=model.input_shape[0])
    activations, recipe = LiveActivations(model, source), build_recipe({})
    calibration = calibrate(graph, activations, recipe)
    found = map_methods(graph, activations, source, calibration, recipe, ("ibert", "ivit"), batch=3).logits
    (real,) = model.run(images).values()
    for method in ("ibert", "ivit"):
        integer = lower(graph, calibration, recipe.with_method(method))
        name = integer.outputs[0]
        truth = mean_decibel(defined(real, Engine(integer).run(images)[name] * integer.tensors[name].scale))
        assert found[method] == pytest.approx(truth, abs=1e-3)
        assert truth > 40


# --------------------------------------------------------------- a method that is undefined at a site


@pytest.fixture(scope="module")
def steep(vit, tmp_path_factory):
    """The embedded model with the queries of two blocks 60 times as long: scores far beyond I-BERT's softmax."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(vit.onnx_path))
    changed = 0
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if re.search(r"blocks\.[24]\.attn\.qkv", tensor.name):
            values = values.copy()
            third = max(values.shape) // 3
            values[(slice(None),) * (values.shape.index(3 * third)) + (slice(0, third),)] *= 60
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            changed += 1
    assert changed >= 2, [t.name for t in model.graph.initializer]
    path = tmp_path_factory.mktemp("steep") / "steep.onnx"
    onnx.save(model, str(path))
    return path


LIMIT = r"blocks\.2\.attn\.softmax: softmax ibert: input scale must be below 1\.67, or every exponent is 0; not \d"


def test_a_candidate_that_is_undefined_at_a_site_is_skipped_there(cli, steep, tmp_path):
    source = ["--images", "fashion-mnist:calibration", "--limit", "8", "--preset", "published"]
    mapping = tmp_path / "m.json"
    status, out, err = cli("map", steep, *source, "-o", mapping)
    assert status == 0, err
    report = json.loads(mapping.read_text())
    assert [(s["site"], s["method"], s["stand_in"]) for s in report["skipped"]] == [
        (f"blocks.{i}.attn.softmax", "ibert", "fqvit") for i in (2, 4)
    ]
    assert all("must be below 1.67" in s["reason"] for s in report["skipped"])
    scored = {(s["site"], s["method"]) for s in report["scores"]}
    for i in range(6):
        assert ((f"blocks.{i}.attn.softmax", "ibert") in scored) == (i not in (2, 4))
        assert {(f"blocks.{i}.attn.softmax", m) for m in ("fqvit", "ivit")} <= scored
    assert out.count("undefined here") == 2
    assert err.count("note: blocks.") == 2
    assert re.search(r"note: blocks\.2\.attn\.softmax: ibert is skipped here, fqvit stands in for it: .*1\.67", err)
    assert cli("lower", steep, *source, "--mapping", mapping, "-o", tmp_path / "g.h5")[0] == 0
    status, _, err = cli("lower", steep, *source, "--method", "ibert", "-o", tmp_path / "h.h5")
    assert status == 2
    assert re.search(LIMIT, err)
    assert not (tmp_path / "h.h5").exists()


def test_a_site_without_a_candidate_ends_a_map(cli, steep, tmp_path):
    source = ["--images", "fashion-mnist:calibration", "--limit", "8", "--preset", "published"]
    status, out, err = cli("map", steep, *source, "--methods", "ibert", "-o", tmp_path / "m.json")
    assert (status, out) == (2, "")
    assert re.search(r"blocks\.2\.attn\.softmax: no candidate is left here: .*1\.67", err)
    assert err.strip().count("\n") == 0
    assert not (tmp_path / "m.json").exists()
    # the deployment of I-ViT takes any scale, and gives the 8 bits that it can
    status, _, err = cli("map", steep, *source, "--methods", "ibert,ivit_tvm", "-o", tmp_path / "m.json")
    assert status == 0
    assert re.search(r"blocks\.2\.attn\.softmax: ibert is skipped here, ivit_tvm stands in for it: .*1\.67", err)


def test_a_candidate_that_is_undefined_everywhere_is_refused(vit, monkeypatch):
    from intvit.lowering import context
    from intvit.lowering.context import Infeasible
    from intvit.mapping import candidates

    sites = {node.name: node.op for node in vit.graph.nodes if node.op in ("softmax", "gelu", "layernorm")}

    def lower(graph, calibration, recipe):
        for site, op in sites.items():
            if recipe.choice(op, site).method == "ibert":
                raise Infeasible(site, "not here")
        return graph

    monkeypatch.setattr(context, "lower", lower)
    recipe = build_recipe({})
    with pytest.raises(
        IntvitError, match=r"ibert: must be defined at one site of the model at least, and is at none: .*not"
    ):
        candidates.uniform_model(vit.graph, vit.calibration, recipe, "ibert", ("ibert", "ivit"))
    found = candidates.uniform_model(vit.graph, vit.calibration, recipe, "fqvit", ("ibert", "fqvit", "ivit"))
    assert found.skipped == ()
    assert found.recipe == recipe.with_method("fqvit")
