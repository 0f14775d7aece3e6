"""Observers, SQNR and mapping: known numbers, and choices that a user can predict."""

import json
import math

import numpy as np
import pytest

from intvit.analysis.mapping import RULES, SiteScore, choose
from intvit.analysis.sqnr import Sqnr, mean_decibel
from intvit.errors import IntvitError
from intvit.observers import MeanSquaredError, MinMax, Percentile
from intvit.recipe import Choice, build_recipe, read_recipe


def test_minmax_of_everything():
    observer = MinMax(0.0)
    for batch in ([-1.0, 2.0], [-3.0, 1.0]):
        observer.update(np.array(batch))
    assert observer.range() == (-3.0, 2.0)


def test_minmax_with_momentum_is_exponential():
    observer = MinMax(0.95)
    for top in (1.0, 2.0, 3.0):
        observer.update(np.array([-top, top]))
    expected = 0.95 * (0.95 * 1.0 + 0.05 * 2.0) + 0.05 * 3.0
    assert observer.range() == pytest.approx((-expected, expected))


def test_percentile_ignores_the_tail():
    values = np.concatenate([np.linspace(-1, 1, 9990), np.full(10, 50.0)])
    observer = Percentile(99.5)
    observer.update(values)
    assert observer.range()[1] == pytest.approx(1.0, abs=0.02)


def test_mse_clips_an_outlier_at_few_bits_and_not_at_many():
    values = np.concatenate([np.random.default_rng(0).normal(size=100_000), [12.0]])
    few, many = MeanSquaredError(4), MeanSquaredError(16)
    for observer in (few, many):
        observer.update(values[:50_000])
        observer.update(values[50_000:])
    assert few.range()[1] < 4
    assert many.range()[1] > 11.5


def test_asqnr_known_values():
    stats = Sqnr()
    stats.update(0, np.array([[3.0, 4.0], [3.0, 4.0]]), np.array([[3.0, 4.5], [3.5, 4.0]]))
    assert stats.decibel() == pytest.approx(20 * math.log10(100.0))
    assert stats.decibel(10.0) == pytest.approx(20.0)
    assert mean_decibel([math.inf, 10.0], 10.0) == pytest.approx(10.0)


def test_asqnr_does_not_depend_on_batches():
    rng = np.random.default_rng(1)
    x, q = rng.normal(size=(9, 7)), rng.normal(size=(9, 7))
    whole, parts = Sqnr(), Sqnr()
    whole.update(0, x, q)
    for start in (6, 0, 3):
        parts.update(start, x[start : start + 3], q[start : start + 3])
    assert whole.decibel() == parts.decibel()


SCORES = tuple(
    SiteScore("s", "softmax", Choice(method=m), a, b) for m, a, b in (("a", 50, 20), ("b", 40, 38), ("c", 60, 65))
)


@pytest.mark.parametrize(("rule", "expected"), [("sqnr_diff", "b"), ("sqnr_diff_signed", "a"), ("sqnr_output", "c")])
def test_rules(rule, expected):
    assert choose(SCORES, rule)["s"].method == expected


def test_unknown_rule_lists_the_known_ones():
    with pytest.raises(IntvitError, match=", ".join(RULES)):
        choose(SCORES, "best")


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


@pytest.mark.parametrize(("encoding", "scale"), [("linear", 0.5), ("linear", [0.5, 0.25, 2.0]), ("log2", 1.0)])
def test_power_ratios_are_those_of_the_dequantized_values(encoding, scale):
    from intvit.analysis.sqnr import power_ratios
    from intvit.graph.ir import Tensor
    from intvit.inttypes import IntType
    from intvit.trace import dequantize

    rng = np.random.default_rng(0)
    q = rng.integers(-1, 8, (4, 5, 3)).astype(np.int8)
    tensor = Tensor("t", (5, 3), IntType(8), np.array(scale), encoding)
    real = (dequantize(q, tensor) + rng.normal(0, 0.1, q.shape)).astype(np.float32)
    real[2] = dequantize(q[2], tensor)
    old, new = Sqnr(), Sqnr()
    old.update(7, real, dequantize(q, tensor))
    new.merge(7, power_ratios(real, q, tensor))
    assert old.ratios.keys() == new.ratios.keys()
    assert np.allclose(list(old.ratios.values()), list(new.ratios.values()), rtol=1e-12)
    assert new.ratios[9] == np.inf
