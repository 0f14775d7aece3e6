"""Equalization: what the channels of a norm lose the weights behind it gain, and nothing else changes."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intvit.engine import Engine, quantize_images
from intvit.errors import IntvitError
from intvit.graph.ir import FloatTensor, Graph, Node
from intvit.kernels.quantize import quantize_weight
from intvit.lowering import widths
from intvit.lowering.calibrate import Calibration, calibrate
from intvit.lowering.context import lower
from intvit.lowering.equalize import MOST, channel_factors, equalized
from intvit.lowering.recipe import build_recipe

RECIPE = build_recipe({"quantizers": {"layernorm": {"equalize": 0.7}, "linear": {"zero_point": True}}})
SITES = [f"blocks.{i}.norm{k}" for i in range(6) for k in (1, 2)]


@pytest.fixture(scope="module")
def calibration(vit):
    from intvit.floats.recording import Recording

    with Recording(vit.recording_path) as recording:
        return calibrate(vit.graph, recording, RECIPE)


@pytest.fixture(scope="module")
def graph(vit, calibration):
    return lower(vit.graph, calibration, RECIPE)


def behind(graph, site):
    (after,) = graph.consumers[graph.node(site).output]
    return graph.tensors[after.output]


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_strength_decides_which_side_is_even(n, seed):
    rng = np.random.default_rng(seed)
    magnitudes, weights = np.exp(rng.normal(size=n)), [rng.normal(size=(3, n)) + 3, rng.normal(size=(5, n))]
    largest = np.max([np.abs(w).max(axis=0) for w in weights], axis=0)
    even, columns, half = (channel_factors(magnitudes, weights, s) for s in (1.0, 0.0, 0.5))
    assert np.ptp(np.log(magnitudes / even)) < 1e-9
    assert np.ptp(np.log(largest * columns)) < 1e-9
    assert np.ptp(np.log(magnitudes / half) - np.log(largest * half)) < 1e-9
    for factors in (even, columns, half):
        assert np.log(factors).mean() == pytest.approx(0, abs=1e-9)


def test_a_channel_that_is_never_used_keeps_its_scale():
    factors = channel_factors(np.array([0.0, 1.0, 4.0, 2.0]), [np.array([[1.0, 1.0, 1.0, 0.0]])], 1.0)
    assert factors == pytest.approx([1, 0.5, 2, 1])
    assert channel_factors(np.zeros(3), [np.ones((2, 3))], 0.5) == pytest.approx([1, 1, 1])
    wild = channel_factors(np.array([1e-30, 1.0, 1e30]), [np.ones((1, 3))], 1.0)
    assert wild == pytest.approx([1 / MOST, 1, MOST])


def test_every_norm_before_linear_operators_has_a_scale_per_channel(vit, graph, calibration):
    assert set(calibration.factors) == set(equalized(vit.graph, RECIPE)) > set(SITES)
    for site in SITES:
        tensor = behind(graph, site)
        assert tensor.scale.shape == tensor.shape[-1:]
        assert np.array_equal(tensor.scale.astype(np.float32), tensor.scale)
    assert sum(behind(graph, site).zero_point != 0 for site in SITES) > 8
    plain = vit.lower(build_recipe({}))
    assert all(behind(plain, site).scale.shape == () for site in SITES)


def test_weights_and_scales_still_stand_for_the_float_weights(vit, graph):
    """The scale of a sum is that of its weights and of its input; divided out, the weights are there, rounded."""
    for site in ("blocks.0.attn.qkv", "blocks.3.mlp.fc1"):
        node, real = graph.node(site), vit.graph.node(site).arrays["weight"]
        x, y = graph.tensors[node.inputs[0]], graph.tensors[node.output]
        step = y.scale[:, None] / x.scale[None, :]
        assert np.all(np.abs(node.arrays["weight"] * step - real) <= 0.5001 * step)


def test_the_whole_range_of_every_channel_is_used(vit, graph):
    """With strength 1 no channel is left with a few codes; without equalization there are such."""
    from intvit.floats.recording import Recording

    images = quantize_images(graph, vit.recorded.read(0, 16))
    least = []
    for strength in (1.0, 0.0):
        recipe = build_recipe({"quantizers": {"layernorm": {"equalize": strength}}})
        with Recording(vit.recording_path) as recording:
            found = lower(vit.graph, calibrate(vit.graph, recording, recipe), recipe)
        name = behind(found, "blocks.2.norm2").name
        codes = Engine(found).evaluate(images, [name])[name]
        least.append(np.abs(codes).max(axis=(0, 1)).min())
    assert least[0] > 90
    assert least[1] < 64


@pytest.mark.parametrize("method", ["ivit", "ibert", "fqvit"])
def test_both_backends_are_equal(vit, calibration, method):
    integer = lower(vit.graph, calibration, RECIPE.with_method(method))
    images = quantize_images(integer, vit.test.read(0, 1))
    name = behind(integer, "blocks.0.norm1").name
    kernel, spec = (Engine(integer, backend).evaluate(images, [name])[name] for backend in ("kernel", "spec"))
    assert np.array_equal(kernel, spec)


def test_only_norms_are_equalized(vit):
    with pytest.raises(IntvitError, match="linear: equalize must be of norms, not of linear"):
        vit.lower(build_recipe({"quantizers": {"linear": {"equalize": 0.5}}}))
    with pytest.raises(IntvitError, match=r"equalize: must be less than or equal to 1, not 1\.5"):
        build_recipe({"quantizers": {"layernorm": {"equalize": 1.5}}})


def norm_and_reader(*after):
    """A norm (4, 6) and what reads it."""
    gamma = {"gamma": np.ones(6), "beta": np.zeros(6)}
    nodes = (Node("layernorm", "norm", ("x",), "norm", {"eps": 1e-5}, gamma), *after)
    shapes = {"x": (4, 6), "norm": (4, 6), "turned": (6, 4), "y": (4, 2), "z": (4, 6)}
    named = {"x", *(node.output for node in nodes)}
    tensors = {name: FloatTensor(name, shapes[name]) for name in named}
    return Graph(("x",), (nodes[-1].output,), nodes, tensors)


def test_only_where_every_reader_is_linear_and_the_channels_arrive():
    weight = {"weight": np.ones((2, 6))}
    linear = Node("linear", "y", ("norm",), "y", {}, weight)
    assert set(equalized(norm_and_reader(linear), RECIPE)) == {"norm"}
    other = Node("add", "z", ("norm", "x"), "z")
    assert not equalized(norm_and_reader(linear, other), RECIPE)
    turn = Node("transpose", "turned", ("norm",), "turned", {"perm": [1, 0]})
    turned = Node("linear", "y", ("turned",), "y", {}, {"weight": np.ones((2, 4))})
    assert not equalized(norm_and_reader(turn, turned), RECIPE)


def test_widths_of_sixty_sums_of_a_tensor_with_itself():
    """Each reader is looked at once: their number doubled with every sum."""
    names = [f"s{i}" for i in range(61)]
    nodes = tuple(Node("add", after, (before, before), after) for before, after in pairwise(names))
    last = Node("softmax", "y", (names[-1],), "y")
    tensors = {name: FloatTensor(name, (2, 3)) for name in (*names, "y")}
    graph = Graph(("s0",), ("y",), (*nodes, last), tensors)
    found = widths.quantizer_bits(graph, build_recipe({"quantizers": {"softmax": {"input_bits": 12}}}))
    assert {found[name] for name in names[1:]} == {12}
    assert found["s0"] == 8


def one_linear(weight, bias):
    """(graph, calibration) of gelu, linear."""
    arrays = {"weight": weight, "bias": bias}
    nodes = (Node("gelu", "norm", ("x",), "norm"), Node("linear", "y", ("norm",), "y", {}, arrays))
    shapes = {"x": (4, weight.shape[1]), "norm": (4, weight.shape[1]), "y": (4, len(weight))}
    graph = Graph(("x",), ("y",), nodes, {name: FloatTensor(name, shape) for name, shape in shapes.items()})
    return graph, Calibration({"x": (-4.0, 4.0), "norm": (-0.1, 400.0), "y": (-1.0, 1.0)})


def test_a_bias_that_the_zero_point_makes_too_large_is_refused():
    """-z * sum of weights is added to a bias that may be large."""
    graph, calibration = one_linear(np.full((2, 140_000), 1.0), np.zeros(2))
    recipe = build_recipe({"quantizers": {"linear": {"zero_point": True}}})
    with pytest.raises(IntvitError, match="y: bias with the zero point -128 must fit 32 bits, and does not"):
        lower(graph, calibration, recipe)
    assert lower(graph, calibration, build_recipe({}))


@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("small", "bias"), [(0.0, 40.0), (1e-9, -3e7), (1.0, 3e7), (1e-3, 1e5)])
def test_a_bias_is_never_saturated(zero_point, bits, small, bias):
    """Where the weights of a channel are too small for it, or none, as in a pruned network, their scale is larger."""
    weight = np.array([[1.0, -2.0, 3.0], [small, 0.0, small]])
    graph, calibration = one_linear(weight, np.array([0.5, bias]))
    found = lower(
        graph, calibration, build_recipe({"bits": bits, "quantizers": {"linear": {"zero_point": zero_point}}})
    )
    node, scale = found.node("y"), found.tensors["y"].scale
    z = found.tensors[node.inputs[0]].zero_point
    assert (z != 0) == zero_point
    real = (node.arrays["bias"] + z * node.arrays["weight"].astype(np.int64).sum(axis=1)) * scale
    assert real == pytest.approx([0.5, bias], rel=1e-6, abs=scale[0])
    x = found.tensors[node.inputs[0]].scale
    usual = quantize_weight(weight, bits)[1] * x
    assert scale[0] == usual[0]
    assert (scale[1] == usual[1]) == (abs(bias) <= 2**30 * usual[1])
