"""What explains a fault: the datapaths are the engine's, faults of 60 kinds are named, a right site has no cause."""

import numpy as np
import pytest
from fault_injection import KINDS, Kind, Subject, bench, draw, judge, near, outcomes

from intvit.engine import Engine, quantize_images
from intvit.graph.ir import LAYOUT_OPS
from intvit.vectors.cases import cases_from
from intvit.vectors.diagnosis import arith
from intvit.vectors.diagnosis.compare import EQUAL, ROOT
from intvit.vectors.diagnosis.datapath import MODELS, Fault
from intvit.vectors.diagnosis.kinds import KINDS as CAUSES
from intvit.vectors.diagnosis.moves import axes, in_words, lanes, late
from intvit.vectors.diagnosis.problem import Stage


@pytest.fixture(scope="module")
def faulty(vit):
    return bench(vit.lower, vit.test.read(0, 2))


def test_every_datapath_is_that_of_the_engine(faulty, vit, mixed):
    x = quantize_images(mixed, vit.test.read(0, 1))
    graphs = {**faulty.graphs, "mixed": mixed}
    tensors = {**faulty.tensors, "mixed": Engine(mixed).evaluate(x, list(mixed.tensors))}
    seen = set()
    for name, graph in graphs.items():
        for node in graph.nodes:
            if node.op in LAYOUT_OPS:
                continue
            stage = Stage(node, [graph.tensors[i] for i in node.inputs], graph.tensors[node.output])
            seen.add(stage.model)
            made = stage.whole([tensors[name][i] for i in node.inputs])
            np.testing.assert_array_equal(made, tensors[name][node.output], err_msg=f"{name} {node.name}")
    assert seen == set(MODELS)


def test_some_rows_are_those_of_all(faulty):
    graph, tensors = faulty.graphs["fqvit"], faulty.tensors["fqvit"]
    for node in graph.nodes[:40]:
        stage = Stage(node, [graph.tensors[i] for i in node.inputs], graph.tensors[node.output])
        if node.op not in LAYOUT_OPS and stage.by_rows:
            values = [tensors[i] for i in node.inputs]
            rows = np.array([3, 0, 7])
            part = stage.run(stage.operands(values), rows=rows, lead=values[0].shape)
            whole = stage.whole(values)
            np.testing.assert_array_equal(part, whole.reshape(-1, whole.shape[-1])[rows], err_msg=node.name)


def test_a_fault_is_one(faulty):
    """A step that has one gives other values; a name that there is not changes nothing."""
    graph, tensors = faulty.graphs["ivit"], faulty.tensors["ivit"]
    node = graph.node("blocks.0.norm1")
    stage = Stage(node, [graph.tensors[i] for i in node.inputs], graph.tensors[node.output])
    values = [tensors[i] for i in node.inputs]
    right = tensors[node.output]
    assert np.array_equal(stage.whole(values, fault=Fault("rounding", "nowhere", "floor")), right)
    assert not np.array_equal(stage.whole(values, fault=Fault("count", "steps", 4)), right)


@pytest.mark.parametrize("mode", arith.ROUNDINGS)
def test_roundings_are_those_of_fractions(mode):
    from fractions import Fraction
    from math import ceil, floor

    def by_definition(f):
        half = Fraction(1, 2)
        return {
            "half_even": round(f), "half_up": floor(f + half), "half_down": ceil(f - half), "floor": floor(f),
            "ceiling": ceil(f), "toward_zero": int(f), "half_away": floor(f + half) if f >= 0 else ceil(f - half),
        }[mode]  # fmt: skip

    v = np.arange(-70, 71)
    for e in (-2, 0, 1, 3, 5):
        expected = [by_definition(Fraction(int(a)) / Fraction(2) ** e) for a in v]
        assert arith.shifted(v, e, mode).tolist() == expected
        assert arith.shifted(v.astype(object), e, mode).tolist() == expected
    for b in (1, 2, 5, 6, -4):
        assert arith.divided(v, b, mode).tolist() == [by_definition(Fraction(int(a), b)) for a in v]


def test_an_absurd_shift_is_refused():
    with pytest.raises(OverflowError):
        arith.shifted(np.arange(3), 2**30, "floor")


@pytest.mark.parametrize("shape", [(1,), (1, 1), (7, 5), (3, 4, 8), (2, 3, 5, 4)])
def test_moves_keep_every_element_and_differ(shape):
    v = np.arange(1, 1 + int(np.prod(shape))).reshape(shape)
    for kind, what, move, _ in (*lanes(shape), *axes(shape)):
        assert sorted(move(v).reshape(-1)) == sorted(v.reshape(-1)), what
        assert not np.array_equal(move(v), v), (kind, what)
    for _, what, move, _ in late(shape):
        assert move(v).shape == v.shape, what


def test_lanes_of_a_last_word_that_is_not_full_stay():
    assert in_words(7, np.array([2, 1, 0])).tolist() == [2, 1, 0, 5, 4, 3, 6]


def check(found, least):
    assert all(o.status != EQUAL for o in found)
    assert len({o.kind for o in found}) >= 30
    missed = [(o.kind, o.model, o.site, [str(c) for c in o.causes[:3]]) for o in found if not o.named]
    assert len(missed) <= (1 - least) * len(found), missed


def test_a_fault_of_each_kind_is_named(faulty):
    check(list(outcomes(faulty, 60, 7)), 0.9)


@pytest.mark.slow
def test_500_faults_are_named(faulty):
    found = list(outcomes(faulty, 500, 1))
    assert len(found) == 500
    check(found, 0.9)


def test_a_name_that_is_wrong_is_noticed(faulty):
    """The judge can say no: a fault that is not what its kind says."""
    import random

    subjects = [s for s in faulty.subjects() if s.model == "ivit"]
    cases = {"ivit": cases_from(faulty.graphs["ivit"], faulty.tensors["ivit"])}
    floor = next(k for k in KINDS if k.name == "mean of LayerNorm rounds down")
    subject, got, _ = draw(subjects, floor, random.Random(1))
    assert judge(subject, got, floor, lambda c: c.kind == "rounding", cases).named
    assert not judge(subject, got, floor, lambda c: c.kind == "stale", cases).named


def test_a_right_dump_of_every_site_has_no_cause(faulty):
    from pathlib import Path

    from intvit.files import safe_name
    from intvit.vectors.diagnosis.compare import compare
    from intvit.vectors.diagnosis.dump import Archive

    for name, graph in faulty.graphs.items():
        cases = cases_from(graph, faulty.tensors[name])
        arrays = {(safe_name(c.name), i, "output"): c.expected(i)[c.part.outputs[0]] for c in cases for i in c.images}
        report = compare(cases, Archive(Path("d"), arrays), graph=graph)
        assert all(r.status == EQUAL and r.explained is None for r in report.results)


def test_every_single_bit_of_a_site_is_found(faulty):
    """One flipped bit of one element, at some hundred places: never equal."""
    rng = np.random.default_rng(0)
    subjects = [s for s in faulty.subjects() if s.model == "ibert"]
    cases = cases_from(faulty.graphs["ibert"], faulty.tensors["ibert"])
    from pathlib import Path

    from intvit.files import safe_name
    from intvit.vectors.diagnosis.compare import compare
    from intvit.vectors.diagnosis.dump import Archive

    for subject in subjects[::3]:
        got = subject.right.astype(np.int64).copy()
        at = tuple(rng.integers(0, n) for n in got.shape)
        low = (got[at] ^ (1 << int(rng.integers(subject.bits)))) & ((1 << subject.bits) - 1)
        got[at] = low - (1 << subject.bits) if low >> (subject.bits - 1) else low
        arrays = {(safe_name(subject.node.name), i, "output"): got[i] for i in range(len(got))}
        report = compare(near(subject, cases), Archive(Path("d"), arrays), causes=False)
        (result,) = [r for r in report.results if r.status == ROOT]
        assert (result.first.image, *result.first.index) == tuple(map(int, at))
        assert result.n_different == 1


def test_kinds_of_causes_have_a_meaning():
    assert len(CAUSES) >= 25
    assert all(len(text) > 10 for _, text in CAUSES.values())
    assert Kind
    assert Subject


def test_the_document_lists_every_kind():
    from pathlib import Path

    text = (Path(__file__).resolve().parents[2] / "docs" / "compare.md").read_text()
    for name, (_, meaning) in CAUSES.items():
        assert f"| `{name}` | {meaning} |" in text


def test_no_hypothesis_takes_much_memory(faulty):
    """Constants in the place of others are absurd shift counts: a site of each model, words that nothing explains."""
    import tracemalloc

    from intvit.vectors.diagnosis.causes import explain
    from intvit.vectors.diagnosis.problem import Problem

    seen = {}
    for subject in faulty.subjects():
        stage = Stage(
            subject.node,
            [subject.graph.tensors[i] for i in subject.node.inputs],
            subject.graph.tensors[subject.node.output],
        )
        seen.setdefault(stage.model, (subject, stage))
    for model, (subject, stage) in seen.items():
        right = subject.right.astype(np.int64)
        got = np.where(np.random.default_rng(0).random(right.shape) < 0.01, right ^ 1, right)
        own = [v.astype(np.int64) for v in subject.own]
        problem = Problem(stage, own, got, np.ones(got.shape, bool), right, images=(0, 1))
        tracemalloc.start()
        try:
            assert explain([problem]).causes == ()
            assert tracemalloc.get_traced_memory()[1] < 200e6, model
        finally:
            tracemalloc.stop()
