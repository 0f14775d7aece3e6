"""A graph file whose own hash fits is still checked: every constant in its range, every bound proven anew."""

import dataclasses
import hashlib

import h5py
import numpy as np
import pytest

from intvit.engine import Engine, quantize_images
from intvit.errors import IntvitError
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import build_vit
from intvit.graph.check import check
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Graph, Node
from intvit.graph.store import KIND, VERSION, load, save
from intvit.graph.text import format_graph
from intvit.lowering.calibrate import Calibration
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe

DIM = 8
METHODS = [("ivit", "ivit", "ivit"), ("ibert", "ibert", "ibert"), ("fqvit", "ivit", "fqvit")]


def tiny_weights(depth, rng):
    def linear(name, n_out, n_in):
        return {f"{name}.weight": rng.normal(0, n_in**-0.5, (n_out, n_in)), f"{name}.bias": rng.normal(0, 0.1, n_out)}

    def norm(name):
        return {f"{name}.weight": rng.uniform(0.5, 1.5, DIM), f"{name}.bias": rng.normal(0, 0.1, DIM)}

    tensors = linear("patch_embed.proj", DIM, 16)
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"].reshape(DIM, 1, 4, 4)
    tensors |= {"cls_token": rng.normal(0, 1, (1, 1, DIM)), "pos_embed": rng.normal(0, 1, (1, 5, DIM))}
    for i in range(depth):
        at = f"blocks.{i}"
        tensors |= norm(f"{at}.norm1") | linear(f"{at}.attn.qkv", 3 * DIM, DIM) | linear(f"{at}.attn.proj", DIM, DIM)
        tensors |= norm(f"{at}.norm2") | linear(f"{at}.mlp.fc1", 2 * DIM, DIM) | linear(f"{at}.mlp.fc2", DIM, 2 * DIM)
    tensors |= norm("norm") | linear("head", 3, DIM)
    return {name: value.astype(np.float32) for name, value in tensors.items()}


@pytest.fixture(scope="module")
def tiny() -> Graph:
    """Three blocks, one per family of methods, with ranges that nothing was recorded for: bits do not depend on it."""
    graph = float_graph(build_vit(tiny_weights(3, np.random.default_rng(1)), {"num_heads": 2, "img_size": 8}))
    ranges = dict.fromkeys(graph.tensors, (-4.0, 4.0))
    sites = {}
    for i, (softmax, gelu, norm) in enumerate(METHODS):
        sites[f"blocks.{i}.attn.softmax"] = {"method": softmax}
        sites[f"blocks.{i}.mlp.act"] = {"method": gelu, **({"n": 6} if gelu == "ibert" else {})}
        sites[f"blocks.{i}.norm1"] = sites[f"blocks.{i}.norm2"] = {"method": norm}
    return lower(graph, Calibration(ranges), build_recipe({"sites": sites}))


def changed(graph, name, attrs=None, params=None, arrays=None, **values):
    """`graph` with one node changed."""

    def change(node: Node) -> Node:
        if node.name != name:
            return node
        new = {**node.attrs, **(attrs or {})}
        if params:
            new["params"] = {**node.attrs["params"], **params}
        return dataclasses.replace(node, attrs=new, arrays={**node.arrays, **(arrays or {})}, **values)

    return dataclasses.replace(graph, nodes=tuple(change(n) for n in graph.nodes))


def retyped(graph, name, **values):
    tensors = {**graph.tensors, name: dataclasses.replace(graph.tensors[name], **values)}
    return dataclasses.replace(graph, tensors=tensors)


def write_unchecked(graph, path):
    """As `save` does, without its check: a consistent file that another tool might write."""
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["version"], file.attrs["content_hash"] = KIND, VERSION, graph.content_hash
        text = format_graph(graph)
        file.attrs["text_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        file.create_dataset("graph.json", data=text)
        for name, node in graph.by_name.items():
            for key, array in node.arrays.items():
                file.create_dataset(f"arrays/{name}/{key}", data=array)


def test_the_tiny_graph_is_well_formed_and_equal_in_both_backends(tiny, tmp_path):
    save(tiny, tmp_path / "g.h5")
    assert load(tmp_path / "g.h5").content_hash == tiny.content_hash
    assert_backends_agree(tiny)


def assert_backends_agree(graph):
    images = quantize_images(graph, np.random.default_rng(0).normal(0, 1, (2, 1, 8, 8)).astype(np.float32))
    names = list(graph.tensors)
    spec, kernel = (Engine(graph, backend).evaluate(images, names) for backend in ("spec", "kernel"))
    fused = Engine(graph).evaluate(images, graph.outputs)
    for name in names:
        np.testing.assert_array_equal(spec[name], kernel[name], err_msg=name)
    for name in graph.outputs:
        np.testing.assert_array_equal(spec[name], fused[name], err_msg=name)


ONE = np.array([1])
REQUANTIZE, SOFTMAX = "blocks.0.attn.qkv.quant", "blocks.1.attn.softmax"
BREAKS = {
    "m too large": lambda g: changed(g, first(g), arrays={"m": ONE << 32}),
    "m too small": lambda g: changed(g, first(g), arrays={"m": -(ONE << 40)}),
    "e too large": lambda g: changed(g, first(g), arrays={"e": ONE * 5000}),
    "e too small": lambda g: changed(g, first(g), arrays={"e": ONE * -5000}),
    "m and e of two lengths": lambda g: changed(g, first(g), arrays={"e": np.array([31, 31])}),
    "float m": lambda g: changed(g, first(g), arrays={"m": np.array([1.5])}),
    "an unknown array": lambda g: changed(g, first(g), arrays={"z": ONE}),
    "bits of another type": lambda g: changed(g, first(g), attrs={"bits": 7}),
    "bits that are true": lambda g: changed(g, first(g), attrs={"bits": True}),
    "an unknown attribute": lambda g: changed(g, first(g), attrs={"clamp": 1}),
    "x0 of 0": lambda g: changed(g, SOFTMAX, params={"x0": 0}),
    "x0 above 0": lambda g: changed(g, SOFTMAX, params={"x0": 3}),
    "n beyond": lambda g: changed(g, SOFTMAX, params={"n": 64}),
    "c beyond": lambda g: changed(g, SOFTMAX, params={"c": 2**62}),
    "c negative": lambda g: changed(g, SOFTMAX, params={"c": -5}),
    "b too small": lambda g: changed(g, SOFTMAX, params={"b": -1}),
    "out_bits beyond": lambda g: changed(g, SOFTMAX, params={"out_bits": 40}),
    "a string": lambda g: changed(g, SOFTMAX, params={"n": "30"}),
    "a float": lambda g: changed(g, SOFTMAX, params={"n": 30.0}),
    "an unknown parameter": lambda g: changed(g, SOFTMAX, params={"q": 30}),
    "another version": lambda g: changed(g, SOFTMAX, attrs={"version": 2}),
    "another method": lambda g: changed(g, SOFTMAX, attrs={"method": "ivit"}),
    "wide softmax": lambda g: changed(g, "blocks.0.attn.softmax", params={"out_bits": 24}),
    "log2 codes of 5 bits": lambda g: changed(g, "blocks.2.attn.softmax", params={"bits": 5}),
    "gelu n": lambda g: changed(g, "blocks.1.mlp.act", params={"n": 99}),
    "gelu b": lambda g: changed(g, "blocks.1.mlp.act", arrays={"b": ONE}),
    "gelu constants of two lengths": lambda g: changed(g, "blocks.1.mlp.act", arrays={"b": -np.ones(16, np.int64)}),
    "layernorm shift": lambda g: changed(g, "blocks.1.norm1", params={"shift": 40}),
    "layernorm bias": lambda g: changed(g, "blocks.0.norm1", arrays={"bias": np.full(DIM, 2**62)}),
    "short layernorm bias": lambda g: changed(g, "blocks.0.norm1", arrays={"bias": np.ones(3, np.int64)}),
    "fqvit slope": lambda g: changed(g, "blocks.2.norm1", arrays={"slope": np.full(DIM, 2**60)}),
    "fqvit factor": lambda g: changed(g, "blocks.2.norm1", arrays={"factor": np.full(DIM, 2**20)}),
    "fqvit sign": lambda g: changed(g, "blocks.2.norm1", arrays={"sign": np.zeros(DIM, np.int64)}),
    "a weight beyond 8 bits": lambda g: changed(g, "head", arrays={"weight": np.full((3, DIM), 128)}),
    "a bias beyond 32 bits": lambda g: changed(g, "head", arrays={"bias": np.full(3, 2**31)}),
    "a bias beyond its bound": lambda g: changed(g, "head", arrays={"bias": np.full(3, 2**31 - 1)}),
    "a weight of another shape": lambda g: changed(g, "head", arrays={"weight": np.ones((3, 5), np.int8)}),
    "a bound too small": lambda g: retyped(g, "head", bound=3),
    "a bound beyond its type": lambda g: retyped(g, "head", bound=2**40),
    "a negative bound": lambda g: retyped(g, "head", bound=-1),
    "a type too narrow": lambda g: retyped(g, "head", dtype=IntType(8), bound=None),
    "an unsigned type": lambda g: retyped(g, "input", dtype=IntType(8, signed=False)),
    "a bound of the input": lambda g: retyped(g, "input", bound=1),
    "a bound of a requantized tensor": lambda g: retyped(g, g.node(first(g)).output, bound=5),
    "a scale that is not a number": lambda g: retyped(g, "head", scale=np.array(np.nan)),
    "a scale of 0": lambda g: retyped(g, "head", scale=np.array(0.0)),
    "scales of another length": lambda g: retyped(g, "head", scale=np.ones(7)),
    "an empty shape": lambda g: retyped(g, "head", shape=(0,)),
    "an encoding": lambda g: retyped(g, "head", encoding="log2"),
    "an unknown encoding": lambda g: retyped(g, "head", encoding="lin"),
    "an output that is missing": lambda g: dataclasses.replace(g, outputs=("nothing",)),
    "no output": lambda g: dataclasses.replace(g, outputs=()),
    "no input": lambda g: dataclasses.replace(g, inputs=()),
    "another input": lambda g: dataclasses.replace(g, inputs=("head",)),
    "a node twice": lambda g: dataclasses.replace(g, nodes=(*g.nodes, g.nodes[-1])),
    "nodes out of order": lambda g: dataclasses.replace(g, nodes=g.nodes[::-1]),
    "a permutation": lambda g: changed(g, move(g, "transpose"), attrs={"perm": [0, 0, 1]}),
    "a shape": lambda g: changed(g, move(g, "reshape"), attrs={"shape": [-1]}),
    "a shape of strings": lambda g: changed(g, move(g, "reshape"), attrs={"shape": ["a"]}),
    "an axis": lambda g: changed(g, move(g, "take"), attrs={"axis": 9}),
    "an index": lambda g: changed(g, move(g, "take"), attrs={"index": 9}),
    "a negative index": lambda g: changed(g, move(g, "take"), attrs={"index": -1}),
    "an order": lambda g: changed(g, move(g, "concat"), attrs={"order": [0, 0]}),
    "an unknown operator": lambda g: changed(g, "head", op="conv"),
    "one input too few": lambda g: changed(g, "blocks.0.attn.matmul_qk", inputs=("input",)),
}


def first(graph):
    """A requantization with one constant and no residual."""
    return next(
        n.name for n in graph.nodes if n.op == "requantize" and "residual_m" not in n.arrays and len(n.arrays["m"]) == 1
    )


def move(graph, op):
    return next(n.name for n in graph.nodes if n.op == op)


@pytest.mark.parametrize("name", BREAKS)
def test_a_consistent_file_with_a_constant_out_of_range(tiny, tmp_path, name, cli):
    broken = BREAKS[name](tiny)
    with pytest.raises(IntvitError):
        check(broken)
    path = tmp_path / "g.h5"
    write_unchecked(broken, path)
    np.save(tmp_path / "i.npy", np.zeros((1, 1, 8, 8), np.float32))
    status, _, err = cli("run", path, tmp_path / "i.npy", "-o", tmp_path / "l.npz")
    assert status == 2, err
    assert err.count("\n") == 1, err
    assert "g.h5" in err
    assert not (tmp_path / "l.npz").exists()


@pytest.mark.parametrize("seed", range(12))
def test_what_the_check_lets_pass_is_equal_in_both_backends(tiny, seed):
    """Random constants: each graph is refused, or kernel, fused plan and spec agree at every tensor."""
    rng, accepted = np.random.default_rng(seed), 0
    for _ in range(12):
        graph = tiny
        for _ in range(int(rng.integers(1, 3))):
            node = graph.nodes[int(rng.integers(len(graph.nodes)))]
            graph = scrambled(graph, node, rng)
        try:
            check(graph)
        except IntvitError:
            continue
        try:
            assert_backends_agree(graph)
            accepted += 1
        except IntvitError:  # an operator's own limit, met while running
            continue
    assert accepted > 0


def scrambled(graph, node, rng):
    if node.arrays:
        key = sorted(node.arrays)[int(rng.integers(len(node.arrays)))]
        array = node.arrays[key].astype(np.int64)
        reach = 1 << int(rng.integers(1, 7 if key in ("weight", "factor") else 34))
        mask = rng.random(array.shape) < rng.choice([0.1, 1.0])
        moved = np.where(mask, array + rng.integers(-reach, reach + 1, array.shape), array)
        return changed(graph, node.name, arrays={key: moved})
    if "params" in node.attrs:
        key = sorted(node.attrs["params"])[int(rng.integers(len(node.attrs["params"])))]
        value = node.attrs["params"][key]
        return changed(graph, node.name, params={key: value + int(rng.integers(-abs(value) - 2, abs(value) + 3))})
    return graph


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "NaN", '{"nodes": 3}', "[" * 100_000, '{"inputs": "input"}', "\ud800"],
)
def test_graph_json_that_is_no_graph(tiny, tmp_path, cli, text):
    save(tiny, tmp_path / "g.h5")
    with h5py.File(tmp_path / "g.h5", "a") as file:
        del file["graph.json"]
        file.create_dataset("graph.json", data=text.encode("utf-8", "surrogatepass"))
    status, _, err = cli("run", tmp_path / "g.h5", "fashion-mnist:test", "-o", tmp_path / "l.npz")
    assert (status, err.count("\n")) == (2, 1), err


def test_a_stale_graph_is_refused(tiny, tmp_path):
    write_unchecked(dataclasses.replace(tiny, metadata={**tiny.metadata, "spec_version": 7}), tmp_path / "g.h5")
    with pytest.raises(IntvitError, match="spec version must be 1, not 7"):
        load(tmp_path / "g.h5")


@pytest.mark.parametrize("site", ["blocks.0.norm1", "blocks.1.mlp.act"])
def test_only_a_softmax_has_a_mask(tiny, site):
    """The kernel ignored one at a LayerNorm, and the specification broke."""
    mask = np.ones(DIM if "norm" in site else 2 * DIM, np.int64)
    with pytest.raises(IntvitError, match=f"{site}: parameters must be those of"):
        check(changed(tiny, site, arrays={"mask": mask}))


def test_constants_may_be_stored_in_any_width(tiny, tmp_path):
    """In the narrowest type that holds them, and in 64 bits: the same integers by both backends, whatever is fused."""
    images = np.random.default_rng(3).integers(-128, 128, (2, 1, 8, 8)).astype(np.int8)
    expected = Engine(tiny).run(images)

    def narrowest(array):
        kinds = (np.int8, np.int16, np.int32, np.int64)
        return array.astype(next(k for k in kinds if np.array_equal(array.astype(k), array)))

    for store in (narrowest, lambda array: array.astype(np.int64)):
        nodes = tuple(
            dataclasses.replace(n, arrays={key: store(array) for key, array in n.arrays.items()}) for n in tiny.nodes
        )
        save(dataclasses.replace(tiny, nodes=nodes), tmp_path / "g.h5")
        for backend in ("kernel", "spec"):
            found = Engine(load(tmp_path / "g.h5"), backend).run(images)
            assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
def test_small_multipliers_in_narrow_types(tiny, kind):
    """A requantization whose m and e fit 8 bits, stored so, fused and by itself."""
    name = "blocks.0.attn.qkv.quant"
    node = next(n for n in tiny.nodes if n.name == name)
    m, e = np.full(node.arrays["m"].shape, -128), np.full(node.arrays["e"].shape, 20)
    images = np.random.default_rng(3).integers(-128, 128, (2, 1, 8, 8)).astype(np.int8)
    results = []
    for stored in (kind, np.int64):
        graph = changed(tiny, name, arrays={"m": m.astype(stored), "e": e.astype(stored)})
        check(graph)
        results += [Engine(graph, backend).run(images) for backend in ("kernel", "spec")]
        results.append({k: v for k, v in Engine(graph).run(images, wanted=[name, *graph.outputs]).items() if k != name})
    for found in results[1:]:
        assert all(np.array_equal(found[key], results[0][key]) for key in results[0])
