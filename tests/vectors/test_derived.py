"""Numbers that hardware takes in place of a node's own constants give the same outputs."""

from random import Random

import corners
import numpy as np
import pytest

from intvit.engine import Engine, quantize_images
from intvit.errors import IntvitError
from intvit.graph.ir import Node
from intvit.graph.operators.requantize import by_spec
from intvit.graph.parameters import stated_params
from intvit.kernels import registry
from intvit.lowering.recipe import build_recipe
from intvit.spec.arith import rhe_shift
from intvit.spec.numerics import HAWQ, PRESETS, build_numerics
from intvit.vectors.derived import derived

FQVIT = registry.get("layernorm", "fqvit", 1)


def computed(rows, arrays, found):
    """The paper's last line, from M, N and B: y = rhe(sign * M * X + B, 2**N)."""
    scaled = rows.astype(object) * arrays["factor"]
    total = arrays["sign"] * found["multiplier"].astype(object) * scaled + found["offset"]
    flat = zip(total.reshape(-1), found["shift"].reshape(-1).tolist(), strict=True)
    return np.array([rhe_shift(int(v), n) for v, n in flat], np.int64).reshape(rows.shape)


def node_of(params, name="site"):
    scalars, arrays = stated_params(params)
    return Node("layernorm", name, ("x",), "y", {"method": "fqvit", "version": 1, "params": scalars}, arrays)


@pytest.mark.parametrize("preset", ["published", "accurate"])
def test_every_layernorm_of_a_network(vit, preset):
    graph = vit.lower(build_recipe({"preset": preset}).with_method("fqvit"))
    values = Engine(graph).evaluate(quantize_images(graph, vit.test.read(0, 1)), list(graph.tensors))
    nodes = [node for node in graph.nodes if node.op == "layernorm"]
    assert len(nodes) > 4
    for node in nodes[:3]:
        x, y = (values[name][:, :10] for name in (node.inputs[0], node.output))
        found = derived(node, x)
        assert set(found) == {"multiplier", "shift", "offset"}
        assert {array.dtype for array in found.values()} == {np.dtype(np.int64)}
        assert 0 <= found["multiplier"].min() <= found["multiplier"].max() <= 255
        assert 0 <= found["shift"].min() <= found["shift"].max() <= 31
        np.testing.assert_array_equal(computed(x, node.arrays, found), y)


def test_any_constants_and_rows():
    rng = Random(4)
    for _ in range(60):
        channels = rng.choice((1, 2, 5))
        params = corners.fqvit_layernorm(channels, rng)
        rows = np.array(corners.rows(rng, corners.largest(FQVIT, params, channels), channels))
        expected = [FQVIT.spec(row, params) for row in rows.tolist()]
        found = computed(rows, node_of(params).arrays, derived(node_of(params), rows))
        assert found.tolist() == expected


def test_equal_values_leave_the_offset():
    params, _ = FQVIT.constants(0.01, {"gamma": [1.0, 2.0], "beta": [0.5, -0.3], "out_scale": 0.01}, {})
    found = derived(node_of(params), np.array([[7, 7]]))
    assert {key: value.tolist() for key, value in found.items()} == {
        "multiplier": [[0, 0]], "shift": [[0, 0]], "offset": [[50, -30]],
    }  # fmt: skip


def requantizer(m, e, how=HAWQ, **arrays):
    stated = {"numerics": how.stated} if how.stated else {}
    return Node("requantize", "site", ("x",), "y", {"bits": 8, **stated}, {"m": m, "e": e, **arrays})


@pytest.mark.parametrize("how", [HAWQ, *(build_numerics(v) for v in ({"rounding": "floor"}, "tosa_single"))])
def test_multipliers_of_a_signed_word(how):
    rng = Random(1)
    m = np.array([2**31, 2**30, -(2**31), 2**31, 2**31 - 1])
    e = np.array([39, 40, 35, 62, 33])
    node = requantizer(m, e, how)
    found = derived(node)
    assert found["m"].max() < 2**31
    x = np.array([[corners.drawn(rng, -(2**31), 2**31 - 1) for _ in m] for _ in range(300)])
    np.testing.assert_array_equal(
        by_spec(x, found["m"], found["e"], 8, numerics=how), by_spec(x, m, e, 8, numerics=how)
    )


def test_no_other_multiplier_where_it_would_be_another_function():
    m, e = np.array([2**31]), np.array([40])
    for how in (PRESETS["tosa_double"], build_numerics({"product_bits": 40})):
        assert derived(requantizer(m, e, how)) == {}
        x = np.arange(-600, 600)[:, None] if how.double_rounding else np.array([[300], [700]])
        other = by_spec(x, m >> 1, e - 1, 8, numerics=how)
        assert not np.array_equal(other, by_spec(x, m, e, 8, numerics=how))
    both = {"residual": np.array([[1]]), "residual_m": m, "residual_e": e}
    assert derived(requantizer(m, e, build_numerics({"residual": "together"}), **both)) == {}
    assert set(derived(requantizer(m, e, **both))) == {"m", "e", "residual_m", "residual_e"}
    assert derived(requantizer(m - 1, e)) == {}


def test_a_zero_point_is_an_addend():
    zero_point = {"residual": np.array([-7]), "residual_m": np.array([4]), "residual_e": np.array([2])}
    m, e, x = np.array([2**30]), np.array([37]), np.arange(-40000, 40000, 77)[:, None]
    node = requantizer(m, e, **zero_point)
    found = derived(node)
    assert {key: int(value) for key, value in found.items()} == {"addend": -7}
    constants = [zero_point[key] for key in ("residual", "residual_m", "residual_e")]
    expected = by_spec(x, m, e, 8, np.broadcast_to(constants[0], x.shape), *constants[1:])
    np.testing.assert_array_equal(by_spec(x, m, e, 8, addend=np.full(x.shape, found["addend"])), expected)


def test_others_have_none(mixed):
    for node in mixed.nodes:
        if node.op != "requantize":
            assert derived(node) == {}, node.name
    ivit = next(node for node in mixed.nodes if node.op == "layernorm" and node.attrs["method"] == "ivit")
    assert derived(ivit, np.zeros((1, ivit.arrays["bias"].size), int)) == {}


@pytest.mark.parametrize("x", [np.zeros((2, 2)), np.zeros((2, 3), int), np.zeros((0, 2), int), np.int64(3)])
def test_rows_that_do_not_fit(x):
    params, _ = FQVIT.constants(0.01, {"gamma": [1.0, 2.0], "beta": [0.5, -0.3], "out_scale": 0.01}, {})
    with pytest.raises(IntvitError, match=r"site: x must be integers \(\.\.\., 2\), not "):
        derived(node_of(params), x)
