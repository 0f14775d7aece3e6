"""Models of a few nodes put together at random, and the ones in which that found a fault."""

import re

import numpy as np
import pytest
from small_models import N, imported, weights

from intvit.analysis import observers
from intvit.analysis.emulation import Emulation, flipped
from intvit.analysis.observers import resolved
from intvit.engine import Engine
from intvit.errors import Infeasible, IntvitError
from intvit.graph.check import check
from intvit.lowering.calibrate import calibrate
from intvit.lowering.context import lower
from intvit.lowering.observers import clipped
from intvit.lowering.recipe import build_recipe

IMAGES = np.random.default_rng(0).normal(size=(6, 1, 8, 8)).astype(np.float32)
METHODS = ("ivit", "ibert", "fqvit")
CONSTANTS = {"w": weights(8, 8), "b": weights(8, 3)[:, 0]}


def sqnr(graph, model, images):
    """dB of the outputs of an integer graph."""
    name = graph.outputs[0]
    error = Engine(graph).run(images)[name] * graph.tensors[name].scale
    (real,) = model.run(images).values()
    return 10 * np.log10(np.sum(real**2) / np.sum((error - real) ** 2))


def lowered(tmp_path, nodes, method="ivit", constants=CONSTANTS, **values):
    """(activations, integer graph) of nodes from x0 (8, 8) to y."""
    graph, activations = imported(tmp_path, nodes, constants, IMAGES)
    recipe = build_recipe({"preset": "accurate", **values}).with_method(method)
    return activations, lower(graph, calibrate(graph, activations, recipe), recipe)


SOFTMAX = N("Softmax", ["x0"], ["s"], axis=-1)
TURNED = N("Transpose", ["s"], ["t"], perm=[0, 2, 1])
LAST = N("MatMul", ["m", "w"], ["y"])
READS = {
    "right": ([SOFTMAX, N("MatMul", ["x0", "s"], ["m"])], "m"),
    "both": ([SOFTMAX, N("MatMul", ["s", "s"], ["m"])], "m"),
    "turned, right": ([SOFTMAX, TURNED, N("MatMul", ["x0", "t"], ["m"])], "m"),
    "turned, both": ([SOFTMAX, TURNED, N("MatMul", ["s", "t"], ["m"])], "m"),
    "sum": ([SOFTMAX, N("Add", ["s", "x0"], ["m"])], "s.quant"),
    "constant part": ([SOFTMAX, N("Concat", ["s", "part"], ["t"], axis=1), N("MatMul", ["t", "x0"], ["m"])], "t"),
    "part": ([SOFTMAX, N("Concat", ["s", "x0"], ["t"], axis=1), N("MatMul", ["t", "x0"], ["m"])], "t.in0"),
}


@pytest.mark.parametrize("case", READS)
def test_log2_codes_are_read_as_such_or_refused(case, tmp_path):
    """Integers they are not: the site whose method makes them is named, so that another one can stand in."""
    nodes, reader = READS[case]
    if case == "constant part":
        nodes = [N("Expand", ["one", "shape"], ["part"]), *nodes]
    constants = {**CONSTANTS, "one": weights(1, 1, 8), "shape": np.array([1, 1, 8])}
    rule = f"^s: log2 codes must be the left operand of a matrix product, and {re.escape(reader)} reads them$"
    with pytest.raises(Infeasible, match=rule):
        lowered(tmp_path, [*nodes, LAST], "fqvit", constants)
    for method in ("ivit", "ibert"):
        activations, integer = lowered(tmp_path, [*nodes, LAST], method, constants)
        check(integer)
        assert sqnr(integer, activations.model, IMAGES) > 20


@pytest.mark.parametrize("first", ["s", "t", "f"])
def test_log2_codes_feed_a_product_from_the_left(first, tmp_path):
    nodes = [SOFTMAX, TURNED, N("Mul", ["t", "half"], ["f"]), N("MatMul", [first, "x0"], ["m"]), LAST]
    activations, integer = lowered(tmp_path, nodes, "fqvit", {**CONSTANTS, "half": np.float32(0.5)})
    check(integer)
    assert sqnr(integer, activations.model, IMAGES) > 10


GELU = N("Gelu", ["x0"], ["g"])
LINEAR = [N("MatMul", ["x0", "w"], ["a0"]), N("Add", ["a0", "b"], ["a"])]


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("parts", [("g", "a"), ("a", "g", "x0"), ("g", "s")])
def test_parts_with_a_zero_point_are_joined_without(parts, axis, tmp_path):
    """A joining Concat rounds what it reads, as no linear operator does: its own output has the zero point."""
    joined = [N("Concat", parts, ["c"], axis=axis)]
    if axis == 2:
        joined.append(N("MatMul", ["c", "wide"], ["y"]))
    else:
        joined.append(N("MatMul", ["c", "w"], ["y"]))
    constants = {**CONSTANTS, "wide": weights(8 * len(parts), 8)}
    activations, integer = lowered(tmp_path, [GELU, SOFTMAX, *LINEAR, *joined], constants=constants)
    check(integer)
    assert sqnr(integer, activations.model, IMAGES) > 25
    assert integer.tensors[integer.node("y").inputs[0]].zero_point
    of_parts = [integer.tensors[name] for name in integer.node("c").inputs]
    assert len({(float(part.scale), part.zero_point) for part in of_parts}) == 1


def test_quantizers_of_a_joining_concat(tmp_path):
    nodes = [GELU, *LINEAR, N("Concat", ["g", "a"], ["c"], axis=1), N("MatMul", ["c", "w"], ["y"])]
    _, plain = lowered(tmp_path, nodes)
    _, wide = lowered(tmp_path, nodes, quantizers={"c": {"input_bits": 12, "observer": "percentile"}})
    found = {name: (plain.tensors[name].dtype.bits, wide.tensors[name].dtype.bits) for name in ("g.quant", "c.in1")}
    assert found == {"g.quant": (8, 12), "c.in1": (8, 8)}
    with pytest.raises(IntvitError, match="c: output_bits must be at most 8, as y multiplies, not 9"):
        lowered(tmp_path, nodes, quantizers={"c": {"output_bits": 9}})


def test_what_is_joined_and_moved_is_recorded(tmp_path):
    """A Concat of a Concat, and one that only a slice reads."""
    nodes = [
        GELU, *LINEAR, N("Concat", ["g", "a"], ["c"], axis=1), N("Concat", ["c", "x0"], ["d"], axis=1),
        N("Slice", ["d", "from", "to", "at"], ["m"]), LAST,
    ]  # fmt: skip
    cut = {"from": np.array([4]), "to": np.array([20]), "at": np.array([1])}
    activations, integer = lowered(tmp_path, nodes, constants={**CONSTANTS, **cut})
    check(integer)
    assert {"c", "d"} <= set(activations.names)
    assert sqnr(integer, activations.model, IMAGES) > 30


def test_a_product_of_a_tensor_with_itself(tmp_path):
    """Emulated, too; there a tensor was given to onnxruntime twice by one name."""
    nodes = [N("MatMul", ["x0", "x0"], ["p"]), N("Add", ["p", "p"], ["m"]), LAST]
    activations, integer = lowered(tmp_path, nodes)
    assert sqnr(integer, activations.model, IMAGES) > 25
    graph, _ = imported(tmp_path, nodes, CONSTANTS, IMAGES)
    emulation = Emulation(graph, integer, activations.model, IMAGES[:2], {})
    (real,) = activations.model.run(IMAGES).values()
    assert np.allclose(emulation.outputs(IMAGES, flipped(False, ())), real, rtol=1e-4, atol=1e-4)


def emulated(tmp_path, nodes, constants, **values):
    """(emulated with nothing rounded, with all, integer, float) outputs."""
    activations, integer = lowered(tmp_path, nodes, constants=constants, bias_correction=False, **values)
    graph, _ = imported(tmp_path, nodes, constants, IMAGES)
    emulation = Emulation(graph, integer, activations.model, IMAGES[:2], {})
    (real,) = activations.model.run(IMAGES).values()
    name = integer.outputs[0]
    codes = Engine(integer).run(IMAGES)[name] * integer.tensors[name].scale
    return emulation.outputs(IMAGES, flipped(False, ())), emulation.outputs(IMAGES, flipped(True, ())), codes, real


@pytest.mark.parametrize("added", ["g", "b"])
@pytest.mark.parametrize("factor", [0.1, 0.5, 4.0])
def test_a_factor_behind_a_sum_is_emulated(added, factor, tmp_path):
    """Of two tensors, and of one and a constant."""
    first = N("MatMul", ["x0", "w"], ["p"])
    nodes = [first, N("Gelu", ["p"], ["g"]), N("MatMul", ["g", "w"], ["a"]), N("Gelu", ["a"], ["k"]),
             N("Add", ["k", added], ["s"]), N("Mul", ["s", "f"], ["h"]), N("Gelu", ["h"], ["m"]), LAST]  # fmt: skip
    none, every, codes, real = emulated(tmp_path, nodes, {**CONSTANTS, "f": np.float32(factor)})
    assert np.allclose(none, real, rtol=1e-4, atol=1e-4)
    assert np.sum((every - codes) ** 2) < 0.05 * np.sum((codes - real) ** 2)  # ties


def test_the_range_of_what_is_joined_is_chosen(tmp_path):
    """Its parts are rounded one by one, and not where the tensors are rounded that they come from."""
    nodes = [GELU, *LINEAR, N("Concat", ["g", "a"], ["c"], axis=1), N("MatMul", ["c", "w"], ["y"])]
    graph, activations = imported(tmp_path, nodes, CONSTANTS, IMAGES)
    recipe = build_recipe({"preset": "accurate", "bits": 4}).with_method("ibert")
    groups = observers._groups(graph, recipe)
    assert sorted(groups) == [(("c",), ("g", "a")), (("y",), ("c",))]
    integer = lower(graph, calibrate(graph, activations, recipe), recipe)
    wanted = {name: ["minmax"] for name in ("g", "a", "c")}
    found = observers._judged(graph, activations.model, {"minmax": integer}, {}, IMAGES, wanted, None)
    assert found.keys() == wanted.keys()
    assert all(each["minmax"] > 0 for each in found.values())


def test_ranges_are_judged_in_parts_that_fit(tmp_path, monkeypatch):
    nodes = [GELU, N("MatMul", ["g", "w"], ["m"]), LAST]
    graph, activations = imported(tmp_path, nodes, CONSTANTS, IMAGES)
    recipe = build_recipe({"preset": "accurate", "bits": 4})
    integer = lower(graph, calibrate(graph, activations, recipe), recipe)
    args = (graph, activations.model, {"minmax": integer}, {}, IMAGES, {"g": ["minmax"]})
    done = []
    whole = observers._judged(*args, None)
    monkeypatch.setattr(observers, "fitting", lambda n_images, size: 4)
    parts = observers._judged(*args, lambda *at: done.append(at))
    assert parts["g"]["minmax"] == pytest.approx(whole["g"]["minmax"], rel=1e-5)
    assert done == sorted(done)
    assert done[-1][0] == done[-1][1]


def test_what_is_stated_with_the_input_is_not_chosen(tmp_path):
    """A reader of the input beside another tensor states the range of both."""
    nodes = [GELU, N("MatMul", ["x0", "g"], ["p"]), N("MatMul", ["x0", "w"], ["a"]), N("Add", ["p", "a"], ["m"]), LAST]
    graph, activations = imported(tmp_path, nodes, CONSTANTS, IMAGES)
    for asked in ({}, {"a": {"range": 0.6}}):
        values = {"preset": "accurate", "bits": 4, "observer": {"kind": "auto"}, "quantizers": asked}
        found = resolved(graph, activations.model, activations, build_recipe(values))
        assert set(found.recipe.quantizers) <= {*asked, "y"}


def test_a_site_that_is_called_like_a_kind_is_not_chosen(tmp_path):
    """What is stated of it would be of all of the kind."""
    nodes = [N("MatMul", ["x0", "w"], ["a"]), N("Gelu", ["a"], ["g"]), N("MatMul", ["g", "w"], ["linear"]),
             N("Gelu", ["linear"], ["h"]), N("MatMul", ["h", "w"], ["y"])]  # fmt: skip
    graph, _ = imported(tmp_path, nodes, CONSTANTS, IMAGES)
    recipe = build_recipe({"preset": "accurate", "bits": 4})
    stated = {site for sites, _ in observers._groups(graph, recipe) for site in sites}
    assert stated == {"g", "h", "y"}


@pytest.mark.parametrize("factor", [0.01, 0.1, 10.0, 100.0])
@pytest.mark.parametrize("preset", ["accurate", "published"])
def test_a_factor_behind_a_norm_costs_nothing(preset, factor, tmp_path):
    """FQ-ViT's LayerNorm writes steps of the next quantizer, which lies behind the factor."""
    constants = {**CONSTANTS, "g": weights(8, 5)[:, 1], "f": np.float32(factor)}
    norm, found = N("LayerNormalization", ["x0", "g", "b"], ["n"], axis=-1), {}
    for name, between in (("n", []), ("m", [N("Mul", ["n", "f"], ["m"])])):
        nodes = [norm, *between, N("MatMul", [name, "w"], ["y"])]
        values = {"preset": preset, "bias_correction": False}
        activations, integer = lowered(tmp_path, nodes, "fqvit", constants, **values)
        found[name] = sqnr(integer, activations.model, IMAGES)
    assert found["m"] == pytest.approx(found["n"], abs=0.5)


@pytest.mark.parametrize(("values", "expected"), [
    ((-1, 2, 1.5), (-1, 1.5)), ((-3, 2, 1.5), (-1.5, 1.5)), ((3, 4, 2), (2, 2)), ((-4, -3, 2), (-2, -2)),
])  # fmt: skip
def test_a_clipped_range_is_ordered(values, expected):
    assert clipped(*values) == expected


@pytest.mark.parametrize("bits", [4, 8])
def test_values_that_are_almost_one_number_have_a_range(bits, tmp_path):
    """That of a histogram ends at a bin, which lay below all of them."""
    constants = {**CONSTANTS, "c": np.full(8, 5, np.float32), "small": np.float32(1e-4) * weights(8, 8)}
    nodes = [N("MatMul", ["x0", "small"], ["a0"]), N("Add", ["a0", "c"], ["a"]), N("Add", ["a", "a"], ["m"]), LAST]
    for observer in ("percentile", "mse", "kl"):
        _, integer = lowered(tmp_path, nodes, constants=constants, bits=bits, observer={"kind": observer})
        check(integer)


# drawn ones


class Drawn:
    """Nodes and constants, one after the other; shapes without the batch."""

    def __init__(self, rng):
        self.rng, self.nodes, self.constants, self.live = rng, [], {}, [("x0", (8, 8))]
        for _ in range(rng.integers(3, 9)):
            self.draw()
        name, shape = self.live[-1]
        self.nodes.append(N("MatMul", [name, self.constant(rng.normal(size=(shape[-1], 6)))], ["y"]))

    def constant(self, array):
        name = f"c{len(self.constants)}"
        array = np.asarray(array)
        self.constants[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
        return name

    def emit(self, op, inputs, shape, **attributes):
        name = f"t{len(self.nodes)}"
        self.nodes.append(N(op, inputs, [name], **attributes))
        self.live.append((name, shape))
        return name

    def other(self, fits):
        found = [each for each in self.live if fits(each[1])]
        return found[self.rng.integers(len(found))] if found else None

    def draw(self):
        rng = self.rng
        name, shape = self.live[-1] if rng.random() < 0.6 else self.live[rng.integers(len(self.live))]
        kinds = ["linear"] * 3 + ["gelu", "softmax", "norm", "add", "product", "turn", "cut", "scale", "slice", "join"]
        match rng.choice(kinds):
            case "linear":
                width = int(rng.choice([4, 8, 16]))
                weight = rng.normal(size=(shape[-1], width)) * rng.choice([0.3, 1, 3])
                weight[:, rng.integers(width)] *= rng.choice([0, 1])
                out = (*shape[:-1], width)
                product = self.emit("MatMul", [name, self.constant(weight)], out)
                if rng.random() < 0.8:
                    self.live.pop()
                    self.emit("Add", [product, self.constant(rng.normal(size=width))], out)
            case "gelu":
                self.emit("Gelu", [name], shape)
            case "softmax":
                self.emit("Softmax", [name], shape, axis=-1)
            case "norm":
                affine = [self.constant(rng.normal(size=shape[-1])) for _ in range(2)]
                self.emit("LayerNormalization", [name, *affine], shape, axis=-1, epsilon=1e-6)
            case "add":
                self.emit("Add", [name, self.other(lambda s: s == shape)[0]], shape)
            case "product":
                mate = self.other(lambda s: s[0] == shape[-1])
                if mate:
                    self.emit("MatMul", [name, mate[0]], (shape[0], mate[1][1]))
            case "turn":
                self.emit("Transpose", [name], shape[::-1], perm=[0, 2, 1])
            case "cut" if shape[1] % 2 == 0:
                after = (shape[0] * 2, shape[1] // 2)
                self.emit("Reshape", [name, self.constant(np.array([0, *after]))], after)
            case "scale":
                self.emit("Mul", [name, self.constant(float(rng.choice([0.25, 0.5, 2, 3, 0.1])))], shape)
            case "slice" if shape[0] > 1:
                cut = [self.constant(np.array([at])) for at in (0, shape[0] // 2, 1)]
                self.emit("Slice", [name, *cut], (shape[0] // 2, shape[1]))
            case "join":
                mate = self.other(lambda s: s[1:] == shape[1:])
                self.emit("Concat", [name, mate[0]], (shape[0] + mate[1][0], shape[1]), axis=1)


@pytest.mark.parametrize("seed", range(90))
def test_a_drawn_model_is_refused_or_right(seed, tmp_path):
    """Well formed, equal in both backends and for any batch, the same from its own recipe; auto is no worse."""
    rng = np.random.default_rng(seed)
    drawn, n_images = Drawn(rng), int(rng.choice([1, 2, 5, 12]))
    images = rng.normal(size=(n_images, 1, 8, 8)).astype(np.float32)
    bits, method, preset = int(rng.choice([4, 6, 8])), str(rng.choice(METHODS)), rng.choice(["accurate", "published"])
    limit = None if rng.random() < 0.5 else max(1, n_images // 2)
    recipe = build_recipe({"preset": str(preset), "bits": bits, "observer": {"kind": "auto"}}).with_method(method)
    try:
        graph, activations = imported(tmp_path, drawn.nodes, drawn.constants, images)
        found = resolved(graph, activations.model, activations, recipe, limit=limit)
    except IntvitError as error:
        if REFUSED.search(str(error)):
            return
        raise
    integer = lower(graph, calibrate(graph, activations, found.recipe, limit=limit), found.recipe)
    check(integer)
    again = build_recipe(integer.metadata["recipe"])
    assert lower(graph, calibrate(graph, activations, again, limit=limit), again).content_hash == integer.content_hash
    fast, slow = Engine(integer).run(images), Engine(integer, "spec").run(images[:2])
    assert all(np.array_equal(fast[name][:2], slow[name]) for name in fast)
    single = [Engine(integer).run(images[i : i + 1]) for i in range(n_images)]
    assert all(np.array_equal(fast[name], np.concatenate([each[name] for each in single])) for name in fast)
    assert found.sqnr[found.taken] >= next(iter(found.sqnr.values()))


REFUSED = re.compile(
    "log2 codes must be the left operand|a constant factor must follow the one operator|input scale must be below"
)
