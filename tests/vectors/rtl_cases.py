"""Cases for the RTL: sites of the embedded ViT, few rows of them, and rows made by hand that reach the corners."""

import dataclasses
from pathlib import Path

import numpy as np

from intvit.engine import Engine, quantize_images
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Graph, Node, Tensor
from intvit.lowering.recipe import build_recipe
from intvit.vectors import part as parts
from intvit.vectors.bench import Job, read_top
from intvit.vectors.bundle import declared_type
from intvit.vectors.cases import Vectors, computed

RTL = Path(__file__).resolve().parents[2] / "golden" / "rtl"
SITES = ("norm1", "norm1.quant", "attn.qkv", "attn.softmax", "attn.matmul_av", "add1", "mlp.act")
ROWS = 3


def module_of(node):
    """The module of golden/rtl that computes a node."""
    if node.op == "requantize":
        return "requantize_add" if "residual_m" in node.arrays else "requantize"
    return f"{node.op}_{node.attrs['method']}" if "method" in node.attrs else node.op


def job(case, module=None, folder=RTL, word=None):
    return Job(case, read_top(folder / f"{module or module_of(case.part.nodes[0])}.sv"), word)


def real(vit, block, prefix, sites=SITES, rows=ROWS, **recipe):
    """Cases of one block of the embedded ViT on one image, cut to some rows; products of activations to one head."""
    graph = vit.lower(build_recipe(recipe))
    x = quantize_images(graph, vit.test.read(0, 1))
    found = {site: parts.part_of(graph, [f"blocks.{block}.{site}"]) for site in sites}
    names = {name for part in found.values() for name in part.inputs}
    values = Engine(graph).evaluate(x, sorted(names))
    cases = []
    for site, part in found.items():
        stimuli = {name: values[name] for name in part.inputs}
        if part.nodes[0].op in ("matmul", "log2_matmul"):
            part, stimuli = first_head(part, stimuli, rows)
        else:
            part, stimuli = first_rows(part, stimuli, rows)
        cases.append(computed(f"{prefix}.{site}", part, stimuli))
    return cases


def first_rows(part, stimuli, rows):
    """A part of one node that works on rows (its last axis), and its stimuli, cut to the first `rows` rows.

    Constants that differ by row are cut with them.
    """
    (node,) = part.nodes

    def cut(array, shape):
        return np.ascontiguousarray(array.reshape(-1, shape[-1])[:rows])

    arrays = dict(node.arrays)
    shape = part.tensors[node.output].shape
    for key in {"residual", "mask"} & set(arrays):
        if arrays[key].size > shape[-1]:
            arrays[key] = cut(np.broadcast_to(arrays[key], shape), shape)
    given = {
        name: np.stack([cut(image, part.tensors[name].shape) for image in array]) for name, array in stimuli.items()
    }
    (kept,) = {array.shape[1] for array in given.values()}
    tensors = {
        name: dataclasses.replace(tensor, shape=(kept, tensor.shape[-1])) for name, tensor in part.tensors.items()
    }
    return Graph(part.inputs, part.outputs, (dataclasses.replace(node, arrays=arrays),), tensors, part.metadata), given


def first_head(part, stimuli, rows):
    """A product (heads, R, K) x (heads, K, C), cut to two heads, some rows and a few columns."""
    a, b = part.inputs
    stimuli = {a: stimuli[a][:, :2, :rows], b: stimuli[b][:, :2, :, :5]}
    tensors = {name: dataclasses.replace(part.tensors[name], shape=stimuli[name].shape[1:]) for name in part.inputs}
    output = part.tensors[part.outputs[0]]
    tensors[output.name] = dataclasses.replace(output, shape=(2, rows, 5))
    return Graph(part.inputs, part.outputs, part.nodes, tensors, part.metadata), stimuli


def handmade(name, op, stimuli, in_bits=8, params=None, method=None, arrays=None, bits=None, row=None, numerics=None):
    """A case of one node on rows (R, C) of one image, or several stimuli; the output as wide as its values need."""
    attrs = {} if method is None else {"method": method, "version": 1, "params": params}
    if bits is not None:
        attrs["bits"] = bits
    if numerics is not None:
        attrs["numerics"] = numerics
    arrays = {key: np.asarray(values) for key, values in (arrays or {}).items()}
    given = [np.asarray(s)[None] for s in (stimuli if isinstance(stimuli, tuple) else (stimuli,))]
    widths = in_bits if isinstance(in_bits, tuple) else (in_bits,) * len(given)
    names = tuple(f"x{i}" for i in range(len(given)))
    shape = given[0].shape[1:] if row is None else (*given[0].shape[1:-1], row)
    scale = np.asarray(1.0)
    tensors = {n: Tensor(n, g.shape[1:], IntType(w), scale) for n, g, w in zip(names, given, widths, strict=True)}
    tensors["y"] = Tensor("y", shape, IntType(bits or 64), scale)
    part = Graph(names, ("y",), (Node(op, "y", names, "y", attrs, arrays),), tensors)
    wanted = parts.run(part, dict(zip(names, given, strict=True)), backend="spec")
    if bits is None:
        tensors["y"] = dataclasses.replace(tensors["y"], dtype=declared_type(wanted["y"]))
    return Vectors(name, part, (0,), dict(zip(names, given, strict=True)), wanted)


def rows_of(bits, columns, seed=0):
    """Equal values, one-hot, a ramp, extremes in turn, negative ones, and random ones, (8, columns)."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    rng = np.random.default_rng(seed)
    one_hot = np.full(columns, low)
    one_hot[columns // 2] = high
    turns = np.where(np.arange(columns) % 2, low, high)
    ramp = np.linspace(low, high, columns).astype(np.int64)
    negative = rng.integers(low, max(low // 2, low + 1), columns)
    equal = [np.full(columns, value) for value in (0, low, high)]
    return np.stack([*equal, one_hot, turns, ramp, negative, rng.integers(low, high, columns)])


def by_method(op, method, name, rows, bits, params, **arrays):
    return handmade(f"{op} {method} {name}", op, rows, bits, params, method, arrays)


def corners():
    """Every module where its arithmetic has an edge; sizes of 1 and primes."""
    yield from softmaxes()
    yield from gelus()
    yield from norms()
    yield from requantizations()
    yield from products()


def softmaxes():
    """Masks of every kind, sums that clamp and sums of 0, one element, shifts at both ends."""
    masked = np.random.default_rng(5).integers(0, 2, (8, 7))
    masked[0], masked[1] = 1, 0
    narrow, wide = rows_of(8, 7), rows_of(16, 37)
    p = {"x0": -20, "n": 15, "out_bits": 8}
    yield by_method("softmax", "ivit", "masked", narrow, 8, p, mask=masked)
    yield by_method("softmax", "ivit", "clamped sum", wide, 16, {**p, "x0": -(1 << 18), "out_bits": 16})
    yield by_method("softmax", "ivit", "one", rows_of(8, 1), 8, {"x0": -1, "n": 0, "out_bits": 32})
    p = {"x0": -14, "b": 54, "c": 1116, "n": 30, "m": 1970390814, "e": 56, "out_bits": 8}
    none = {"x0": -1, "b": 0, "c": 0}
    left = {"x0": -700, "b": 1500, "c": 3, "n": 3, "m": 1 << 31, "e": -2, "out_bits": 16}
    yield by_method("softmax", "ibert", "masked", narrow, 8, p, mask=masked[:1])
    yield by_method("softmax", "ibert", "zeros", rows_of(8, 5), 8, p | none)
    yield by_method("softmax", "ibert", "left shift", rows_of(16, 11), 16, p | left)
    p = {"x0": -14, "b": 54, "c": 1116, "n": 30, "bits": 4}
    fine = {"x0": -2363, "b": 9229, "c": 32452962, "bits": 8}
    yield by_method("softmax", "fqvit", "masked", narrow, 8, p, mask=masked)
    yield by_method("softmax", "fqvit", "wide", rows_of(16, 13), 16, p | fine)
    yield by_method("softmax", "fqvit", "zeros", rows_of(8, 3), 8, p | none | {"n": 0, "bits": 1})


def gelus():
    """A row whose exponential of -x_max saturates, constants per channel, coarse and fine."""
    yield by_method("gelu", "ivit", "steep", rows_of(8, 13), 8, {"x0": -1, "n": 23, "out_bits": 8})
    yield by_method("gelu", "ivit", "flat", rows_of(16, 11), 16, {"x0": -9000, "n": 23, "out_bits": 8})
    yield by_method("gelu", "ivit", "one", rows_of(8, 1), 8, {"x0": -12, "n": 0, "out_bits": 1})
    b, c, shift = [-1, -51, -9000, -51, -7], [0, -2771, -(1 << 40), -2771, -7], [0, -44, -(1 << 40), -44, -1]
    yield by_method("gelu", "ibert", "channels", rows_of(16, 5), 16, {"n": 6}, b=b, c=c, shift=shift)
    yield by_method("gelu", "ibert", "coarse", rows_of(8, 3), 8, {"n": 30}, b=[-51], c=[-2771], shift=[-1])


def norms():
    """No variance, one that the shift drops, roots that have not converged, biases far beyond 32 bits."""
    bias = [0, 268435456, -3, -268435456, 1 << 40, -(1 << 45), 7]
    for bits in (8, 16):
        rows = rows_of(bits, 7)
        yield by_method("layernorm", "ivit", str(bits), rows, bits, {}, bias=bias)
        yield by_method("layernorm", "ibert", str(bits), rows, bits, {"shift": bits // 4}, bias=bias)
        yield fqvit_norm(f"layernorm fqvit {bits}", rows, bits)
    yield by_method("layernorm", "ivit", "one", rows_of(8, 1), 8, {}, bias=[-5])
    yield by_method("layernorm", "ibert", "shifted out", rows_of(8, 3), 8, {"shift": 31}, bias=[1, 2, 3])
    yield fqvit_norm("layernorm fqvit one", rows_of(8, 1), 8)


def two_sites():
    """A product and its requantization, cut out as one part whose inner tensor is read outside too: two outputs."""
    rng = np.random.default_rng(7)
    scale = np.asarray(1.0)
    kinds = {"x": (8, 5), "a.h": (32, 3), "y": (8, 3)}
    tensors = {name: Tensor(name, (4, row), IntType(bits), scale) for name, (bits, row) in kinds.items()}
    arrays = {"weight": rng.integers(-128, 128, (3, 5)), "bias": np.array([1, -2, 1 << 18])}
    nodes = (
        Node("linear", "a.fc", ("x",), "a.h", {}, arrays),
        Node("requantize", "a/q", ("a.h",), "y", {"bits": 8}, {"m": np.array([1 << 30]), "e": np.array([38])}),
    )
    part = Graph(("x",), ("a.h", "y"), nodes, tensors)
    return computed("two sites", part, {"x": rows_of(8, 5)[None, 3:7]})


def products():
    rng = np.random.default_rng(6)
    a, weight, v = rows_of(8, 5), rng.integers(-128, 128, (3, 5)), rng.integers(-128, 128, (2, 5, 3))
    yield handmade("linear", "linear", a, 8, arrays={"weight": weight, "bias": [1 << 20, -(1 << 20), 0]}, row=3)
    yield handmade("linear without bias", "linear", a, 8, arrays={"weight": weight}, row=3)
    yield handmade("matmul", "matmul", (a.reshape(2, 4, 5), v), 8, row=3)
    yield handmade("log2_matmul", "log2_matmul", (rng.integers(-1, 16, (2, 4, 5)), v[..., :1]), (5, 8), row=1)


def fqvit_norm(name, rows, bits):
    """Gamma of either sign and 0, a scale from coarse to fine: N at both ends, M that saturates, offsets that clamp."""
    columns = rows.shape[1]
    sign = np.resize([1, -1, 0, 1, 1, -1, 1], columns)
    exp = np.resize([55, 56, 61, 20, 100, 57, 54], columns)
    gain = np.where(sign == 0, 0, (1 << 60) + 12345 * np.arange(columns))
    slope = [int(g) * columns for g in gain]
    halved = [max(0, s.bit_length() - 61) for s in slope]
    beta = np.resize([0, 1 << 60, 0, -(1 << 60), (1 << 60) + 1, -(1 << 61) + 1, 1 << 60], columns)
    arrays = {
        "factor": np.resize([1, 2, 4, 8], columns) if bits == 8 else np.ones(columns, int),
        "sign": sign,
        "gain": gain,
        "gain_exp": exp,
        "slope": [s >> h for s, h in zip(slope, halved, strict=True)],
        "slope_exp": [int(e) - h for e, h in zip(exp, halved, strict=True)],
        "bias": beta,
        "bias_exp": np.resize([61, 56, 61, 30, 10, 66, 62], columns),
    }
    return handmade(name, "layernorm", rows, bits, {}, "fqvit", arrays)


def requantizations():
    """Ties up and down with even and odd quotient, one beside them, both clamps, shifts of either sign."""

    def case(name, stimuli, in_bits, bits, **arrays):
        return handmade(name, "requantize", stimuli, in_bits, arrays=arrays, bits=bits)

    ties = np.array([[*range(-7, 8), 253, 254, 255, 256, 257, -255, -256, -257, -258]]).T
    half = {"m": [1 << 30], "e": [31]}
    yield case("requantize ties", ties, 16, 8, **half)
    for rounding in ("half_up", "half_away", "floor", "toward_zero"):
        attrs = {"arrays": half, "bits": 8, "numerics": {"rounding": rounding}}
        yield handmade(f"requantize {rounding}", "requantize", ties, 16, **attrs)
    extremes = np.array([-(1 << 31), (1 << 31) - 1, -1, 0, 1, 12345, -54321])
    grid = np.stack([np.roll(extremes, i) for i in range(len(extremes))])
    m = [1 << 31, -(1 << 31), 1924145320, -2111864262, 1 << 30, 1, 0]
    channels = {"m": m, "e": [31, 62, 37, 52, -3, 1200, -1100]}
    yield case("requantize channels", grid, 32, 16, **channels)
    yield case("requantize wide", grid.astype(np.int64) << 8, 40, 6, **channels)
    r = np.array([-3, -2, -1, 0, 1, 2, 3])
    pairs = np.repeat(r, 7).reshape(7, 7), np.tile(r, 7).reshape(7, 7)
    yield case("add streams", pairs, (8, 16), 3, **half, residual_m=[1 << 30], residual_e=[31])
    yield case("add memory", grid, 32, 32, **channels, residual=r * 10**8, residual_m=[1 << 31], residual_e=[-40])
    yield case("add zero point", ties, 16, 8, **half, residual=[-5], residual_m=[1 << 30], residual_e=[30])
