"""Directed stimuli: what they claim to hit is, what they claim unreachable is not, and mutants die of them."""

import dataclasses
import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import operator_mutants as om
import pytest

from intvit.errors import IntvitError
from intvit.graph.check import check_operator
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Graph, Node, Tensor
from intvit.graph.operators.methods import node_of
from intvit.kernels import registry
from intvit.lowering.recipe import build_recipe
from intvit.proofs.walk import prove
from intvit.spec import softmax
from intvit.spec.numerics import PRESETS, Numerics
from intvit.spec.requantize import requantize
from intvit.spec.taps import Changed, intermediates, listening
from intvit.vectors.directed import directed, words
from intvit.vectors.directed.congruence import bisect, first, least
from intvit.vectors.directed.cover import cover
from intvit.vectors.directed.requantize import Term, site_of
from intvit.vectors.directed.stream import Stream
from intvit.vectors.part import fitting, part_of, run

TESTS = Path(__file__).resolve().parent.parent
SITES = om.sites()
SLOW = ("layernorm.fqvit", "layernorm.ivit_tvm", "softmax", "silu", "quick_gelu", "gelu.ivit", "rmsnorm.ivit")
QUICK = [name for name in SITES if not name.startswith(SLOW)]
"""The others are in the slow tests."""


# ------------------------------------------------------------------------------------- arithmetic


def test_solutions_of_congruences_are_those_of_trying_every_operand():
    stream = Stream(1)
    for _ in range(3000):
        modulus, m, c = stream.within(1, 60), stream.within(-80, 80), stream.within(-80, 80)
        at = stream.within(-30, 30)
        to = at + stream.within(0, 60)
        values = [(m * x + c) % modulus for x in range(at, to + 1)]
        low = stream.within(0, modulus - 1)
        high = stream.within(low, modulus - 1)
        assert least(m, c, modulus, at, to) == at + values.index(min(values))
        assert first(m, c, modulus, low, high, at, to) == next(
            (at + i for i, v in enumerate(values) if low <= v <= high), None
        )


def test_an_interval_without_operands_has_no_solution():
    assert first(3, 0, 8, 0, 7, 5, 4) is None
    assert bisect(lambda x: x, 10, 0, 5) == 6


def test_the_stream_is_the_same_everywhere():
    stream = Stream(0)
    stream._state = 0  # the numbers of the published generator
    assert stream.words(2).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    assert stream.words(1).tolist() == [0x06C45D188009454F]
    assert sorted(Stream(7).shuffled(9)) == list(range(9))
    assert {Stream(3).within(-2, 1) for _ in range(1)} <= {-2, -1, 0, 1}


def test_a_cover_is_one_and_has_nothing_superfluous():
    sets = [{1, 2, 3}, {1, 4}, {2, 5}, {3, 6}, {9}]
    found = cover(sets, {1, 2, 3, 4, 5, 6, 7})
    assert set().union(*(sets[i] for i in found)) >= {1, 2, 3, 4, 5, 6}
    assert found == [1, 2, 3]


@pytest.mark.parametrize("name", [*PRESETS, "floor", "toward_zero", "half_away"])
def test_the_datapath_of_arrays_is_that_of_the_specification(name):
    """Every intermediate of the trace, against the taps."""
    how = PRESETS.get(name) or Numerics(rounding=name)
    stream = Stream(2, name)
    wide = how.multipliers[1].bit_length()
    for two in (False, True):
        n = 60
        x, r = (stream.integers(-40000, 40000, n) for _ in range(2))
        m, rm = (stream.integers(1, (1 << wide) - 1, n) for _ in range(2))
        e = stream.integers(max(how.shift_least, 0), min(how.shift_most, wide + 12), n)
        re = e if how.residual == "together" else stream.integers(max(how.shift_least, 0), min(how.shift_most, 40), n)
        second = {"residual": r.tolist(), "residual_m": rm.tolist(), "residual_e": re.tolist()} if two else {}
        taps = intermediates(requantize, x.tolist(), m.tolist(), e.tolist(), 8, numerics=how, **second)
        at = words.Operands(x, m, e, *((r, rm, re) if two else ())).exact()
        trace = words.run(at, how, 8)
        assert trace.y.tolist() == taps["y"]
        narrowings = {each.name: each.value.tolist() for each in trace.narrowings}
        for key in set(taps) - {"y", "product", "residual_product", "total"}:
            assert narrowings[key] == taps[key], key


# ---------------------------------------------------------------------------------------- coverage


@pytest.mark.parametrize("name", QUICK)
def test_nothing_is_missed_and_stimuli_fit_their_tensors(name):
    graph = SITES[name]
    found = directed(graph)
    assert found.coverage.of_status("missed") == ()
    assert found.coverage.counts["hit"] > 10
    for tensor in graph.inputs:
        fitting(graph, tensor, found.stimuli)
        assert len(found.stimuli[tensor]) == found.images == found.coverage.images
    text = json.dumps(found.coverage.value(), sort_keys=True)
    again = directed(graph)
    assert json.dumps(again.coverage.value(), sort_keys=True) == text
    assert all(np.array_equal(again.stimuli[k], v) for k, v in found.stimuli.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(SITES) - set(QUICK)))
def test_nothing_is_missed_at_the_slower_sites(name):
    assert directed(SITES[name]).coverage.of_status("missed") == ()


def test_another_seed_gives_other_stimuli_that_hit_as_much():
    one, two = (directed(SITES["requantize, ties"], seed=seed) for seed in (0, 1))
    assert not np.array_equal(one.stimuli["x"], two.stimuli["x"])
    assert one.coverage.counts == two.coverage.counts


def test_level_2_has_more_images_and_misses_nothing():
    for name in ("requantize, ties", "mean, 12", "linear", "matmul"):
        one, two = (directed(SITES[name], level=level) for level in (1, 2))
        assert two.images > one.images
        assert two.coverage.of_status("missed") == ()


def test_fewer_images_than_it_takes_miss_classes_and_say_so():
    found = directed(SITES["mean, 12"], most=1)
    assert found.images == 1
    assert found.coverage.of_status("missed")


@pytest.mark.parametrize("name", [name for name in SITES if name.startswith("requantize")])
def test_ties_are_ties_where_coverage_says_so(name):
    """By fractions, from the stimuli alone."""
    graph = SITES[name]
    site, found = site_of(graph, graph.nodes[0]), directed(graph)
    how = site.how
    if how.double_rounding or how.residual == "together":
        return
    seen = 0
    for each in found.coverage.classes:
        if not each.name.startswith(("rounded: tie, ", "residual_rounded: tie, ")) or each.status != "hit":
            continue
        t = int(each.name.startswith("residual"))
        x = found.stimuli[graph.nodes[0].inputs[t]][(each.image, *each.element)]
        group = max(each.group, 0)
        exact = Fraction(int(x) * int(site.m[t][group]), 2 ** int(site.e[t][group]))
        below = exact.__floor__()
        assert exact - below == Fraction(1, 2)
        assert ("odd" in each.name) == bool(below % 2)
        assert ("positive" in each.name) == (exact > 0)
        seen += 1
    assert seen or "lowered" in name


@pytest.mark.parametrize("name", ["requantize, ties", "requantize, lowered", "requantize, half up", "requantize, ita"])
def test_no_operand_contradicts_a_proof(name):
    """What is unreachable by a congruence, tried out over a part of its interval."""
    checked = 0
    for each in directed(SITES[name]).coverage.of_status("unreachable"):
        proof = each.proof or {}
        if not proof.get("residues") or not proof["operands"]:
            continue
        at, to = proof["operands"]
        x = np.arange(max(at, -(1 << 16)), min(to, 1 << 16) + 1).astype(object)
        rest = (x * proof["m"] + proof["c"]) % proof["modulus"]
        for low, high in proof["residues"]:
            assert not ((rest >= low) & (rest <= high)).any()
        checked += 1
    assert checked or name != "requantize, lowered"


def test_an_extreme_is_one():
    """No operand of the window comes nearer to a tie."""
    graph = SITES["requantize, ties"]
    site, coverage = site_of(graph, graph.nodes[0]), directed(graph).coverage
    for each in coverage["rounded: nearest below a tie, positive"]:
        m, e = int(site.m[0][each.group]), int(site.e[0][each.group])
        x = np.arange(1, 32768)
        product = x * m
        rest = product & ((1 << e) - 1)
        inside = (product >> e) < 127
        assert each.value == rest[inside & (rest < 1 << (e - 1))].max()


def test_clamps_are_met_exactly_and_one_past():
    for each, value in (("y above: last inside", 127), ("y below: last inside", -128)):
        classes = directed(SITES["requantize, ties"]).coverage[each]
        assert [c.value for c in classes] == [value] * 8


def test_of_two_terms_a_clamp_is_one_past_at_most():
    coverage = directed(SITES["requantize, residual"]).coverage
    ends = {"y above: last inside": 32767, "y above: first past": 32768, "y below: first past": -32769}
    assert {name: coverage[name][0].value for name in ends} == ends


def test_terms_know_the_operands_of_a_window():
    for m, how in ((5, Numerics()), (-5, Numerics()), (3, Numerics(rounding="floor")), (0, Numerics())):
        term = Term("", -100, 100, m, 3, how)
        for low, high in ((-4, 7), (0, 0), (200, 300)):
            inside = [x for x in range(-100, 101) if low <= term.rounded(x) <= high]
            assert term.between(low, high) == ((inside[0], inside[-1]) if inside else None)


def test_an_unreachable_tie_agrees_with_the_proofs(vit):
    """`intvit prove` decides ties by other means."""
    graph = vit.lower(build_recipe({"bits": 8, "numerics": {"multiplier_bits": 8}}))
    ties = {(t.site, t.name): t.reachable for t in prove(graph).ties}
    checked = set()
    for node in [n for n in graph.nodes if n.op == "requantize"][:14]:
        reachable = ties.get((node.name, "rounded"))
        if len(node.inputs) == 2 or reachable is None:
            continue
        coverage = directed(part_of(graph, [node.name])).coverage
        hit = any(c.status == "hit" for c in coverage.classes if c.name.startswith("rounded: tie, "))
        assert hit == bool(reachable), node.name
        checked.add(hit)
    assert checked


# ------------------------------------------------------------------------------------------- rows


def test_intermediates_are_at_their_proven_ends():
    coverage = directed(SITES["layernorm.ivit"]).coverage
    signals = {s.name: s for s in coverage.signals}
    assert signals["sum"].proven == signals["sum"].seen == (-96 * 32768, 96 * 32767)
    assert signals["delta"].proven == signals["delta"].seen
    for text in ("row: equal values", "row: all least", "row: all largest", "variance: 0",
                 "mean rounding: tie, odd quotient, negative"):  # fmt: skip
        assert coverage[text][0].status == "hit", text


def test_a_hit_is_where_coverage_says():
    found = directed(SITES["layernorm.ivit"])
    row = found.coverage["row: equal values"][0]
    values = found.stimuli["x"][(row.image, *row.element)]
    assert (values == values[0]).all()
    tie = found.coverage["mean rounding: tie, even quotient, positive"][0]
    total = int(found.stimuli["x"][(tie.image, *tie.element)].sum())
    assert total % 96 == 48
    assert total // 96 % 2 == 0


def test_the_shift_counts_of_a_softmax_are_all_there():
    coverage = directed(SITES["softmax.ivit"]).coverage
    assert all(coverage[f"quotient = {q}"][0].status == "hit" for q in range(16))
    assert coverage["argument clamp below: first past"][0].status == "hit"
    assert coverage["sum clamp above: first past"][0].status == "unreachable"
    assert "proven" in coverage["sum clamp above: first past"][0].reason


def test_masks_are_met_with_the_largest_element_hidden():
    coverage = directed(SITES["softmax.ibert, masked"]).coverage
    assert coverage["mask: none"][0].status == "hit"
    assert any(c.name.startswith("mask: largest element masked") for c in coverage.of_status("hit"))


def test_an_error_of_an_intermediate_is_seen_at_the_row_that_is_named():
    found = directed(SITES["layernorm.ibert"])
    each = found.coverage["mean + 1 is seen"][0]
    row = found.stimuli["x"][(each.image, *each.element)].tolist()
    node = SITES["layernorm.ibert"].nodes[0]
    method, params = om.node_method(node), om.method_params(node)
    with listening(Changed("mean", lambda v: v + 1)):
        assert method.spec(row, params) != intermediates(method.spec, row, params)["y"]


def test_changed_taps_change_only_the_one_they_name():
    p = softmax.IvitSoftmax(-20, 15, 8)
    right = intermediates(softmax.ivit, [12, -3, 40], p)
    with listening(Changed("factor", lambda v: v + 1)) as taps:
        softmax.ivit([12, -3, 40], p)
    assert taps["exp"] == right["exp"]
    assert taps["product"] != right["product"]


def test_a_method_of_a_package_of_somebody_else(monkeypatch):
    """It taps nothing: the classes are those of rows and of its output."""
    monkeypatch.syspath_prepend(str(TESTS / "plugin"))
    from pow2_softmax import POW2, Pow2Softmax

    monkeypatch.setitem(registry._table(), ("softmax", "pow2", 1), POW2)
    x = Tensor("x", (2, 3, 17), IntType(8), np.asarray(0.25))
    node, y = node_of(POW2, Pow2Softmax(2, 16, 8), "y", x, "y", 1.0)
    found = directed(Graph(("x",), ("y",), (node,), {"x": x, "y": y}, {}))
    names = {c.name for c in found.coverage.of_status("hit")}
    assert {"row: all least", "y: 0", "y: largest", "row: one-hot, last element"} <= names
    assert found.coverage.of_status("missed") == ()
    assert all(s.how == "not proven" for s in found.coverage.signals)
    sys.modules.pop("pow2_softmax", None)


def test_layout_tells_every_element_from_every_other():
    x = Tensor("x", (3, 5, 40), IntType(8), np.asarray(1.0))
    y = Tensor("y", (5, 3, 40), IntType(8), np.asarray(1.0))
    node = Node("transpose", "t", ("x",), "y", {"perm": [1, 0, 2]})
    found = directed(Graph(("x",), ("y",), (node,), {"x": x, "y": y}, {}))
    codes = found.stimuli["x"].reshape(found.images, -1).T
    assert len(np.unique(codes, axis=0)) == 600
    assert found.images == 2


# ------------------------------------------------------------------------------- odd sizes, bad input


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 3, 1), (7,), (1, 13)])
@pytest.mark.parametrize(
    ("operator", "name", "bits"), [("softmax", "ivit", 8), ("gelu", "ibert", 8), ("layernorm", "ivit", 16),
                                   ("rmsnorm", "ibert", 16), ("softmax", "fqvit", 2)],
)  # fmt: skip
def test_rows_of_one_element_and_of_primes(operator, name, bits, shape):
    graph = om.method_part(operator, name, shape, 0.05, bits)
    found = directed(graph)
    assert found.coverage.of_status("missed") == ()
    fitting(graph, "x", found.stimuli)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1, 1)])
def test_requantizations_of_any_rank(shape):
    x = Tensor("x", shape, IntType(16), np.asarray(1.0))
    arrays = {"m": np.array([3 << 28]), "e": np.array([32])}
    node = Node("requantize", "q", ("x",), "y", {"bits": 8}, arrays)
    y = Tensor("y", shape, IntType(8), np.asarray(1.0))
    check_operator(node, [x], y)
    found = directed(Graph(("x",), ("y",), (node,), {"x": x, "y": y}, {}))
    assert found.coverage.of_status("missed") == ()


@pytest.mark.parametrize(("m", "e"), [(0, 31), (1, 0), (1 << 30, -2), (1 << 30, 30), (-(1 << 31), 40), (77, 1100)])
def test_multipliers_that_round_nothing_or_everything(m, e):
    x = Tensor("x", (40, 2), IntType(16), np.asarray(1.0))
    graph = om.requantization([m], [e], x=x)
    assert directed(graph).coverage.of_status("missed") == ()


def test_words_of_64_bits():
    x = Tensor("x", (40, 2), IntType(64), np.asarray(1.0))
    graph = om.requantization([1 << 30, (1 << 30) + 12345], [40, 80], x=x)
    found = directed(graph)
    assert found.coverage.of_status("missed") == ()
    assert int(found.stimuli["x"].max()) == 2**63 - 1


def test_both_operands_one_tensor():
    x = Tensor("x", (40, 2), IntType(16), np.asarray(1.0))
    graph = om.requantization([3 << 28], [31], x=x, bits=16, residual=x, residual_m=[5 << 27], residual_e=[31])
    found = directed(graph)
    assert set(found.stimuli) == {"x"}
    assert found.coverage.counts["hit"] > 5
    square = Tensor("a", (2, 5, 5), IntType(8), np.asarray(1.0))
    node = Node("matmul", "p", ("a", "a"), "y")
    y = Tensor("y", (2, 5, 5), IntType(32), np.asarray(1.0), bound=5 * 128 * 128)
    found = directed(Graph(("a",), ("y",), (node,), {"a": square, "y": y}, {}))
    assert set(found.stimuli) == {"a"}


def test_an_accumulator_that_refuses_is_not_overrun():
    graph = om.linear_part(40, 6, Numerics(accumulator_bits=16, accumulator="raise"))
    found = directed(graph)
    run(graph, found.stimuli)
    reasons = {c.reason for c in found.coverage.of_status("unreachable")}
    assert "the policy refuses an image with such a sum" in reasons


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 3}, "level: must be one of 1, 2, not 3"),
        ({"level": True}, "level: must be one of 1, 2, not True"),
        ({"seed": -1}, r"seed: must be an integer in 0..2\*\*63 - 1, not -1"),
        ({"seed": 1.0}, "seed: must be an integer"),
        ({"most": 0}, "most: must be an integer of at least 1, not 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(IntvitError, match=message):
        directed(SITES["mean, 4"], **options)


def test_a_part_of_several_sites_is_refused():
    graph = SITES["mean, 4"]
    with pytest.raises(IntvitError, match="directed: part must have one site, not 2"):
        directed(dataclasses.replace(graph, nodes=graph.nodes * 2))


# ---------------------------------------------------------------------------------------- mutants


def test_half_up_survives_4096_random_vectors_and_no_directed_ones():
    """Random operands of 24 bits, by a multiplier of 31 bits whose ties are rare."""
    x = Tensor("x", (64, 1), IntType(24), np.asarray(1.0))
    graph = om.requantization([3 << 12], [28], x=x)
    mutant = next(m for m in om.mutants() if m.name == "rounding half_up")
    faulty = mutant.build(graph, graph.nodes[0])
    many = om.random_stimuli(graph, 64)
    given = directed(graph)
    assert given.images == 1
    assert not om._differs(faulty, many, run(graph, many)["y"])
    assert om._differs(faulty, given.stimuli, run(graph, given.stimuli)["y"])


def test_there_are_enough_mutants_at_every_operator_and_method():
    assert len(om.mutants()) >= 60
    for site in SITES:
        assert any(om.fnmatch.fnmatchcase(site, m.at) for m in om.mutants()), site
    methods = {f"{m.operator}.{m.name}" for m in registry.methods()}
    assert methods <= {site.split(",")[0] for site in SITES}


def test_mutants_of_quick_sites_die():
    sites = [name for name in QUICK if not name.startswith(("linear, sat", "matmul, sat", "linear, wrap"))]
    verdicts = [
        v for m in om.mutants() for site in sites if om.fnmatch.fnmatchcase(site, m.at) and (v := om.judged(m, site))
    ]
    alive = [v for v in verdicts if not v.equivalent]
    assert len(alive) > 300
    assert sum(v.directed for v in alive) >= 0.99 * len(alive)
    assert sum(v.random for v in alive) < sum(v.directed for v in alive)
    assert all(v.directed for v in alive if v.issue)


@pytest.mark.slow
def test_95_of_100_mutants_die_of_directed_stimuli():
    verdicts = om.all_verdicts()
    alive = [v for v in verdicts if not v.equivalent]
    assert sum(v.directed for v in alive) >= 0.95 * len(alive)
    assert [v for v in alive if v.issue and not v.directed] == []


@pytest.mark.slow
def test_no_mutant_of_the_issue_survives_at_a_site_of_the_embedded_model(vit, tmp_path):
    from intvit.graph.store import save

    graph = vit.lower(build_recipe({"bits": 8}))
    save(graph, tmp_path / "g.h5")
    rows = list(om.of_model(str(tmp_path / "g.h5")))
    assert {name: survives for name, *_, survives in rows if survives} == {}
    assert len(rows) >= 7
