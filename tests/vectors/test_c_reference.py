"""The C99 reference: every operator and method, on a trained network and at the ends of all ranges, bit for bit."""

import re
import shutil
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from random import Random

import corners
import numpy as np
import pytest

from intvit.engine import Engine, quantize_images
from intvit.errors import IntvitError
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Graph, Node, Tensor
from intvit.graph.layout import apply, output_shape
from intvit.graph.parameters import stated_params
from intvit.lowering.recipe import build_recipe
from intvit.spec.accumulators import accumulate
from intvit.spec.matmul import linear, log2_matmul, matmul
from intvit.spec.numerics import PRESETS, Numerics
from intvit.spec.pool import mean
from intvit.spec.requantize import requantize
from intvit.vectors import cref
from intvit.vectors.part import part_of

METHODS = corners.METHODS
(FQVIT,) = (m for m in METHODS if m.id == "layernorm.fqvit.v1")
WIDE = IntType(64)


@dataclass
class Case:
    """One image for each element of `values`: tensor -> (*shape)."""

    name: str
    part: Graph
    values: list
    wanted: tuple = ()
    images: tuple = field(init=False)

    def __post_init__(self):
        self.images = tuple(range(len(self.values)))

    def stimuli(self, image):
        return {name: self.values[image][name] for name in self.part.inputs}

    def expected(self, image):
        return {name: self.values[image][name] for name in self.wanted or self.part.outputs}


@pytest.fixture(scope="session", params=cref.compilers() or [None])
def program(request, tmp_path_factory):
    if request.param is None:
        pytest.skip(f"no C compiler here: none of {', '.join(cref.COMPILERS)}")
    return cref.compiled(tmp_path_factory.mktemp("c"), request.param)


def tensor(name, shape, dtype=WIDE):
    return Tensor(name, shape, dtype, np.asarray(1.0))


def integers(values):
    return np.array(values, np.int64)


def one_node(op, inputs, y, attrs=None, arrays=None, dtype=WIDE, name="site"):
    """A case of one node from arrays."""
    x = {f"x{i}": integers(values) for i, values in enumerate(inputs)}
    node = Node(op, name, tuple(x), "y", attrs or {}, {k: integers(v) for k, v in (arrays or {}).items()})
    tensors = {key: tensor(key, values.shape) for key, values in x.items()} | {"y": tensor("y", np.shape(y), dtype)}
    return Case(name, Graph(tuple(x), ("y",), (node,), tensors), [{**x, "y": integers(y)}])


def named(cases):
    return [replace_name(case, f"case{i}") for i, case in enumerate(cases)]


def replace_name(case, name):
    case.name = name
    return case


def equal(program, cases, folder):
    assert cref.replayed(program, cases, folder) == []


# ------------------------------------------------------------------------------------------- a trained network


@pytest.mark.parametrize("preset", ["published", "accurate"])
@pytest.mark.parametrize("method", ["ibert", "fqvit", "ivit"])
def test_every_site_of_a_network(vit, program, tmp_path, method, preset):
    """Each by itself, from the tensors of a whole run; and the whole network from its input."""
    graph = vit.lower(build_recipe({"preset": preset}).with_method(method))
    check_network(vit, program, tmp_path, graph)


@pytest.mark.parametrize(
    "numerics",
    ["tosa_double", "ita", {"rounding": "floor", "accumulator_bits": 16, "accumulator": "saturate"},
     {"rounding": "toward_zero", "output_overflow": "wrap", "accumulator_bits": 17, "accumulator": "wrap"}],
    ids=["tosa_double", "ita", "saturate", "wrap"],
)  # fmt: skip
def test_a_network_of_other_numerics(vit, program, tmp_path, numerics):
    more = {"softmax_bits": 8} if numerics == "ita" else {}
    check_network(vit, program, tmp_path, vit.lower(build_recipe({"bits": 8, "numerics": numerics, **more})))


def check_network(vit, program, folder, graph):
    values = Engine(graph).evaluate(quantize_images(graph, vit.test.read(0, 1)), list(graph.tensors))
    image = {name: value[0] for name, value in values.items()}
    cases = [Case(node.name, part_of(graph, [node.name]), [image]) for node in graph.nodes]
    whole = Case("whole", graph, [image], tuple(node.output for node in graph.nodes))
    equal(program, [*cases, whole], folder)


# ------------------------------------------------------------------------------------------- methods


def rows_case(method, params, rows, masks=None):
    """Rows by the specification, as one case; those whose results leave 64 bits are left out."""
    kept = []
    for i, row in enumerate(rows):
        y = method.spec(row, params) if masks is None else method.spec(row, params, masks[i])
        if all(-(2**63) <= v < 2**63 for v in y):
            kept.append((i, row, y))
    if not kept:
        return None
    x = tensor("x0", (len(kept), len(rows[0])))
    arrays = None if masks is None else {"mask": integers([masks[i] for i, _, _ in kept])}
    scalars, vectors = stated_params(params)
    attrs = {"method": method.name, "version": method.version, "params": scalars}
    node = Node(method.operator, "site", ("x0",), "y", attrs, {**vectors, **(arrays or {})})
    graph = Graph(("x0",), ("y",), (node,), {"x0": x, "y": tensor("y", x.shape)})
    return Case("rows", graph, [{"x0": integers([r for _, r, _ in kept]), "y": integers([y for _, _, y in kept])}])


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.id)
def test_any_constants_and_rows(program, tmp_path, method):
    rng, cases = Random(3), []
    for _ in range(40):
        channels = rng.choice((1, 2, 3, 7, 31))
        params = corners.constants(method, channels, rng)
        rows = corners.rows(rng, corners.largest(method, params, channels), channels)
        cases.append(rows_case(method, params, rows))
    found = named([case for case in cases if case])
    assert sum(case.part.tensors["y"].shape[0] for case in found) >= 200
    equal(program, found, tmp_path)


@pytest.mark.parametrize("method", [m for m in METHODS if m.operator == "softmax"], ids=lambda m: m.id)
def test_masks(program, tmp_path, method):
    rng, cases = Random(5), []
    for _ in range(12):
        channels = rng.choice((1, 2, 5, 17))
        params = corners.constants(method, channels, rng)
        rows = corners.rows(rng, rng.choice((100, 2**31 - 1)), channels)
        masks = [[rng.random() < rng.choice((0.2, 0.8)) for _ in row] for row in rows]
        masks[0], masks[-1] = [True] * channels, [False] * channels
        cases.append(rows_case(method, params, rows, masks))
    equal(program, named(cases), tmp_path)


def test_a_result_beyond_64_bits_is_refused(program, tmp_path):
    (method,) = (m for m in METHODS if m.id == "gelu.ibert.v1")
    params = method.params(b=(-1,), c=(1 - 2**62,), shift=(1 - 2**62,), n=0)
    assert rows_case(method, params, [[2**31 - 1]]) is None
    case = rows_case(method, params, [[1]])
    case.values[0]["x0"] = integers([[2**31 - 1]])
    with pytest.raises(IntvitError, match="site: results must fit 64 bits, and do not"):
        equal(program, [case], tmp_path)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.id)
def test_constants_just_outside_their_ranges_are_refused(program, tmp_path, method):
    """The ranges of the parameter classes, found by asking them."""
    channels, tried = 3, 0
    params = corners.sample(method, channels)
    if method.operator == "gelu" and method.name == "ibert":
        params = method.params(b=(-5,) * 3, c=(-9,) * 3, shift=(-4,) * 3, n=2)
    case = rows_case(method, params, [[1, 2, 3]])
    equal(program, [case], tmp_path / "inside")
    node = case.part.nodes[0]
    for key, (low, high) in corners.ranges(params).items():
        for value in (low - 1, high + 1):
            if -(2**63) <= value < 2**63:
                attrs, arrays = {**node.attrs, "params": dict(node.attrs["params"])}, dict(node.arrays)
                if key in arrays:
                    arrays[key] = integers([*arrays[key][:-1], value])
                else:
                    attrs["params"][key] = value
                other = replace(case.part, nodes=(replace(node, attrs=attrs, arrays=arrays),))
                with pytest.raises(IntvitError, match=r"case\.txt:\d+: site: constants must lie in the ranges"):
                    equal(program, [Case("outside", other, case.values)], tmp_path / f"{key}{value}")
                tried += 1
    assert tried >= 2 * len(corners.ranges(params)) - 1


def test_a_root_of_zero_leaves_the_bias(program, tmp_path):
    """Deviations that I-BERT's shift drops, none of them negative."""
    cases = []
    for method in METHODS:
        if method.operator in corners.NORMS and method.name == "ibert":
            for shift in (2, 3, 31):
                params = replace(corners.sample(method, 9), shift=shift)
                cases.append(rows_case(method, params, [[3, 0, 0, 0, 0, 0, 0, 0, 0], [3, 2, 1, 0, 0, 0, 0, 0, 0]]))
    equal(program, named(cases), tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("slope", 2**59), ("gain", 2**59), ("bias", 2**60 - 1), ("bias", 1 - 2**60), ("slope", -(2**60)), ("slope", 0),
     ("gain", 0), ("sign", 0), ("slope_exp", 90), ("slope_exp", 10), ("gain_exp", 54), ("gain", 2**60 + 2**11)],
)  # fmt: skip
def test_constants_of_fqvit_layernorm_that_contradict_one_another(program, tmp_path, key, value):
    one = (2**60,) * 2
    params = FQVIT.params((1, 2), (1, -1), one, (50, 50), one, (51, 51), one, (60, 60))
    case = rows_case(FQVIT, params, [[1, 2], [5, 5]])
    equal(program, [case], tmp_path)
    with pytest.raises(IntvitError):
        replace(params, **{key: (getattr(params, key)[0], value)})
    node = case.part.nodes[0]
    arrays = {**node.arrays, key: integers([node.arrays[key][0], value])}
    other = replace(case.part, nodes=(replace(node, arrays=arrays),))
    with pytest.raises(IntvitError, match="site: constants must lie in the ranges"):
        equal(program, [Case("outside", other, case.values)], tmp_path)


def test_constants_of_fqvit_layernorm_that_just_agree(program, tmp_path):
    """A slope apart from C times gain by 2**-50 of it, what doubles round."""
    one = (2**60,) * 2
    for apart in (0, 1, 2**10):
        params = FQVIT.params((1, 2), (1, -1), (2**60 + apart,) * 2, (50, 50), one, (51, 51), one, (60, 60))
        equal(program, [rows_case(FQVIT, params, [[1, 2], [5, 5]])], tmp_path)


@pytest.mark.parametrize(
    ("name", "limit"),
    [("softmax.ivit", 2**31), ("softmax.ibert", 2**31), ("softmax.fqvit", 2**31), ("gelu.ivit", 2**31),
     ("gelu.ibert", 2**31), ("silu.ibert", 2**40), ("layernorm.ivit", 2**40), ("layernorm.fqvit", 2**31),
     ("rmsnorm.ivit", 2**31)],
)  # fmt: skip
def test_inputs_outside_are_refused(program, tmp_path, name, limit):
    (method,) = (m for m in METHODS if m.id == f"{name}.v1")
    params = corners.sample(method, 1)
    for value in (limit, -limit - 1):
        case = rows_case(method, params, [[1]])
        case.values[0]["x0"] = integers([[value]])
        with pytest.raises(IntvitError, match="site: inputs must lie in the ranges that the operator's words"):
            equal(program, [case], tmp_path / str(value))


NARROW = [2**30 - 1, -1, 0, 0]
"""4 * (max - min)**2 is 2**62, and with one less it is below."""


@pytest.mark.parametrize(
    ("name", "row", "inside"),
    [("layernorm.ivit", NARROW, [2**30 - 2, -1, 0, 0]), ("layernorm.ibert", NARROW, [2**30 - 1, 0, 0, 0]),
     ("rmsnorm.ivit", [2**30, 0, 0, 0], [2**30 - 1, 0, 0, 0]), ("rmsnorm.ibert", [-(2**30)] * 4, [1 - 2**30] * 4),
     ("layernorm.fqvit", [2**29, 0, 0, 0], [2**29 - 1, 1 - 2**29, 0, 0])],
)  # fmt: skip
def test_rows_just_too_wide_are_refused(program, tmp_path, name, row, inside):
    """As the kernels refuse them."""
    (method,) = (m for m in METHODS if m.id == f"{name}.v1")
    params = corners.sample(method, 4)
    method.kernel(params)(integers([inside]))
    case = rows_case(method, params, [inside])
    equal(program, [case], tmp_path / "inside")
    case.values[0]["x0"] = integers([row])
    with pytest.raises(IntvitError):
        method.kernel(params)(integers([row]))
    with pytest.raises(IntvitError, match="site: inputs must lie in the ranges"):
        equal(program, [case], tmp_path / "outside")


def test_vectors_of_other_lengths_are_refused(program, tmp_path):
    (gelu,) = (m for m in METHODS if m.id == "gelu.ibert.v1")
    case = rows_case(gelu, gelu.params((-5,) * 3, (-9,) * 3, (-4,) * 3, 2), [[1, 2, 3]])
    norm = rows_case(FQVIT, corners.fqvit_layernorm(3, Random(1)), [[1, 2, 3]])
    requantizer = one_node("requantize", [[[1, 2, 3]]], [[1, 2, 3]], {"bits": 8}, {"m": [2] * 3, "e": [1] * 3})
    for right in (case, norm, requantizer):
        equal(program, [right], tmp_path / "inside")
        node = right.part.nodes[0]
        for key, array in node.arrays.items():
            for length in (1, 2, 4):
                if right is requantizer and length == 1:  # one m for all is right
                    continue
                arrays = {**node.arrays, key: np.resize(array, length)}
                other = replace(right.part, nodes=(replace(node, arrays=arrays),))
                with pytest.raises(IntvitError, match="site: constants must lie in the ranges"):
                    equal(program, [Case("outside", other, right.values)], tmp_path)


# ------------------------------------------------------------------------------------------- requantization, products


def numerics_drawn(rng):
    """Any datapath."""
    while True:
        least, most = sorted((rng.choice((-1100, -30, 0, 1, 62)), rng.choice((0, 1, 31, 62, 1200))))
        values = {
            "multiplier_bits": rng.randint(4, 32), "multiplier_signed": rng.random() < 0.7, "shift_least": least,
            "shift_most": most, "rounding": rng.choice(("half_even", "half_up", "half_away", "floor", "toward_zero")),
            "double_rounding": rng.random() < 0.4, "residual": rng.choice(("each", "together")),
            "product_bits": rng.choice((8, 16, 32, 63, 64, 65, 96, rng.randint(8, 96))),
            "product_overflow": rng.choice(("saturate", "wrap")),
            "rounded_bits": rng.choice((4, 8, 32, 63, 64, rng.randint(4, 64))),
            "rounded_overflow": rng.choice(("saturate", "wrap")),
            "output_overflow": rng.choice(("saturate", "wrap")),
        }  # fmt: skip
        try:
            return Numerics(**values)
        except ValueError:
            continue


def requantized(rng, how, bits, residual, *, signed=True):
    """`residual`: none, input (a second stimulus), constant or addend."""
    channels = rng.choice((1, 3, 8))
    low, high = how.multipliers
    count = rng.choice((1, channels))
    e = [corners.drawn(rng, max(how.shift_least, -70), min(how.shift_most, 130)) for _ in range(count)]
    m = [corners.drawn(rng, low, high) for _ in range(count)]
    ties = [2 ** max(min(k, 62) - 1, 0) * rng.choice((1, 3, -1, -3, 5)) for k in e for _ in range(4)]
    wide = [corners.drawn(rng, -(2**63), 2**63 - 1) for _ in range(60)]
    x = [v for v in (*ties, *wide) if -(2**63) <= v < 2**63]
    x = integers(x[: len(x) // channels * channels]).reshape(-1, channels)
    arrays, inputs, options = {"m": m, "e": e}, [x], {}

    def spread(values):
        return [int(v) for v in np.broadcast_to(integers(values), x.shape).reshape(-1)]

    if residual != "none":
        one = 2 ** rng.randint(0, 31)
        arrays["residual_m"] = [one] if residual == "addend" else [corners.drawn(rng, low, high) for _ in e]
        arrays["residual_e"] = [one.bit_length() - 1] if residual == "addend" else e
        other = integers([corners.drawn(rng, -(2**31), 2**31 - 1) for _ in range(x.size)]).reshape(x.shape)
        if residual == "constant":
            other = other[0] if x.size > channels else other
        if residual == "addend":
            other = other.reshape(-1)[:1]
            options["addend"] = spread(other)
        else:
            options |= {"residual": spread(other)}
            options |= {k: spread(arrays[k]) for k in ("residual_m", "residual_e")}
        if residual == "input":
            inputs.append(other)
        else:
            arrays["residual"] = other
    y = requantize(spread(x), spread(m), spread(e), bits, numerics=how, signed=signed, **options)
    attrs = {"bits": bits, **({"numerics": how.stated} if how.stated else {})}
    return one_node("requantize", inputs, integers(y).reshape(x.shape), attrs, arrays)


@pytest.mark.parametrize("residual", ["none", "input", "constant", "addend"])
def test_requantize_of_every_datapath(program, tmp_path, residual):
    rng = Random(residual)
    hows = [*PRESETS.values(), *(numerics_drawn(rng) for _ in range(60))]
    cases = [requantized(rng, how, rng.choice((2, 4, 6, 8, 16, 32, 33, 64)), residual) for how in hows]
    equal(program, named(cases), tmp_path)


def test_requantize_to_words_without_a_sign(program, tmp_path):
    rng, cases = Random(9), []
    for how in [*PRESETS.values(), *(numerics_drawn(rng) for _ in range(20))]:
        case = requantized(rng, how, rng.choice((2, 8, 31, 62)), "none", signed=False)
        node = case.part.nodes[0]
        arrays = {**node.arrays, "is_unsigned": integers(1)}
        cases.append(replace(case, part=replace(case.part, nodes=(replace(node, arrays=arrays),))))
    equal(program, named([Case(c.name, c.part, c.values) for c in cases]), tmp_path)


def test_the_upper_word_of_a_double_rounding_saturates(program, tmp_path):
    """At 2**63, which only the least word times the least multiplier reaches."""
    how = Numerics(double_rounding=True, rounding="floor")
    y = requantize([-(2**63)], [-(2**31)], [32], 64, numerics=how)
    assert y == [2**62 - 1]
    case = one_node("requantize", [[-(2**63)]], y, {"bits": 64, "numerics": how.stated}, {"m": [-(2**31)], "e": [32]})
    equal(program, [case], tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("multiplier_bits", 3), ("multiplier_bits", 33), ("shift_least", -1101), ("shift_least", 63), ("shift_most", -1),
     ("shift_most", 1201), ("product_bits", 7), ("product_bits", 97), ("rounded_bits", 3), ("rounded_bits", 65),
     ("accumulator_bits", 15), ("accumulator_bits", 65), ("accumulator", "wrap"), ("rounding", "up"),
     ("product_overflow", "raise"), ("residual", "both")],
)  # fmt: skip
def test_numerics_outside_their_ranges_are_refused(program, tmp_path, key, value):
    with pytest.raises(ValueError, match=key):
        Numerics(**{key: value})
    case = one_node("requantize", [[[1]]], [[1]], {"bits": 8, "numerics": {key: value}}, {"m": [2], "e": [1]})
    with pytest.raises(IntvitError, match=r"site: (numerics must lie in their ranges|.* must be a word)"):
        equal(program, [case], tmp_path)


def test_ends_of_numerics_are_taken(program, tmp_path):
    values = {
        "multiplier_bits": 4, "shift_least": 0, "shift_most": 0, "product_bits": 8, "rounded_bits": 4,
    }  # fmt: skip
    others = {"shift_least": 62, "shift_most": 62}, {"multiplier_bits": 31, "multiplier_signed": False}
    for how in (Numerics(**values), *(Numerics(**other) for other in others)):
        e = how.shift_least if how.shift_least > 0 else 0
        m = how.multipliers[1]
        y = requantize([1, -1, 5], [m] * 3, [e] * 3, 8, numerics=how)
        case = one_node("requantize", [[1, -1, 5]], y, {"bits": 8, "numerics": how.stated}, {"m": [m], "e": [e]})
        equal(program, [case], tmp_path)
        for key, value in (("m", m + 1), ("e", how.shift_most + 1)):
            node = replace(case.part.nodes[0], arrays={**case.part.nodes[0].arrays, key: integers([value])})
            other = Case("outside", replace(case.part, nodes=(node,)), case.values)
            with pytest.raises(IntvitError, match="site: constants must lie in the ranges"):
                equal(program, [other], tmp_path)


def matrices(rng, rows, depth, columns, most_a=2**31, most_b=2**31):
    def drawn(n, k, most):
        return [[corners.drawn(rng, -most, most - 1) for _ in range(k)] for _ in range(n)]

    return drawn(rows, depth, most_a), drawn(depth, columns, most_b)


def policy(rng, kind):
    """(attributes, bits) of an accumulator, or of none."""
    if kind == "exact":
        return {}, None
    bits = rng.choice((16, 17, 32, 33, 63, 64))
    return {"numerics": {"accumulator_bits": bits, "accumulator": kind}}, bits


def summed(rng, kind, columns, biases):
    """`columns`: lists of products."""
    attrs, bits = policy(rng, kind)
    pairs = list(zip(columns, biases, strict=True))
    return attrs, [sum(c) + b if bits is None else accumulate(c, b, bits, kind) for c, b in pairs]


@pytest.mark.parametrize("kind", ["exact", "saturate", "saturate_end", "wrap"])
def test_products(program, tmp_path, kind):
    rng, cases = Random(kind), []
    for i in range(30):
        rows, depth, columns = (rng.choice((1, 2, 5, 13)) for _ in range(3))
        most = rng.choice((2**7, 2**15)) if i % 2 else 2 ** rng.choice((29, 30))
        a, b = matrices(rng, rows, depth, columns, most, most if kind != "exact" or depth < 8 else 2**20)
        for op in ("matmul", "linear", "log2_matmul"):
            left, right, bias = a, b, [0] * columns
            if op == "linear":
                right = matrices(rng, 1, depth, columns, 1, 128)[1]
                bias = [corners.drawn(rng, -(2**31), 2**31 - 1) for _ in range(columns)]
            if op == "log2_matmul":
                left = [[rng.randint(-1, 15) for _ in range(depth)] for _ in range(rows)]
                weights = [[0 if q < 0 else 2 ** (15 - q) for q in row] for row in left]
            else:
                weights = left
            turned = list(zip(*right, strict=True))
            seed = rng.random()
            products = [[[x * w for x, w in zip(row, c, strict=True)] for c in turned] for row in weights]
            found = [summed(Random(seed), kind, of_row, bias) for of_row in products]
            y = [sums for _, sums in found]
            if kind == "exact":
                by_spec = {"matmul": matmul, "log2_matmul": log2_matmul}.get(op)
                expected = by_spec(left, right) if by_spec else linear(left, turned, bias)
                assert [list(row) for row in expected] == y
            arrays = {"weight": turned, "bias": bias} if op == "linear" else {}
            cases.append(one_node(op, [left] if op == "linear" else [left, right], y, found[0][0], arrays))
    equal(program, named(cases), tmp_path)


def test_sums_that_do_not_fit_are_refused(program, tmp_path):
    attrs = {"numerics": {"accumulator_bits": 16, "accumulator": "raise"}}
    fits = one_node("matmul", [[[127, 127]], [[127], [127]]], [[32258]], attrs)
    equal(program, [fits], tmp_path / "fits")
    case = one_node("matmul", [[[127, 127, 127]], [[127], [127], [127]]], [[0]], attrs)
    with pytest.raises(IntvitError, match="accumulator must hold every sum, and does not"):
        equal(program, [case], tmp_path / "raise")
    ends = [[[-(2**40), 0]], [[2**23], [1]]], [[[-(2**40), -1]], [[-(2**23)], [1]]]
    for inputs, y in zip(ends, (-(2**63), 2**63 - 1), strict=True):
        equal(program, [one_node("matmul", inputs, [[y]])], tmp_path / "fits")
    case = one_node("matmul", [[[-(2**40), 0]], [[-(2**23)], [0]]], [[0]])
    with pytest.raises(IntvitError, match="results must fit 64 bits"):
        equal(program, [case], tmp_path / "wide")


def test_factors_outside_are_refused(program, tmp_path):
    far, near = 2**40, 2**40 - 1
    weight = {"weight": [[1]]}
    cases = [
        lambda v: one_node("linear", [[[v]]], [[v]], {}, weight),
        lambda v: one_node("matmul", [[[v]], [[1]]], [[v]]),
        lambda v: one_node("matmul", [[[1]], [[v]]], [[v]]),
        lambda v: one_node("log2_matmul", [[[0]], [[v]]], [[v << 15]]),
    ]
    for i, make in enumerate(cases):
        for inside, outside in ((near, far), (-far, -far - 1)):
            equal(program, [make(inside)], tmp_path / f"{i}")
            with pytest.raises(IntvitError, match="site: inputs must lie in the ranges"):
                equal(program, [make(outside)], tmp_path / f"{i}")
    with pytest.raises(IntvitError, match="site: inputs must lie in the ranges"):
        equal(program, [one_node("log2_matmul", [[[16]], [[1]]], [[0]])], tmp_path / "code")
    for value in (128, -129):
        with pytest.raises(IntvitError, match="site: constants must lie in the ranges"):
            equal(program, [one_node("linear", [[[1]]], [[value]], {}, {"weight": [[value]]})], tmp_path / "weight")


def test_means(program, tmp_path):
    rng, cases = Random(1), []
    for shape in ((1,), (7,), (2, 3), (3, 4, 5), (2, 3, 1, 4)):
        for axis in range(len(shape)):
            for keepdims in (False, True):
                count = int(np.prod(shape))
                low, high = rng.choice(((-(2**63), 2**63 - 1), (-3, 3)))
                x = integers([corners.drawn(rng, low, high) for _ in range(count)]).reshape(shape)
                moved = np.moveaxis(x, axis, -1)
                y = integers([mean(row) for row in moved.reshape(-1, shape[axis]).tolist()]).reshape(moved.shape[:-1])
                y = np.expand_dims(y, axis) if keepdims else y
                cases.append(one_node("mean", [x], y, {"axis": axis, "keepdims": keepdims}))
    equal(program, named(cases), tmp_path)


def test_layout(program, tmp_path):
    rng, x = np.random.default_rng(2), np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) - 7
    other, part = rng.integers(-99, 99, (2, 1, 4, 5)), rng.integers(-99, 99, (2, 2, 4, 5))
    nodes = [
        ("reshape", {"shape": [6, 20]}, [x]), ("reshape", {"shape": [120]}, [x]),
        ("transpose", {"perm": [2, 0, 3, 1]}, [x]), ("transpose", {"perm": [0, 1, 2, 3]}, [x]),
        *(("take", {"axis": axis, "index": index}, [x]) for axis, index in ((0, 1), (2, 3), (3, 0))),
        *(("slice", {"axis": axis, "start": a, "stop": b, "step": s}, [x])
          for axis, a, b, s in ((2, 1, 4, 2), (3, 4, 0, -1), (0, 0, 2, 1), (1, -2, 3, 1), (3, 0, 99, 3))),
        ("concat", {"axis": 1, "order": [1, "z", 0, "a"]}, [x, other]), ("concat", {"axis": 1, "order": [0]}, [x]),
    ]  # fmt: skip
    cases = []
    for op, attrs, inputs in nodes:
        arrays = {k: v for k, v in {"z": other, "a": part}.items() if k in attrs.get("order", [])}
        node = Node(op, "site", ("x",) * len(inputs), "y", attrs, arrays)
        y = apply(node, [each[None] for each in inputs])[0]
        assert y.shape == output_shape(node, [each.shape for each in inputs])
        cases.append(one_node(op, inputs, y, attrs, arrays))
    equal(program, named(cases), tmp_path)


def test_several_nodes_and_images(program, tmp_path, vit):
    """Attention as one part, on three images."""
    graph = vit.lower(build_recipe({}).with_method("fqvit"))
    part = part_of(graph, [name for name in graph.by_name if name.startswith("blocks.0.attn.")])
    assert {"log2_matmul", "softmax", "matmul", "linear"} <= {node.op for node in part.nodes}
    values = Engine(graph).evaluate(quantize_images(graph, vit.test.read(0, 3)), list(part.tensors))
    images = [{name: value[i] for name, value in values.items()} for i in range(3)]
    equal(program, [Case("attention", part, images)], tmp_path)
    images[2] = {**images[2], part.outputs[0]: images[2][part.outputs[0]].copy()}
    images[2][part.outputs[0]].reshape(-1)[5] += 1
    (line,) = cref.replayed(program, [Case("attention", part, images)], tmp_path)
    assert ": image 2: element 5 [" in line


# ------------------------------------------------------------------------------------------- seen, and refused


@pytest.fixture
def small():
    return one_node("mean", [[[1, 2, 4], [-5, 0, 0]]], [2, -2], {"axis": 1, "keepdims": False}, dtype=IntType(8))


def test_one_changed_bit_is_named(program, tmp_path, small):
    equal(program, [small], tmp_path)
    small.values[0]["y"] = integers([2, -1])
    (line,) = cref.replayed(program, [small], tmp_path)
    path = tmp_path / "site" / "case.txt"
    assert line == f"{path}: site: image 0: element 1 [1]: expected -1 (ff), got -2 (fe); 1 of 2 differ"


def test_several_cases_are_told_apart(program, tmp_path, small):
    other = one_node("mean", [[3, 4]], 4, {"axis": 0, "keepdims": False}, name="other")
    wrong = one_node("mean", [[3, 4]], 3, {"axis": 0, "keepdims": False}, name="wrong")
    assert [line.split(": ")[1] for line in cref.replayed(program, [small, wrong, other], tmp_path)] == ["wrong"]


def test_odd_names(program, tmp_path):
    for name in ("../up", "a b", "%", "x/y", "é\n", "-o", "a:b"):
        case = one_node("mean", [[3, 4]], 4, {"axis": 0, "keepdims": False}, name=name)
        equal(program, [case], tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "%2e.%2fup", "a%20b", "%25", "x%2fy", "%c3%a9%0a", "-o", "a%3ab"
    }  # fmt: skip


DAMAGE = {
    "case.txt": [
        (b"intvit c case 1", b"intvit c case 2", "must begin with"),
        (b"tensor 0", b"tensor 1", "numbered from 0"),
        (b"tensor 0 s64 2 2 3", b"tensor 0 s64 2 2", "sizes of 2 axes"),
        (b"tensor 0 s64 2 2 3", b"tensor 0 s64 2 2 0", "1 to 2"),
        (b"tensor 0 s64 2 2 3", b"tensor 0 s64 2 2147483648 2147483648", "1 to 2"),
        (b"tensor 0 s64 2 2 3", b"tensor 0 s64 99 2 3", "0..16"),
        (b"tensor 0 s64 2 2 3", b"tensor 0 s64 2 2 4", "must have 8 words, not 6"),
        (b"tensor 0 s64 2 2 3", b"tensor 0 s64 2 3 2", "elements that are left"),
        (b"tensor 0 s64", b"tensor 0 f64", "type like"),
        (b"tensor 0 s64", b"tensor 0 s65", "0..64"),
        (b"tensor 0 s64", b"tensor 0 u64", "s1..s64 or u1..u63"),
        (b"tensor 0 s64", b"tensor 0 s2", "word must fit s2"),
        (b"node mean -", b"node mean ivit", "operator of this reference"),
        (b"node mean -", b"node max -", "operator of this reference"),
        (b"reads 0", b"reads 0 0", "read other inputs than 2"),
        (b"reads 0", b"reads 1", "known before it is read"),
        (b"reads 0", b"reads 2", "0..1"),
        (b"reads 0", b"reads -1", "0..1"),
        (b"writes 1", b"writes 0", "written once"),
        (b"writes 1\n", b"", "node must read and write"),
        (b"number axis 1", b"number axis 2", "axis must be one"),
        (b"number axis 1", b"number axis 99999999999999999999", "integer of 64 bits"),
        (b"number axis 1", b"number axis one", "integer of 64 bits"),
        (b"number axis 1", b"number axis 1 1", "number NAME VALUE"),
        (b"number axis 1", b"numbers axis 1 1", "one number"),
        (b"number axis 1", b"word axis one", "must be integers"),
        (b"number axis 1", b"number axis 1\nnumber axis 1", "given once"),
        (b"number axis 1", b"number axis 1\nnumber other 1", "other must be a parameter of mean"),
        (b"number axis 1\n", b"", "must have axis"),
        (b"end\nimage", b"image", "must be reads, writes"),
        (b"stimulus 0 i0.t0.hex\n", b"", "known before it is read"),
        (b"expected 1 i0.t1.hex\n", b"", "expect a tensor at least"),
        (b"expected 1 i0.t1.hex", b"expected 0 i0.t0.hex", "written by a node"),
        (b"i0.t0.hex", b"../site/i0.t0.hex", "stay in the folder"),
        (b"i0.t0.hex", b"/etc/hostname", "stay in the folder"),
        (b"i0.t0.hex", b"absent.hex", "file that can be read"),
        (b"i0.t0.hex", b"i0.t0.hex\0", "printable ASCII"),
        (b"run\n", b"", "stimulus, expected or run, not end"),
        (b"run\nend\n", b"", "at least and run"),
        (b"run\nend\n", b"run\n", "must end with"),
        (b"run\nend\n", b"run\nend\nend\n", "must end with"),
        (b"image 0\nstimulus 0 i0.t0.hex\nexpected 1 i0.t1.hex\nrun\n", b"", "an image at least"),
    ],
    "i0.t0.hex": [
        (b"\n0000000000000001\n", b"\n", "must have 6 words, not 5"),
        (b"\n0000000000000001\n", b"\n0000000000000001\n" * 2, "one too many"),
        (b"\n0000000000000001\n", b"\n000000000000000x\n", "must be hex digits, not character 120"),
        (b"\n0000000000000001\n", b"\n10000000000000001\n", "word must fit 64 bits"),
        (b"\n0000000000000001\n", b"\n@6 0000000000000001\n", "address must be below 6"),
        (b"\n0000000000000001\n", b"\n1\n", "word must have 16 digits, not 1"),
        (b"\n0000000000000001\n", b"\n@1\n0000000000000001\n@0\n0000000000000001\n", "one too many"),
        (b"\n0000000000000001\n", b"\n/* never ends\n", "comment must end"),
        (b"\n0000000000000001\n", b"\n/ 1\n", "comment after /"),
        (b"\n0000000000000001\n", b"\n-1\n", "must be hex digits"),
        (b"\n0000000000000001\n", b"\n@\n", "must be hex digits"),
        (b"\n0000000000000001\n", b"\n\0\n", "must be hex digits"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "words"), [(f, *d) for f, all_ in DAMAGE.items() for d in all_])
def test_damaged_files_are_refused_in_one_line(program, tmp_path, small, file, old, new, words):
    path = cref.write(small, tmp_path)
    text = (path.parent / file).read_bytes()
    assert old in text
    (path.parent / file).write_bytes(text.replace(old, new, 1))
    with pytest.raises(IntvitError) as caught:
        cref.differences(program, [path])
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_other_forms_of_memories_are_read(program, tmp_path, small):
    """Comments, addresses, underscores, several words a line, upper case, words extended by their sign."""
    path = cref.write(small, tmp_path)
    zero, one, two = (f"{v:016x}" for v in range(3))
    text = f"/* all\n of it */ @0003 ffff_ffff_ffff_fffb {zero}\n{zero} // zeros\n@0 {one} {two} 0000_0000_0000_0004"
    (path.parent / "i0.t0.hex").write_text(text)
    (path.parent / "i0.t1.hex").write_text("00000002\nFFFFFFFE\n")
    assert cref.differences(program, [path]) == []
    (path.parent / "i0.t1.hex").write_text("00000002\n7FFFFFFE\n")
    with pytest.raises(IntvitError, match="word must fit s8"):
        cref.differences(program, [path])


@pytest.mark.parametrize("name", ["case.txt", "i0.t0.hex", "i0.t1.hex"])
def test_every_truncation_is_refused(program, tmp_path, small, name):
    path = cref.write(small, tmp_path)
    whole = (path.parent / name).read_bytes()
    for cut in range(len(whole) - 1):  # without the last line's end it is whole
        (path.parent / name).write_bytes(whole[:cut])
        with pytest.raises(IntvitError):
            cref.differences(program, [path])
    (path.parent / name).write_bytes(whole)
    assert cref.differences(program, [path]) == []


def test_what_cannot_be_written(small, tmp_path):
    small.values[0]["y"] = integers([2, 400])
    with pytest.raises(IntvitError, match=r"site: expected y must fit s8, not 2\.\.400"):
        cref.write(small, tmp_path)
    small.values[0]["y"] = integers([2])
    with pytest.raises(IntvitError, match=r"site: expected y must be integers \(2,\), not int64 \(1,\)"):
        cref.write(small, tmp_path)
    small.values[0]["y"] = np.zeros(2)
    with pytest.raises(IntvitError, match="must be integers"):
        cref.write(small, tmp_path)
    small.images = ()
    with pytest.raises(IntvitError, match="must have an image"):
        cref.write(small, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(IntvitError, match="cannot be written"):
        cref.write(one_node("mean", [[1]], 1, {"axis": 0, "keepdims": False}), tmp_path / "file")


def test_programs_that_are_none(tmp_path, small):
    path = cref.write(small, tmp_path)
    with pytest.raises(IntvitError, match="must be a program that runs"):
        cref.differences(tmp_path / "absent", [path])
    with pytest.raises(IntvitError, match="must hold the C sources"):
        cref.compiled(tmp_path, sources=tmp_path)
    with pytest.raises(IntvitError, match="must print a line for each case"):
        cref.differences("/bin/true" if Path("/bin/true").exists() else shutil.which("true"), [path])


def test_a_compiler_that_refuses(program, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "bad.c").write_text("int main(void) { return 1.0f + x; }\n")
    with pytest.raises(IntvitError, match="must compile"):
        cref.compiled(tmp_path, sources=tmp_path / "src")


def test_undefined_behaviour_ends_the_program(program, tmp_path, small):
    """The sanitizer is there: a shift by too much in an operator is no difference and no success."""
    shutil.copytree(cref.SOURCES, tmp_path / "c")
    source = tmp_path / "c" / "mean.c"
    text = source.read_text()
    assert "*y = " in text
    source.write_text(text.replace("*y = ", "*y = (x[0] << (count + 70)) + ", 1))
    broken = cref.compiled(tmp_path / "out", sources=tmp_path / "c")
    with pytest.raises(IntvitError, match="runtime error: shift exponent"):
        cref.replayed(broken, [small], tmp_path)


# ------------------------------------------------------------------------------------------- the sources

SOURCES = {path.name: path.read_text() for path in sorted(cref.SOURCES.glob("*.[ch]"))}


def test_integers_only_and_no_extension():
    assert len(SOURCES) > 10
    for name, text in SOURCES.items():
        code = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        found = re.findall(r"\b(?:float|double|__int128|_BitInt|asm|goto)\b|\bmath\.h\b|#\s*pragma|__builtin|//", code)
        assert found == (["//"] if name == "replay.c" and "//" in code else []), name
        assert text.isascii(), name
        assert [line for line in text.splitlines() if len(line) > 120 or line != line.rstrip()] == [], name


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.id)
def test_structures_have_the_names_of_the_parameters(method):
    names = {field.name for field in fields(method.params)}
    own = "gelu" if method.params.__name__ == "IvitGelu" else method.operator
    own = "softmax" if method.params.__name__ == "IbertSoftmax" else own
    found = re.search(rf"struct intvit_{own}_{method.name} \{{(.*?)\}}", SOURCES["intvit.h"], re.DOTALL)
    if not names:
        assert found is None
        return
    assert set(re.findall(r"(\w+)[,;]", found[1])) == names
    assert f"int intvit_{method.operator}_{method.name}(" in SOURCES["intvit.h"]


def test_every_key_of_numerics_is_there():
    found = re.search(r"struct intvit_numerics \{(.*?)\};", SOURCES["intvit.h"], re.DOTALL)[1]
    assert set(re.findall(r"(\w+)[,;]", re.sub(r"/\*.*?\*/", "", found))) == set(Numerics.model_fields)
