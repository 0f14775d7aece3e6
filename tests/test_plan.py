"""Fused steps give the integers of their nodes: plans against the spec and against the nodes one by one."""

import json

import numpy as np
import pytest

from intvit.engine import Engine, quantize_images
from intvit.engine.plan import make_plan
from intvit.graph.operators.methods import mask_rows
from intvit.kernels import gemm, registry, tables
from intvit.kernels.arith import as_rows
from intvit.kernels.matmul import LOG2_LIFT, log2_weights
from intvit.lowering.recipe import build_recipe
from intvit.spec.arith import rhe
from intvit.spec.softmax import int_exp

METHODS = ("ibert", "fqvit", "ivit")


def run_plan(graph, q_images, path, wanted=()):
    values = {graph.inputs[0]: q_images}
    for step in make_plan(graph, wanted, path):
        values[step.output] = step.run([values[name] for name in step.inputs])
    return values


def graphs(vit, mixed):
    yield "mixed", mixed
    for method in METHODS:
        for bits in (8, 6):
            yield f"{method} {bits}", vit.lower(build_recipe({"bits": bits}).with_method(method))
            accurate = build_recipe({"bits": bits, "preset": "accurate"}).with_method(method)
            yield f"{method} {bits} accurate", vit.lower(accurate)


def test_every_tensor_that_a_plan_makes_is_that_of_the_nodes(vit, mixed):
    images = vit.test.read(5, 8)
    for name, graph in graphs(vit, mixed):
        q = quantize_images(graph, images)
        expected = Engine(graph, "kernel").evaluate(q, list(graph.tensors))  # all wanted: nothing is fused
        for path in gemm.available_paths():
            found = run_plan(graph, q, path)
            assert len(found) < len(expected)
            for key, value in found.items():
                assert np.array_equal(value, expected[key]), (name, path, key)


def test_plan_against_the_spec(vit, mixed, mixed_by_spec):
    q = quantize_images(mixed, vit.test.read(0, 2))
    for key, value in run_plan(mixed, q, gemm.chosen_path()).items():
        assert np.array_equal(value, mixed_by_spec[key]), key


@pytest.mark.parametrize("name", ["swin_ivit", "swin_ibert_n6", "swin_mixed_all3", "vit_mixed_all3"])
def test_plans_of_the_published_networks(name):
    from pathlib import Path

    from conformance_models import integer_graph

    folder = Path(__file__).resolve().parent.parent / "golden" / "conformance" / "models"
    with np.load(folder / f"{name}.npz") as file:
        arrays = dict(file)
    _, graph = integer_graph(json.loads(str(arrays["meta"])), arrays)
    q = quantize_images(graph, arrays["input"])
    expected = Engine(graph).evaluate(q, list(graph.tensors))
    for path in gemm.available_paths():
        for key, value in run_plan(graph, q, path).items():
            assert np.array_equal(value, expected[key]), (path, key)


def test_what_is_wanted_is_not_fused_away(vit, mixed):
    q = quantize_images(mixed, vit.test.read(0, 2))
    engine = Engine(mixed)
    everything = engine.evaluate(q, list(mixed.tensors))
    for name in ("blocks.0.attn.qkv", "blocks.1.attn.matmul_qk", "blocks.2.mlp.act", "patch_embed.proj.linear"):
        assert np.array_equal(engine.evaluate(q, [name])[name], everything[name])


def test_most_of_the_network_is_fused(vit):
    graph = vit.lower(build_recipe({}).with_method("ivit"))
    steps = make_plan(graph, (), "avx2")
    fused = {"+".join(n.op for n in step.nodes if n.op not in ("reshape", "transpose")) for step in steps}
    assert {"linear+requantize", "matmul+requantize", "gelu+requantize"} <= fused
    assert not any(step.nodes[0].op == "matmul" and len(step.nodes) == 1 for step in steps)


def test_what_the_accurate_preset_adds_is_fused_too(vit):
    """16-bit scores and 12-bit GELUs are tables, zero points a part of the pass over the accumulators."""
    graph = vit.lower(build_recipe({"preset": "accurate"}).with_method("ibert"))
    steps = make_plan(graph, (), "avx2")
    moved = [step for step in steps if step.nodes[0].op in ("linear", "matmul", "gelu")]
    to_zero_points = [step for step in moved if graph.tensors[step.output].zero_point]
    assert {step.nodes[0].op for step in to_zero_points} == {"matmul", "gelu"}
    assert all(step.nodes[-1].op == "requantize" for step in to_zero_points)
    by_row = {node.output for node in graph.nodes if node.op == "softmax"}
    assert {step.run.__qualname__.split(".")[0] for step in steps if step.output in by_row} == {"_by_table"}


def test_softmax_of_log2_codes_becomes_weights_unless_its_codes_are_wanted(vit):
    graph = vit.lower(build_recipe({}).with_method("fqvit"))
    softmax = [node.output for node in graph.nodes if node.op == "softmax"]
    fused = [step for step in make_plan(graph, (), "avx2") if step.nodes[0].op == "softmax"]
    assert len(fused) == len(softmax)
    assert all(step.nodes[1].op == "log2_matmul" for step in fused)
    apart = [step for step in make_plan(graph, softmax, "avx2") if step.nodes[0].op == "softmax"]
    assert [step.output for step in apart] == softmax


# narrow softmax: the method's kernel on the same rows


def narrow_cases(scale):
    rng = np.random.default_rng(int(1 / scale))
    yield rng.integers(-128, 128, (40, 33)), None
    yield rng.integers(-3, 4, (40, 197)), None
    yield np.full((3, 5), -128), None
    yield np.array([[127, -128], [-128, 127], [0, 0]]), None
    yield np.array([[5]]), None
    mask = rng.random((10, 33)) < 0.4
    mask[3] = True
    yield rng.integers(-128, 128, (40, 33)), mask
    yield rng.integers(-128, 128, (4, 33)), mask[:1]


def log2_form(p, columns, masked):
    """Whether FQ-ViT's softmax has a narrow form: no exponent of 8-bit scores is 0, and their sum stays below 2**60."""
    shifts = 30 if masked else min(30, 255 // -p.x0)
    exponents = int_exp([-d for d in (*range(256), 30 * -p.x0)], p.x0, p.b, p.c, p.n)
    return min(exponents) > 0 and columns * (p.c << shifts) < 2**60


@pytest.mark.parametrize("scale", [7.3, 1.0, 0.3, 0.05, 0.02, 1 / 127, 0.003, 0.0004])
@pytest.mark.parametrize("method", METHODS)
def test_softmax_of_8_bit_scores(method, scale):
    chosen = registry.get("softmax", method)
    for bits in (4, 5) if method == "fqvit" else (6, 8, 16):
        options = {"exp_range_max": 2.0**32} if method == "ibert" and scale > 1.6 else {}  # every exponent is 0 there
        params, _ = chosen.lower(scale, out_bits=bits, **options)
        for rows, mask in narrow_cases(scale):
            narrow = chosen.fast.narrow(params, rows.shape[1], mask is not None)
            if method == "fqvit" and not log2_form(params, rows.shape[1], mask is not None):
                assert narrow is None
                continue
            out = np.empty(rows.shape, np.int64)
            narrow(rows.astype(np.int8), mask, out)
            every = None if mask is None else np.tile(mask, (len(rows) // len(mask), 1))
            assert np.array_equal(out, chosen.kernel(params)(as_rows(rows), every) if mask is not None else
                                  chosen.kernel(params)(as_rows(rows)))  # fmt: skip
            spec = [
                chosen.spec(row, params, None if every is None else every[i].tolist())
                for i, row in enumerate(rows.tolist())
            ]
            assert out.tolist() == spec


@pytest.mark.parametrize("stretch", [None, 0.3, 1.7])
@pytest.mark.parametrize("scale", [1.3, 0.05, 0.004, 0.0003, 0.00002])
def test_ibert_softmax_of_16_bit_scores(scale, stretch):
    """The table ends where exponents are equal, at small scales where differences end."""
    method, rng = registry.get("softmax", "ibert"), np.random.default_rng(3)
    natural = method.lower(scale, out_bits=8)[0]
    options = {} if stretch is None else {"exp_range_max": stretch * float(natural.c << natural.n)}
    params, _ = method.lower(scale, out_bits=16, **options)
    extremes = np.array([[32767, -32768, 0], [-32768, 32767, -32768], [-32768] * 3, [32767, 32766, 32767 - 29]])
    mask = rng.random((4, 21)) < 0.4
    mask[2] = True
    mask[3, :20] = True  # what is hidden may lie above what is not
    for rows, hidden in (
        (extremes, None),
        (rng.integers(-32768, 32768, (12, 21)), None),
        (rng.integers(-300, 300, (12, 21)), None),
        (rng.integers(-32768, 32768, (8, 21)), mask),
    ):
        out = np.empty(rows.shape, np.int32)
        method.fast.wide(params, rows.shape[1], hidden is not None)(rows.astype(np.int16), hidden, out)
        masks = [None] * len(rows) if hidden is None else np.tile(hidden, (2, 1)).tolist()
        assert out.tolist() == [method.spec(row, params, m) for row, m in zip(rows.tolist(), masks, strict=True)]


@pytest.mark.parametrize("scale", [0.3, 0.05, 0.02, 1 / 127])
def test_softmax_of_8_bit_scores_as_weights(scale):
    """The weights that the general kernel's codes stand for, less LOG2_LIFT."""
    chosen = registry.get("softmax", "fqvit")
    params, _ = chosen.lower(scale, out_bits=4)
    for rows, mask in narrow_cases(scale):
        narrow = chosen.fast.narrow_weights(params, rows.shape[1], mask is not None)
        out = np.empty(rows.shape, np.int16)
        narrow(rows.astype(np.int8), mask, out)
        every = None if mask is None else np.tile(mask, (len(rows) // len(mask), 1))
        codes = chosen.kernel(params)(as_rows(rows), every)
        assert np.array_equal(out, log2_weights(codes.astype(np.int8)))
    assert chosen.fast.narrow_weights(chosen.lower(scale, out_bits=5)[0], 8, False) is None


def test_softmax_log2_codes_at_their_edges():
    """Every total around the edges of codes 1 to 8, against the division."""
    from intvit.kernels.softmax import code_of, log2_code

    for e in (1, 2, 3, 4, 5, 6, 7, 12, 2**40):
        for edge in (1.5, 2.5, 5.5, 11.5, 23.5, 47.5, 95.5, 191.5):
            for total in range(max(int(e * edge) - 3, e), int(e * edge) + 4):
                ratio = rhe(total, e)
                assert code_of(e, total) == log2_code(ratio, 6), (e, total)


@pytest.mark.parametrize("stretch", [0.3, 0.8, 1.7])
def test_softmax_of_8_bit_scores_at_calibrated_ranges(stretch):
    """A range below the natural one saturates h at 16 bits."""
    method = registry.get("softmax", "ibert")
    natural = method.lower(0.05, out_bits=8)[0]
    params, _ = method.lower(0.05, out_bits=16, exp_range_max=stretch * (natural.c << natural.n))
    rows = np.random.default_rng(0).integers(-20, 21, (20, 30))
    mask = np.random.default_rng(1).random((20, 30)) < 0.5
    for hidden in (None, mask):
        out = np.empty(rows.shape, np.int64)
        method.fast.narrow(params, 30, hidden is not None)(rows.astype(np.int8), hidden, out)
        spec = [
            method.spec(r, params, None if hidden is None else hidden[i].tolist()) for i, r in enumerate(rows.tolist())
        ]
        assert out.tolist() == spec


def test_a_softmax_sum_that_may_leave_64_bits_has_no_narrow_form():
    method = registry.get("softmax", "fqvit")
    params, _ = method.lower(2e-7, out_bits=4)
    assert method.fast.narrow(params, 1000, True) is None
    assert method.fast.narrow_weights(params, 1000, True) is None


# tables


@pytest.mark.parametrize("scale", [0.5, 0.05, 0.011, 1 / 127])
@pytest.mark.parametrize("method", ["ivit", "ibert"])
def test_gelu_tables(method, scale):
    chosen = registry.get("gelu", method)
    params, _ = chosen.constants(scale, {}, chosen.uniform)
    run = chosen.kernel(params)
    table = tables.prepare(chosen.fast.depends, lambda rows: run(as_rows(rows)), -128, 127)
    rng = np.random.default_rng(0)
    for rows in (rng.integers(-128, 128, (50, 60)), rng.integers(-128, 0, (50, 7)), np.arange(-128, 128)[:, None]):
        assert np.array_equal(table(rows.astype(np.int8)), run(as_rows(rows)))


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_gelu_tables_of_more_than_8_bits(bits):
    method, high = registry.get("gelu", "ibert"), 2 ** (bits - 1) - 1
    params, _ = method.constants(6 / high, {"x_max": high + 1}, {"n": "least"})
    run = method.kernel(params)
    table = tables.prepare("element", lambda rows: run(as_rows(rows)), -high - 1, high)
    rows = np.arange(-high - 1, high + 1).reshape(8, -1)
    assert np.array_equal(table(rows.astype(np.int16)), run(as_rows(rows)))
    assert tables.prepare("row_max", lambda rows: rows, -high - 1, high) is None


def test_log2_weights():
    codes = np.arange(-1, 16, dtype=np.int8).reshape(1, -1)
    assert (log2_weights(codes).astype(int) + LOG2_LIFT).tolist() == [[0, *(2**k for k in range(15, -1, -1))]]


def test_masks_repeat_over_a_batch(vit):
    from intvit.graph.ir import Node

    node = Node("softmax", "s", ("x",), "y", {}, {"mask": np.eye(3, dtype=bool)})
    assert mask_rows(node, (2, 3, 3)).shape == (6, 3)
