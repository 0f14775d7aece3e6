"""What-if: deviations that are put into a graph, in both backends and as lowered; what they do to images; `sites`."""

import csv
import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_graph import small_graph, small_images

from intvit.analysis import whatif
from intvit.analysis.inject import KINDS, inject, matched
from intvit.analysis.injections import INDEXED, USAGE, parse
from intvit.analysis.sites import sites
from intvit.engine import Engine, quantize_images
from intvit.engine.evaluate import prepare_in
from intvit.errors import IntvitError
from intvit.graph.check import check
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Graph, Node, Tensor
from intvit.graph.operators.accumulators import numerics_of
from intvit.graph.operators.word import output_of
from intvit.graph.store import load, save
from intvit.kernels.word import word as fast_word
from intvit.lowering.recipe import build_recipe
from intvit.spec.word import word

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "requantize:rounding=floor",
    "fc.quant:rounding=half_away",
    "*.quant:overflow=wrap",
    "requantize:multiplier_bits=6",
    "sum:multiplier_bits=-20",
    "sum:product_bits=24,wrap",
    "sum:rounded_bits=12,wrap",
    "requantize:numerics=tflite_double",
    "sum:numerics=tosa_single",
    "fc:accumulator_bits=16,wrap",
    "fc:accumulator_bits=16,saturate",
    "av:accumulator_bits=20,saturate_end",
    "qk:accumulator_bits=16,saturate",
    "*:output_bits=-2",
    "fc:output_bits=10,wrap",
    "fc:output_bits=4,saturate,input",
    "*:bit=2,flip",
    "weights:bit=7,stuck1",
    "codes:bit=4,flip",
    "codes:bit=0,stuck1",
    "codes:output_bits=3",
    "av:bit=1,stuck1,input",
    "av:bit=7,flip,input1",
    "norm:drop_lsb=9",
    "sum:drop_lsb=3,input1",
    "fc.quant:bit=7,flip@0,2,3",
    "fc:drop_lsb=2,input@5",
    "weights:method=ivit",
    "codes:method=ivit",
    "weights:method=ivit,out_bits=6",
    "act:method=ivit",
    "norm:method=ibert,shift=2",
]


class Images:
    """Images in memory, as whatever reads them sees them."""

    def __init__(self, images, labels=None):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def read(self, start, stop):
        return self.images[start:stop]


def changed_by(graph, *texts, **more):
    return inject(graph, [parse(text) for text in texts], **more)


def outputs_of(graph, images, names=None):
    return Engine(graph).evaluate(quantize_images(graph, images), list(names or graph.tensors))


# ------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize(
    ("text", "pattern", "kind", "value", "words", "index"),
    [
        ("a:rounding=floor", "a", "rounding", "floor", (), None),
        ("a:0:bit=3,flip@1,2", "a:0", "bit", "3", ("flip",), (1, 2)),
        (" b*: accumulator_bits = 20 , wrap ", " b*", "accumulator_bits", "20", ("wrap",), None),
        ("softmax.ivit:method=ibert,n=-3", "softmax.ivit", "method", "ibert", ("n=-3",), None),
        ("a@b:drop_lsb=1,input1", "a@b", "drop_lsb", "1", ("input1",), None),
    ],
)
def test_what_is_read(text, pattern, kind, value, words, index):
    found = parse(text)
    assert (found.pattern, found.kind, found.value, found.words, found.index) == (pattern, kind, value, words, index)


def test_every_kind_is_explained():
    assert list(KINDS) == list(USAGE)
    assert [kind for kind, text in USAGE.items() if "@INDEX" in text] == list(INDEXED)
    assert all(text.startswith(f"{kind}=") for kind, text in USAGE.items())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "SITE:KIND=VALUE"),
        ("fc:bit", "SITE:KIND=VALUE"),
        (":bit=1", "SITE:KIND=VALUE"),
        ("fc:bit=", "SITE:KIND=VALUE"),
        ("fc:bit=1,,flip", "SITE:KIND=VALUE"),
        ("fc:colour=red", "kind must be one of rounding"),
        ("fc:bit=1,flip@a", "index of an element"),
        ("fc:bit=1,flip@-1", "index of an element"),
        ("fc:bit=1,flip@²", "index of an element"),
        ("fc:output_bits=3@1", "@INDEX must go with one of bit, drop_lsb"),
        ("nowhere:bit=1,flip", "nowhere: must match a site"),
        ("v:bit=1,flip", "v: must match a site"),
        ("fc:rounding=floor", "of requantize, not of linear (behind it stands fc.quant)"),
        ("act:accumulator_bits=20,wrap", "must be of linear, log2_matmul, matmul, not of gelu"),
        ("fc:method=ivit", "not of linear"),
        ("sum:rounding=up", "must be 'half_even'"),
        ("sum:rounding=floor,wrap", "what follows must be nothing, not 'wrap'"),
        ("sum:overflow=clip", "'saturate' or 'wrap', not 'clip'"),
        ("sum:multiplier_bits=3", "integer in 4..32, not 3"),
        ("sum:multiplier_bits=-29", "integer in 4..32, not -29"),
        ("sum:multiplier_bits=1e1", "integer in 4..32, not 1e1"),
        ("sum:product_bits=7", "integer in 8..96, not 7"),
        ("sum:rounded_bits=65", "integer in 4..64, not 65"),
        ("sum:numerics=mine", "one of hawq"),
        ("fc:accumulator_bits=20", "must say one of saturate, saturate_end, wrap, raise, prove, and says none"),
        ("fc:accumulator_bits=15,wrap", "integer in 16..64, not 15"),
        ("fc:accumulator_bits=16,wrap,raise", "says wrap, raise"),
        ("fc:accumulator_bits=16,prove", "must be proven to fit 16 bits"),
        ("fc:output_bits=32", "integer in 2..31, not 32"),
        ("fc:output_bits=-31", "integer in 2..31, not -31"),
        ("fc:output_bits=3,floor", "must be one of saturate, wrap"),
        ("fc:bit=32,flip", "integer in 0..31, not 32"),
        ("codes:bit=5,flip", "integer in 0..4, not 5"),
        ("fc:bit=-33,flip", "integer in 0..31, not -33"),
        ("fc:bit=3", "must say one of stuck0, stuck1, flip"),
        ("fc:bit=3,flip@12", "element of the shape 1,3,4, as 0,3,17, not 12"),
        ("fc:bit=3,flip@0,3,0", "element of the shape 1,3,4"),
        ("fc:bit=3,flip,input1", "input1: must be one of its 1 inputs"),
        ("fc:drop_lsb=0", "integer in 1..31, not 0"),
        ("act:method=swish", "gelu method must be one of"),
        ("act:method=ivit,n=3", "must be an option of gelu.ivit.v1"),
        ("weights:method=ivit,out_bits=40", "out_bits must be an integer in 1..32"),
        ("norm:method=ibert", "needs a shift, which layernorm.ivit.v1 has not"),
        ("norm:method=ibert,shift=32", "shift"),
        ("norm:method=fqvit", "lower the model with it"),
        ("norm:method=ivit,shift=3", "must be a constant of layernorm.ivit.v1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(text, said):
    with pytest.raises(IntvitError) as error:
        changed_by(small_graph(), text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------- words


def test_words_by_hand():
    row = [200, -200, 5, -6]
    assert word(row, 8, "saturate") == [127, -128, 5, -6]
    assert word(row, 8, "wrap") == [-56, 56, 5, -6]
    assert word(row, 64, "wrap") == row
    assert word([5] * 3, 4, "wrap", keep=[~1, ~4, -1], force=[0, 0, -8]) == [4, 1, -3]
    assert word([5, -5], 4, "wrap", flip=[-8, -8]) == [-3, 3]
    assert word([], 4, "wrap") == []


@given(st.data())
def test_kernel_of_a_word_is_its_specification(data):
    bits = data.draw(st.integers(2, 64))
    inside = st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    row = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6))
    keys = data.draw(st.sets(st.sampled_from(["keep", "force", "flip"])))
    masks = {key: data.draw(st.lists(inside, min_size=len(row), max_size=len(row))) for key in sorted(keys)}
    overflow = data.draw(st.sampled_from(["saturate", "wrap"]))
    arrays = {key: np.array(mask, np.int64) for key, mask in masks.items()}
    found = fast_word(np.array(row, np.int64), bits, overflow, **arrays)
    assert found.tolist() == word(row, bits, overflow, **masks)
    assert all(-(1 << (bits - 1)) <= y < 1 << (bits - 1) for y in found.tolist())


def test_a_word_that_does_not_say_what_it_is_is_refused():
    graph = changed_by(small_graph(), "fc:bit=3,flip", "fc:output_bits=9")
    words = [node for node in graph.nodes if node.op == "word"]
    assert [node.name for node in words] == ["fc.word", "fc.word'"]
    name = words[0].output
    for change in ({"bound": 7}, {"dtype": IntType(31)}, {"zero_point": 1}, {"shape": (1, 2, 4)}):
        with pytest.raises(IntvitError, match=r"fc\.word"):
            check(dataclasses.replace(graph, tensors={**graph.tensors, name: dataclasses.replace(
                graph.tensors[name], **change)}))  # fmt: skip
    for change in (
        {"attrs": {"bits": 32}},
        {"attrs": {"bits": 65, "overflow": "wrap"}},
        {"attrs": {"bits": 32, "overflow": "clip"}},
        {"arrays": {"flip": np.array([1 << 31])}},
        {"arrays": {"flip": np.zeros((2, 3, 4), np.int64)}},
        {"arrays": {"other": np.array([1])}},
    ):
        nodes = tuple(dataclasses.replace(n, **change) if n is words[0] else n for n in graph.nodes)
        with pytest.raises(IntvitError, match=r"fc\.word"):
            check(dataclasses.replace(graph, nodes=nodes))


# ------------------------------------------------------------------------------------------- both backends


@pytest.mark.parametrize("text", SMALL)
def test_both_backends_compute_the_changed_graph(text, tmp_path):
    """Fused, strict, node by node and by the specification; stored and read again."""
    graph, images = small_graph(), small_images(3)
    changed = changed_by(graph, text)
    check(changed)
    assert changed.content_hash != graph.content_hash
    assert changed.metadata["injected"] == [text]
    values = Engine(changed).evaluate(images, list(changed.tensors))
    for name, tensor in changed.tensors.items():
        assert np.abs(values[name].astype(object)).max() <= tensor.max_abs, name
    for node in changed.nodes:
        given = [values[name] for name in node.inputs]
        for backend in ("kernel", "spec"):
            np.testing.assert_array_equal(prepare_in(changed, node, backend)(given), values[node.output], node.name)
    for engine in (Engine(changed), Engine(changed, strict=True), Engine(changed, "spec")):
        found = engine.evaluate(images, changed.outputs)
        for name in changed.outputs:
            np.testing.assert_array_equal(found[name], values[name])
    save(changed, tmp_path / "g.h5")
    assert load(tmp_path / "g.h5").content_hash == changed.content_hash


@pytest.mark.parametrize(
    "texts",
    [
        ["*:drop_lsb=1", "requantize:rounding=floor"],
        ["softmax:bit=3,stuck0", "*.qkv:accumulator_bits=16,saturate_end"],
        ["softmax:method=fqvit", "gelu:method=ivit_tvm", "requantize:multiplier_bits=8"],
        ["requantize:numerics=cmsis_nn", "*.matmul_av:bit=1,flip,input", "*.matmul_qk:output_bits=16,wrap"],
    ],
)
def test_a_whole_model_is_the_same_fused_paired_and_by_itself(vit, mixed, texts):
    changed, images = changed_by(mixed, *texts), vit.test.read(0, 2)
    alone = outputs_of(changed, images, changed.outputs)["logits"]
    pair, twins = whatif.paired(mixed, changed)
    check(pair)
    both = Engine(pair, strict=True).run(images, wanted=["logits", twins["logits"]])
    np.testing.assert_array_equal(both[twins["logits"]], alone)
    np.testing.assert_array_equal(both["logits"], outputs_of(mixed, images, ["logits"])["logits"])


# ------------------------------------------------------------------------------------------- means what it says


def lowered(vit, **recipe):
    return vit.lower(build_recipe({"preset": "published", "bits": 8, **recipe}))


@pytest.mark.parametrize(
    ("texts", "recipe"),
    [
        (["*:rounding=floor"], {"numerics": {"rounding": "floor"}}),
        (["*:numerics=tflite_double"], {"numerics": "tflite_double"}),
        (["*:overflow=wrap"], {"numerics": {"output_overflow": "wrap"}}),
        (["*:multiplier_bits=9"], {"numerics": {"multiplier_bits": 9}}),
        (["*:accumulator_bits=16,wrap"], {"numerics": {"accumulator_bits": 16, "accumulator": "wrap"}}),
        (["softmax:method=ivit"], {"softmax": {"method": "ivit"}}),
        (["gelu:method=ivit", "softmax:method=fqvit"], {"gelu": {"method": "ivit"}, "softmax": {"method": "fqvit"}}),
        (["gelu:method=ibert,n=3"], {"gelu": {"method": "ibert", "n": 3}}),
        (["layernorm:method=ivit"], {"layernorm": {"method": "ivit"}}),
    ],
)
def test_a_change_is_what_lowering_would_have_made(vit, texts, recipe):
    """But for the last requantization, which is no part of a datapath."""
    base = {"softmax": {"method": "ibert"}, "gelu": {"method": "ibert"}, "layernorm": {"method": "ibert"}}
    wanted, images = lowered(vit, **base | recipe), vit.test.read(0, 2)
    changed = changed_by(lowered(vit, **base), *texts)
    one, two = (outputs_of(graph, images, ["head"])["head"] for graph in (wanted, changed))
    np.testing.assert_array_equal(one, two)
    for node in wanted.nodes:
        if node.name == "logits":
            continue
        other = changed.node(node.name)
        assert (other.op, other.attrs) == (node.op, node.attrs)
        assert all(np.array_equal(other.arrays[key], array) for key, array in node.arrays.items()), node.name
        assert changed.tensors[node.output].dtype == wanted.tensors[node.output].dtype
        assert changed.tensors[node.output].bound == wanted.tensors[node.output].bound
        np.testing.assert_array_equal(changed.tensors[node.output].scale, wanted.tensors[node.output].scale)


@pytest.mark.parametrize("first", [True, False])
def test_a_scale_changes_through_a_word_too(vit, first):
    base, texts = {"softmax": {"method": "ibert"}}, ["softmax:method=ivit", "*.matmul_av:drop_lsb=1,input"]
    changed = changed_by(lowered(vit, **base), *(texts if first else texts[::-1]))
    wanted = lowered(vit, softmax={"method": "ivit"}).node("blocks.0.attn.context.quant")
    found = changed.node("blocks.0.attn.context.quant")
    assert all(np.array_equal(found.arrays[key], array) for key, array in wanted.arrays.items())


def test_bits_by_hand():
    graph, images = small_graph(), small_images(2)
    golden = outputs_of(graph, images)

    def of(text, name="fc.quant"):
        return outputs_of(changed_by(graph, text), images)[name].astype(np.int64)

    q = golden["fc.quant"].astype(np.int64)
    assert np.array_equal(of("fc.quant:drop_lsb=3"), q // 8 * 8)
    assert np.array_equal(of("fc.quant:output_bits=6"), np.clip(q, -32, 31))
    assert np.array_equal(of("fc.quant:output_bits=-2,wrap"), (q + 32) % 64 - 32)
    assert np.array_equal(of("fc.quant:bit=7,stuck1"), np.where(q < 0, q, q - 128))
    assert np.array_equal(of("fc.quant:bit=0,stuck0"), q - q % 2)
    assert np.array_equal(of("fc.quant:bit=1,flip"), q + np.where(q // 2 % 2 == 1, -2, 2))
    one = q.copy()
    one[:, 0, 1, 2] = one[:, 0, 1, 2] // 4 * 4
    assert np.array_equal(of("fc.quant:drop_lsb=2@0,1,2"), one)
    assert np.array_equal(of("fc.quant:drop_lsb=2@6"), one)
    weight, x = graph.node("fc").arrays["weight"].astype(np.int64), images.astype(np.int64) // 4 * 4
    assert np.array_equal(of("fc:drop_lsb=2,input", "fc"), x @ weight.T + graph.node("fc").arrays["bias"])
    codes = golden["codes"].astype(np.int64)
    assert np.array_equal(of("codes:bit=4,stuck1", "codes"), np.full_like(codes, -1))
    assert np.array_equal(of("codes:bit=2,stuck0", "codes"), np.where(codes < 0, -1, codes & ~4))


def test_an_input_is_changed_for_its_reader_alone():
    graph, images = small_graph(), small_images(2)
    golden, changed = outputs_of(graph, images), outputs_of(changed_by(graph, "qk:bit=3,flip,input1"), images)
    differ = {name for name in golden if not np.array_equal(golden[name], changed[name])}
    assert "qk" in differ
    assert not {"v", "av", "fc.quant"} & differ


def test_changes_of_one_site_follow_one_another():
    graph, images = small_graph(), small_images(2)
    q = outputs_of(graph, images)["fc.quant"].astype(np.int64)
    first = changed_by(graph, "fc.quant:drop_lsb=2", "fc.quant:bit=0,stuck1")
    second = changed_by(graph, "fc.quant:bit=0,stuck1", "fc.quant:drop_lsb=2")
    assert np.array_equal(outputs_of(first, images)["fc.quant"], q // 4 * 4 + 1)
    assert np.array_equal(outputs_of(second, images)["fc.quant"], q // 4 * 4)
    again = changed_by(changed_by(graph, "fc.quant:drop_lsb=2"), "fc.quant:bit=0,stuck1")
    assert again.metadata["injected"] == ["fc.quant:drop_lsb=2", "fc.quant:bit=0,stuck1"]


def test_nothing_before_a_change_is_touched(vit, mixed):
    changed = changed_by(mixed, "blocks.3.*:rounding=floor")
    names = [node.name for node in mixed.nodes]
    first = names.index("blocks.3.norm1.quant")
    assert all(a is b for a, b in zip(mixed.nodes[:first], changed.nodes[:first], strict=True))
    assert whatif.reaches(mixed, changed) == {node.output for node in mixed.nodes[first:]}
    assert whatif.reaches(mixed, mixed) == set()
    assert numerics_of(changed.node("logits")) == numerics_of(mixed.node("logits"))


def test_a_pattern_may_name_more_than_fits(mixed):
    found = matched(mixed, parse("blocks.0.*:rounding=floor"))
    assert {node.op for node in found} == {"requantize"}
    assert len(found) == 11
    with pytest.raises(IntvitError, match="zero point"):
        changed_by(zero_pointed(), "y:output_bits=4")


def zero_pointed():
    x, y = (Tensor(n, (2,), IntType(8), np.array(1.0), zero_point=z) for n, z in (("x", 0), ("y", -100)))
    arrays = {"m": np.array([1 << 30]), "e": np.array([30]), "residual": np.array([-100])}
    arrays |= {"residual_m": np.array([1 << 30]), "residual_e": np.array([30])}
    graph = Graph(("x",), ("y",), (Node("requantize", "y", ("x",), "y", {"bits": 8}, arrays),), {"x": x, "y": y})
    check(graph)
    return graph


def test_a_zero_point_is_no_multiplier():
    graph = zero_pointed()
    changed = changed_by(graph, "y:multiplier_bits=5")
    assert np.array_equal(changed.node("y").arrays["residual_m"], graph.node("y").arrays["residual_m"])
    assert changed.node("y").arrays["m"].tolist() == [8]
    q = np.arange(-128, 128).reshape(-1, 2)
    np.testing.assert_array_equal(Engine(changed).evaluate(q, ["y"])["y"], np.clip(q - 100, -128, 127))


# ------------------------------------------------------------------------------------------- what it does


def test_differences_by_hand():
    tensor = Tensor("t", (3,), IntType(8), np.array([0.5, 1.0, 2.0]), zero_point=1)
    one, two = np.array([[1, 3, -1], [1, 1, 2]], np.int8), np.array([[1, 3, -1], [5, 1, 0]], np.int8)
    found = whatif.differences(one, two, tensor, tensor)
    assert found["changed"].tolist() == [0, 2]
    assert found["largest"].tolist() == [0, 4]
    assert found["signal"].tolist() == [4 + 16, 4]
    assert found["noise"].tolist() == [0, 4 + 16]
    wide = dataclasses.replace(tensor, dtype=IntType(64), scale=np.array(1.0))
    ends = np.array([[2**63 - 1, 0, 0]]), np.array([[-(2**63), 0, 0]])
    assert whatif.differences(*ends, wide, wide)["largest"].tolist() == [2.0**64]
    other = dataclasses.replace(tensor, scale=np.array(0.25), zero_point=0)
    found = whatif.differences(one, two, tensor, other)
    assert np.isnan(found["changed"]).all()
    assert found["noise"][1] == 1.25**2 + 0.25**2 + 2**2
    codes = dataclasses.replace(tensor, encoding="log2", scale=np.array(1.0), zero_point=0)
    found = whatif.differences(np.array([[-1, 0, 3]]), np.array([[-1, 1, 3]]), codes, codes)
    assert (found["largest"][0], found["signal"][0], found["noise"][0]) == (1, 1 + 2.0**-6, 0.25)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0, 0.3085), (9, 10, 0.5550, 0.9975), (10, 10, 0.6915, 1), (50, 100, 0.3983, 0.6017)],
)
def test_interval_of_a_share(k, n, low, high):
    """Clopper and Pearson, as tables have it."""
    assert whatif.binomial(k, n) == pytest.approx((low, high), abs=5e-5)


def findings(graph, *texts, n=8, labels=None, **options):
    source = Images(small_images(n), labels)
    return whatif.whatif(graph, source, [parse(text) for text in texts], **options)[0]


def test_effects_are_those_of_two_runs():
    graph, images, texts = small_graph(), small_images(8), ["fc.quant:rounding=floor", "norm:bit=20,flip"]
    golden, changed = (outputs_of(g, images) for g in (graph, changed_by(graph, *texts)))
    found = findings(graph, *texts, batch=3, threads=2)
    assert [each.site for each in found.sites] == [n.name for n in graph.nodes if n.name not in ("fc", "v")]
    assert (found.images, found.untouched) == (8, 1)
    for each in found.sites:
        a, b = (values[each.site].astype(np.float64) for values in (golden, changed))
        assert each.changed == pytest.approx(np.mean(a != b)), each.site
        assert each.largest == np.abs(a - b).max()
        if each.site not in ("norm", "codes"):  # one scale
            power = np.inf if np.array_equal(a, b) else 10 * np.log10(np.sum(a**2) / np.sum((a - b) ** 2))
            assert each.sqnr == pytest.approx(power), each.site
    assert {each.site for each in found.sites if each.injected} == {"fc.quant", "norm"}
    assert found.injected == {"fc.quant": (texts[0],), "norm": (texts[1],)}
    assert found.outputs.agreement is None  # no classes


def test_results_do_not_depend_on_batches_and_threads():
    graph = small_graph()
    one, two = (findings(graph, "*:drop_lsb=1", isolated=True, batch=b, threads=t) for b, t in ((1, 1), (5, 2)))
    assert one == two


def test_a_site_alone_is_a_run_of_its_own():
    graph = small_graph()
    found = findings(graph, "requantize:rounding=floor", "fc.quant:bit=0,flip", isolated=True)
    assert [each.effect.site for each in found.alone] == ["fc.quant", "sum"]
    first = findings(graph, "fc.quant:rounding=floor", "fc.quant:bit=0,flip")
    second = findings(graph, "sum:rounding=floor")
    assert [each.outputs for each in found.alone] == [first.outputs, second.outputs]
    assert found.alone[0].effect == first.sites[0]
    assert second.outputs.sqnr.value == math.inf  # `sum` does not lead to the first output
    assert second.outputs.changed.value == 0


def test_classes_and_labels(vit, mixed):
    labels = np.array(vit.test.labels[:24])
    source = Images(vit.test.read(0, 24), labels)
    changed = changed_by(mixed, "blocks.1.norm1.quant:output_bits=4")
    logits = [outputs_of(g, source.images, ["logits"])["logits"].argmax(axis=1) for g in (mixed, changed)]
    found, graph = whatif.whatif(mixed, source, [parse("blocks.1.norm1.quant:output_bits=4")])
    assert graph.content_hash == changed.content_hash
    assert found.outputs.agreement.value == np.mean(logits[0] == logits[1]) < 1
    assert found.outputs.agreement.low < found.outputs.agreement.value < found.outputs.agreement.high
    assert found.outputs.golden_top1 == np.mean(logits[0] == labels)
    assert found.outputs.top1 == np.mean(logits[1] == labels)
    assert found.outputs.gain.value == pytest.approx(found.outputs.top1 - found.outputs.golden_top1)
    unlabelled = whatif.whatif(mixed, Images(source.images), [parse("blocks.1.norm1.quant:output_bits=4")])[0].outputs
    assert (unlabelled.top1, unlabelled.agreement) == (None, found.outputs.agreement)
    single = whatif.whatif(mixed, Images(source.images[:1]), [parse("head:bit=9,flip")])[0].outputs
    assert single.sqnr.low is single.changed.low is None


def test_names_that_are_taken(mixed):
    """Of words and twins, where a model has such names already."""
    graph = changed_by(small_graph(), "fc:bit=1,flip")
    again = changed_by(graph, "fc:bit=2,flip", "fc.word:bit=3,flip", "av:drop_lsb=1,input", "av:drop_lsb=2,input")
    assert len({node.name for node in again.nodes}) == len(again.nodes)
    pair, _ = whatif.paired(graph, again)
    check(pair)
    check(whatif.paired(pair, changed_by(pair, "fc:bit=7,flip"))[0])


# ------------------------------------------------------------------------------------------- the commands


@pytest.mark.parametrize("command", ["whatif", "sites"])
def test_help_has_an_example(cli, command):
    status, out, _ = cli(command, "--help")
    assert status == 0
    text = " ".join(out.split())
    assert f"Example: intvit {command}" in text
    if command == "whatif":
        words = "".join(out.split())
        assert all("".join(usage.split()) in words for usage in USAGE.values())


def test_whatif_on_the_command_line(cli, mixed_path, mixed, tmp_path):
    files = ["-o", tmp_path / "changed.h5", "--csv", tmp_path / "w.csv"]
    options = ["--inject", "blocks.5.*.quant:rounding=floor", "--inject", "head:bit=20,flip@3", "--limit", "12"]
    status, out, err = cli("whatif", mixed_path, "fashion-mnist:test", *options, "--isolated", *files)
    assert status == 0, err
    assert "rounding=floor" in out
    assert "same class as golden" in out
    assert "images: uint8 / 255" in err
    lines = list(csv.DictReader((tmp_path / "w.csv").read_text().splitlines()))
    everything = [line for line in lines if line["run"] == "all"]
    order = [node.name for node in mixed.nodes]
    assert [order.index(line["site"]) for line in everything] == sorted(
        order.index(line["site"]) for line in everything
    )
    assert everything[-1]["site"] == "logits"
    assert everything[-1]["outputs_sqnr"]
    assert [line["site"] for line in lines if line["run"] == "alone"][-1] == "head"
    assert load(tmp_path / "changed.h5").metadata["injected"] == [options[1], options[3]]
    status, out, _ = cli("whatif", mixed_path, "fashion-mnist:test", *options, "--json")
    found = json.loads(out)
    assert found["images"] == 12
    assert found["alone"] == []
    assert float(everything[-1]["changed"]) == found["sites"][-1]["changed"]
    assert found["injected"]["head"] == [options[3]]
    for command in (["eval", "fashion-mnist:test", "--limit", "4"], ["run", "fashion-mnist:test", "--limit", "1", "-o",
                    tmp_path / "l.npz"]):  # fmt: skip
        assert cli(command[0], tmp_path / "changed.h5", *command[1:])[0] == 0
    vectors = ["-o", tmp_path / "v", "--site", "head*"]
    assert cli("golden", "export", tmp_path / "changed.h5", "fashion-mnist:test", *vectors)[0] == 0
    assert cli("golden", "check", tmp_path / "v")[0] == 0


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--inject", "nowhere:rounding=floor"],
        ["--inject", "softmax:rounding=floor"],
        ["--inject", "head:bit=99,flip"],
        ["--inject", "head:accumulator_bits=16,raise"],
        ["--inject", "head:bit=1,flip", "--csv", "/no/such/folder/x.csv"],
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(cli, mixed_path, tmp_path, options):
    files = ["-o", tmp_path / "out" / "changed.h5"]
    status, out, err = cli("whatif", mixed_path, "fashion-mnist:test", "--limit", "2", *options, *files)
    assert status == 2
    assert out == ""
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("intvit:")]) <= 1
    assert not (tmp_path / "out").exists()


def test_sites_stand_in_execution_order(cli, mixed, mixed_path):
    status, out, _ = cli("sites", mixed_path, "--json")
    found = json.loads(out)
    assert status == 0
    names = [node.name for node in mixed.nodes]
    assert [names.index(each["site"]) for each in found] == sorted(names.index(each["site"]) for each in found)
    assert len(found) == 133
    status, out, _ = cli("sites", mixed_path, "--json", "--all")
    assert [each["site"] for each in json.loads(out)] == names
    status, out, _ = cli("sites", mixed_path, "--site", "blocks.0.attn.softmax")
    assert status == 0
    assert "softmax.ivit" in out
    assert "3x50x50" in out
    assert cli("sites", mixed_path, "--site", "nowhere")[0] == 2


def test_sites_count_every_constant():
    graph = small_graph()
    found = {each["site"]: each for each in sites(graph)}
    assert found["fc"]["constants"] == {"bias": [4], "weight": [4, 4]}
    assert found["fc"]["numbers"] == 20
    assert found["sum"]["constants"] == {key: [1] if key != "bits" else [] for key in ("bits", "e", "m", "residual_e",
                                                                                       "residual_m")}  # fmt: skip
    assert found["av"]["inputs"] == [
        {"tensor": "codes", "type": "s8", "shape": [1, 3, 4], "bound": 15, "encoding": "log2", "zero_point": 0},
        {"tensor": "v", "type": "s8", "shape": [1, 4, 3], "bound": None, "encoding": "linear", "zero_point": 0},
    ]
    assert found["act"]["method"] == "ibert"
    assert [each["site"] for each in sites(graph, ["av"], layout=True)] == ["av"]
    assert (
        output_of(Node("word", "w", ("v",), "w", {"bits": 5, "overflow": "wrap"}), graph.tensors["codes"], "w").bound
        == 15
    )


def test_the_document_shows_what_there_is(mixed):
    text = (ROOT / "docs" / "whatif.md").read_text()
    shown = re.findall(r"--inject '([^']+)'", text)
    assert len(shown) >= 6
    for each in shown:
        assert matched(mixed, parse(each)), each
    table = text[text.index("| kind |") : text.index("The last three")]
    assert re.findall(r"^\| `(\w+)=", table, re.MULTILINE) == list(KINDS)
