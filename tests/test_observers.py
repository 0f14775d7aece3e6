"""Observers by what they are for: searched clips, one for each quantizer, and `auto`."""

from dataclasses import replace

import numpy as np
import pytest
from small_models import N, imported, weights

from intvit.analysis import observers
from intvit.analysis.demo import WEIGHTS, embedded
from intvit.analysis.observers import resolved
from intvit.engine import Engine
from intvit.errors import IntvitError
from intvit.floats.images import open_images
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import import_timm
from intvit.floats.live import LiveActivations
from intvit.floats.model import FloatModel
from intvit.graph.store import load
from intvit.kernels.quantize import affine_scale, quantize_weight
from intvit.lowering.calibrate import calibrate
from intvit.lowering.context import lower
from intvit.lowering.observers import KullbackLeibler, MeanSquaredError, build_observer
from intvit.lowering.recipe import OBSERVERS, Observer, build_recipe

RNG = np.random.default_rng(4)


def kl_by_hand(x, clip, bits, n_bins=4096):
    """The divergence level by level, in plain loops over the same bins."""
    top = np.abs(x).max()
    counts = np.histogram(np.abs(x), n_bins, (0.0, top))[0].tolist()
    kept = max(1, round(clip / top * n_bins))
    q_max = 2 ** (bits - 1) - 1
    levels = [min(round((i + 0.5) / kept * q_max), q_max) for i in range(kept)]
    p, q = [float(c) for c in counts[:kept]], [0.0] * kept
    for level in set(levels):
        inside = [i for i in range(kept) if levels[i] == level and p[i] > 0]
        for i in inside:
            q[i] = sum(p[j] for j in inside) / len(inside)
    p[-1] += sum(counts[kept:])
    if p[-1] and not q[-1]:
        return np.inf
    total_p, total_q = sum(p), sum(q)
    return sum(a / total_p * np.log(a / total_p / (b / total_q)) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_kl_is_the_divergence_of_rounded_levels(bits):
    x = RNG.laplace(size=20000)
    observer = KullbackLeibler()
    observer.update(x)
    clips = [observer.top * share for share in (0.1, 0.35, 0.6, 1.0)]
    found = [observer.loss(clip, bits) for clip in clips]
    assert found == pytest.approx([kl_by_hand(x, clip, bits) for clip in clips])
    low, high = observer.range(bits)
    assert observer.loss(max(-low, high), bits) == min(
        observer.loss(float(c), bits) for c in np.linspace(observer.top / 100, observer.top, 100)
    )


@pytest.mark.parametrize("kind", ["kl", "mse"])
@pytest.mark.parametrize(
    "x", [np.zeros(9), np.ones(5), np.array([3.0]), np.array([-1e-20, 1e20]), np.array([0, 1e-42], np.float32)]
)
def test_degenerate_values_have_a_range(kind, x):
    observer = build_observer(Observer(kind=kind))
    observer.update(x)
    for bits in (4, 8, 16):
        low, high = observer.range(bits)
        assert -np.inf < low <= high < np.inf


def test_wide_codes_are_not_clipped():
    for observer in (KullbackLeibler(), MeanSquaredError()):
        observer.update(np.linspace(0, 1, 5000))
        assert observer.range(16)[1] == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_a_clipped_weight_has_less_error_and_never_more(bits):
    w = RNG.standard_t(3, size=(16, 300))
    errors = []
    for clip in (False, True):
        codes, scale = quantize_weight(w, bits, clip=clip)
        assert -(2 ** (bits - 1)) <= codes.min() <= codes.max() <= 2 ** (bits - 1) - 1
        errors.append(((codes * scale[:, None] - w) ** 2).sum(axis=1))
    assert np.all(errors[1] <= errors[0])
    assert errors[1].sum() < errors[0].sum()


@pytest.fixture(scope="module")
def live():
    model = FloatModel(import_timm(embedded(WEIGHTS)))
    graph = float_graph(model.proto)
    images = open_images("fashion-mnist:calibration", size=(28, 28), channels=1, metadata=graph.metadata)
    return graph, model, LiveActivations(model, images, 16)


def test_one_observer_for_one_quantizer(live):
    graph, _, activations = live
    asked = {"quantizers": {"blocks.1.mlp.fc2": {"observer": "percentile"}, "gelu": {"observer": "mse"}}}
    found = calibrate(graph, activations, build_recipe({"observer": {"percentile": 90.0}, **asked}))
    plain = calibrate(graph, activations, build_recipe({}))
    changed = {name for name in plain.ranges if found.ranges[name] != plain.ranges[name]}
    fc1 = {f"blocks.{i}.mlp.fc1" for i in range(6)}
    assert changed <= {"blocks.1.mlp.act", *fc1}
    assert "blocks.1.mlp.act" in changed
    assert set(found.observers) == fc1  # whose ranges a width decides


def test_readers_that_disagree_are_refused(live):
    graph, _, activations = live
    asked = {"blocks.0.norm1": {"observer": "mse"}, "blocks.0.add1": {"observer": "kl"}}
    with pytest.raises(IntvitError, match="observer must be one for all that read it, not"):
        calibrate(graph, activations, build_recipe({"quantizers": asked}))
    shares = build_recipe({"quantizers": {"blocks.0.norm1": {"range": 0.5}, "blocks.0.add1": {"range": 0.6}}})
    with pytest.raises(IntvitError, match=r"range must be one for all that read it, not \{0.5"):
        lower(graph, calibrate(graph, activations, shares), shares)


def test_a_share_of_a_range(live):
    """Of the larger side; a zero point keeps what the smaller one has."""
    graph, _, activations = live
    shares = {"blocks.1.mlp.fc2": {"range": 0.5}, "blocks.2.attn.proj": {"range": 0.25}, "matmul": {"range": 1.0}}
    recipes = [build_recipe({"preset": "accurate", "quantizers": each}) for each in ({}, shares)]
    calibration = calibrate(graph, activations, recipes[0])
    assert calibrate(graph, activations, recipes[1]).ranges == calibration.ranges
    plain, shared = (lower(graph, calibration, recipe) for recipe in recipes)
    for site, share in (("blocks.1.mlp.fc2", 0.5), ("blocks.2.attn.proj", 0.25)):
        name = plain.node(site).inputs[0]
        low, high = calibration.ranges[plain.tensors[name].source]
        top = share * max(-low, high)
        scale, zero_point = affine_scale(max(low, -top), min(high, top), 8)
        assert (shared.tensors[name].scale, shared.tensors[name].zero_point) == (scale, zero_point)
    changed = {name for name, of in plain.tensors.items() if np.any(of.scale != shared.tensors[name].scale)}
    read = plain.tensors[plain.node("blocks.2.attn.proj").inputs[0]].source
    found = {name.partition(".quant")[0] for name in changed}
    assert found == {"blocks.1.mlp.act", "blocks.1.mlp.fc2", "blocks.2.attn.proj", read}


def test_auto_is_resolved_into_lines_of_a_recipe(live):
    """What it takes is at least as good as one observer everywhere, and says so itself."""
    graph, model, activations = live
    asked = {"blocks.3.mlp.fc1": {"observer": "kl"}, "blocks.2.attn.qkv": {"weight_bits": 8}}
    values = {"preset": "accurate", "bits": 6, "observer": {"kind": "auto"}, "quantizers": asked}
    recipe = build_recipe(values).with_method("ibert")
    with pytest.raises(IntvitError, match="auto must be resolved"):
        calibrate(graph, activations, recipe)
    found = resolved(graph, model, activations, recipe)
    first = found.taken.removesuffix(" with slopes")
    assert set(found.sqnr) == {*OBSERVERS, "auto", f"{first} with slopes"}
    best = max(found.sqnr, key=found.sqnr.__getitem__)
    assert found.sqnr[found.taken] >= found.sqnr[first] >= found.sqnr["minmax"]
    assert f"taken {found.taken}" in found.note
    assert ("not surely better" in found.note) == (found.taken != best)
    assert found.recipe.observer.kind != "auto"
    stated = found.recipe.quantizers
    assert stated["blocks.3.mlp.fc1"].observer == "kl"  # what was asked for stays
    assert stated["blocks.2.attn.qkv"].weight_bits == 8
    assert (first == "auto") == (len(stated) > len(asked))
    integer = lower(graph, calibrate(graph, activations, found.recipe), found.recipe)
    again = build_recipe(integer.metadata["recipe"])
    assert lower(graph, calibrate(graph, activations, again), again).content_hash == integer.content_hash


def test_images_behind_those_of_the_calibration_are_there():
    """`lower --limit` cut them off, so that auto judged on the very images that it took ranges from."""
    auto, minmax = (build_recipe({"observer": {"kind": kind}}) for kind in ("auto", "minmax"))
    assert observers.enough(auto, 4) == 4 + observers.MORE * observers.MOST
    assert (observers.enough(minmax, 4), observers.enough(auto, None)) == (4, None)


@pytest.mark.parametrize("momentum", [0.0, 0.95])
def test_what_was_measured_is_what_the_recipe_makes(live, momentum):
    """Of the extremes of all images, not of smoothed ones."""
    graph, model, activations = live
    values = {"preset": "accurate", "observer": {"kind": "auto", "momentum": momentum, "batch": 1}}
    found = resolved(graph, model, activations, build_recipe(values).with_method("ibert"))
    integer = lower(graph, calibrate(graph, activations, found.recipe), found.recipe)
    images, name = activations.read(graph.inputs[0], 0, 16), integer.outputs[0]
    (real,) = model.run(images).values()
    error = Engine(integer).run(images)[name] * integer.tensors[name].scale - real
    assert 10 * np.log10(np.sum(real**2) / np.sum(error**2)) == pytest.approx(found.sqnr[found.taken], abs=1e-3)


def test_ranges_are_judged_on_images_that_were_not_calibrated_on(live, monkeypatch):
    """All of them on few, those that matter on more; the whole models on as many as were asked for."""
    graph, model, activations = live
    recipe = build_recipe({"preset": "accurate", "bits": 4, "observer": {"kind": "auto"}}).with_method("ibert")
    seen, judged = [], observers._judged

    def listening(graph, model, lowered, samples, images, wanted, progress):
        seen.append((images, wanted))
        return judged(graph, model, lowered, samples, images, wanted, progress)

    monkeypatch.setattr(observers, "_judged", listening)
    monkeypatch.setattr(observers, "MOST", 1)
    found = resolved(graph, model, replace(activations, limit=16), recipe, limit=4, judged=12)
    assert found.n_images == 12
    rest = activations.read(graph.inputs[0], 4, 16)
    assert [len(images) for images, _ in seen] == [1, 4, 12]
    assert all(np.array_equal(images, rest[: len(images)]) for images, _ in seen)
    assert [set(map(len, wanted.values())) for _, wanted in seen] == [{len(observers.RANGES)}, {4, 3}, {4, 3}]
    assert set(seen[0][1]) > set(seen[2][1])
    assert all(kinds[0] == "minmax" for kinds in seen[2][1].values())


def test_slopes_are_tried_unless_the_recipe_says(live):
    graph, model, activations = live
    for values, tried in (({}, True), ({"slope_correction": False}, False), ({"bias_correction": False}, False)):
        recipe = build_recipe({"preset": "accurate", "observer": {"kind": "auto"}, **values})
        found = resolved(graph, model, activations, recipe.with_method("ivit"), limit=2)
        assert ([name for name in found.sqnr if name.endswith("with slopes")] != []) == tried
        assert (found.recipe.slope_correction is True) == found.taken.endswith("with slopes")


@pytest.mark.parametrize(("better", "taken"), [
    ((), "minmax"), (("mse",), "mse"), (("auto",), "auto"), (("with slopes",), "minmax with slopes"),
    (("mse", "with slopes"), "mse with slopes"), (("auto", "with slopes"), "auto with slopes"),
])  # fmt: skip
def test_slopes_are_a_second_decision(live, monkeypatch, better, taken):
    """One comparison, with what the first one took; unsure in the company of the others it may be sure alone."""
    graph, model, activations = live
    looked_at = []

    def surely_less(values, others, of=1):
        looked_at.append((of, values is not others))
        return values is not others and bool(values[0] < 0)

    def noises(self, integers):
        worth = {name: -1.0 if any(name.endswith(each) for each in better) else 1.0 for name in integers}
        return {name: np.full(self.n_images, value) for name, value in worth.items()}

    monkeypatch.setattr(observers, "surely_less", surely_less)
    monkeypatch.setattr(observers._Judge, "noises", noises)
    monkeypatch.setattr(observers, "decibel", lambda signal, noise: -noise)
    recipe = build_recipe({"preset": "accurate", "observer": {"kind": "auto"}}).with_method("ibert")
    assert resolved(graph, model, activations, recipe, limit=2).taken == taken
    assert [of for of, other in looked_at if other] == [len(OBSERVERS)] * len(OBSERVERS) + [1]


def test_auto_is_judged_in_the_best_uniform_model(live):
    """Of the candidates under minmax; the recipe keeps its own methods."""
    graph, model, activations = live
    recipe = build_recipe({"preset": "accurate", "observer": {"kind": "auto"}})
    found = resolved(graph, model, activations, recipe, methods=("ivit", "fqvit", "ibert"))
    own = {name: resolved(graph, model, activations, recipe.with_method(name)) for name in ("ivit", "ibert")}
    assert found.method == "ibert"
    assert found.sqnr == own["ibert"].sqnr
    assert found.sqnr["minmax"] > own["ivit"].sqnr["minmax"] + 3
    assert "dB in uniform ibert on" in found.note
    assert (found.recipe.softmax, found.recipe.sites) == (recipe.softmax, recipe.sites)
    assert found.recipe.quantizers == own["ibert"].recipe.quantizers
    assert found.recipe.observer == own["ibert"].recipe.observer


def test_auto_on_the_command_line(cli, vit, tmp_path):
    path = tmp_path / "g.h5"
    arguments = ["lower", vit.onnx_path, "--recording", vit.recording_path, "--observer", "auto", "--limit", "4"]
    status, _, err = cli(*arguments, "-o", path)
    assert status == 0
    assert "observer auto: minmax" in err
    assert load(path).metadata["recipe"]["observer"]["kind"] != "auto"


@pytest.mark.parametrize(
    ("quantizers", "rule"),
    [
        ({"gelu": {"weight_clip": True}}, "weight_clip and zero_point must be of linear operators, not of gelu"),
        ({"linear": {"observer": "auto"}}, "observer: must be 'minmax', 'percentile', 'mse' or 'kl', not 'auto'"),
        ({"linear": {"observer": "best"}}, "observer: must be"),
        ({"linear": {"range": 0.0}}, "quantizers.linear.range: must be greater than 0, not 0"),
        ({"linear": {"range": 1.5}}, "quantizers.linear.range: must be less than or equal to 1, not 1.5"),
    ],
)
def test_what_a_quantizer_cannot_have(live, quantizers, rule):
    graph, _, activations = live

    def lowered():
        recipe = build_recipe({"quantizers": quantizers})
        return lower(graph, calibrate(graph, activations, recipe), recipe)

    with pytest.raises(IntvitError, match=rule):
        lowered()


def test_a_quantizer_is_chosen_where_nothing_is_stated_and_nothing_else_is_read(tmp_path):
    """(sites that state it, tensors): where a site reads one tensor alone, the others of its readers state nothing."""
    nodes = [
        N("MatMul", ["x0", "w1"], ["a"], "fc"),
        N("LayerNormalization", ["a", "g", "b"], ["n"], axis=-1),
        *(N("MatMul", ["n", w], [name], name) for name, w in (("q", "wq"), ("k", "wk"), ("v", "wv"))),
        N("Transpose", ["k"], ["kt"], perm=[0, 2, 1]), N("MatMul", ["q", "kt"], ["s"], "qk"),
        N("Softmax", ["s"], ["p"], axis=-1), N("MatMul", ["p", "v"], ["o"], "av"),
        N("MatMul", ["o", "wo"], ["m"], "proj"), N("Add", ["m", "o"], ["z"], "res"),
        N("MatMul", ["z", "wz"], ["y"], "head"),
    ]  # fmt: skip
    constants = {f"w{key}": weights(8, 8, seed=i) for i, key in enumerate("1qkvoz")}
    constants |= {"g": weights(8), "b": weights(8, seed=2)}
    images = np.random.default_rng(3).standard_t(3, size=(12, 1, 8, 8)).astype(np.float32)
    graph, activations = imported(tmp_path, nodes, constants, images)
    sites = {node.output: node.name for node in graph.nodes}

    def groups(**quantizers):
        recipe = build_recipe({"preset": "accurate", "quantizers": quantizers, "observer": {"kind": "auto"}})
        found = observers._groups(graph, recipe.with_method("ibert"))
        for limit in (2, 12):
            chosen = resolved(graph, activations.model, activations, recipe.with_method("ibert"), limit=limit)
            lower(graph, calibrate(graph, activations, chosen.recipe, limit=limit), chosen.recipe)
        return {frozenset(tensors): set(of) for of, tensors in found}

    qkv = {sites[name] for name in "qkv"}
    plain = {
        frozenset(["n"]): qkv, frozenset(["q", "k"]): {sites["s"]}, frozenset(["v"]): {sites["o"]},
        frozenset(["m", "o"]): {sites["m"], sites["z"]}, frozenset(["z"]): {sites["y"]},
    }  # fmt: skip
    assert groups() == plain
    assert groups(q={"range": 0.9}) == {tensors: of for tensors, of in plain.items() if tensors != {"n"}}
    assert groups(s={"observer": "mse"}) == {tensors: of for tensors, of in plain.items() if tensors != {"q", "k"}}
    assert groups(m={"observer": "kl"}) == {tensors: of for tensors, of in plain.items() if "o" not in tensors}


def test_a_product_of_what_is_stated_is_not_chosen(tmp_path):
    nodes = [
        N("MatMul", ["x0", "w1"], ["a"], "fa"), N("MatMul", ["x0", "w2"], ["k"], "fk"),
        N("Transpose", ["k"], ["kt"], perm=[0, 2, 1]), N("MatMul", ["a", "kt"], ["s"], "qk"),
        N("MatMul", ["a", "w3"], ["m"], "fm"), N("Add", ["s", "m"], ["z"], "res"),
        N("MatMul", ["z", "w4"], ["y"], "fz"),
    ]  # fmt: skip
    constants = {f"w{i}": weights(8, 8, seed=i) for i in range(1, 5)}
    images = np.random.default_rng(3).normal(size=(12, 1, 8, 8)).astype(np.float32)
    graph, activations = imported(tmp_path, nodes, constants, images)
    others = {("m", "s"), ("z",)}
    for quantizers, expected in (({}, {("a", "k"), *others}), ({"m": {"observer": "kl"}}, others)):
        values = {"preset": "accurate", "bits": 4, "observer": {"kind": "auto"}, "quantizers": quantizers}
        recipe = build_recipe(values).with_method("ibert")
        assert {tuple(sorted(tensors)) for _, tensors in observers._groups(graph, recipe)} == expected
        found = resolved(graph, activations.model, activations, recipe)
        lower(graph, calibrate(graph, activations, found.recipe), found.recipe)


def test_a_model_that_no_observer_makes_feasible_is_refused(live):
    """Though it is, of one uniform share."""
    graph, model, activations = live
    recipe = build_recipe({
        "preset": "accurate", "slope_correction": False, "observer": {"kind": "auto"},
        "datapaths": {"blocks.5.mlp.act": {"preset": "hawq", "shift_most": 21}},
        "quantizers": {"blocks.5.mlp.fc2": {"observer": "minmax"}},
    }).with_method("ibert")  # fmt: skip
    with pytest.raises(IntvitError, match=r"blocks\.5\.mlp\.act: requantize: ratio of scales must be"):
        resolved(graph, model, activations, recipe, limit=4)
