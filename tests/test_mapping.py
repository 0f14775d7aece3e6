"""Tables of scores, rules with intervals, the space of mappings, searches in it: what they say is what models do."""

import itertools
import json
import math
import pickle
import random
import sqlite3

import numpy as np
import onnx
import pytest
from test_import_timm import random_vit

from intvit.analysis.outputs import OUTCOME, compared
from intvit.analysis.sqnr import errors
from intvit.engine import Engine
from intvit.errors import Infeasible, IntvitError
from intvit.floats.importers.timm import import_timm
from intvit.floats.recording import Recording
from intvit.graph.ir import LOGITS
from intvit.kernels import registry
from intvit.lowering.context import lower
from intvit.lowering.recipe import Choice, build_recipe
from intvit.mapping import rules
from intvit.mapping import search as searching
from intvit.mapping import space as spaces
from intvit.mapping.candidates import PUBLISHED, uniform_model
from intvit.mapping.mapping import Search, map_methods
from intvit.mapping.quadratic import Constraints, Quadratic, best
from intvit.mapping.scores import ISOLATED, PREFIX, ROW, UNIFORM, Key, Task, Variant, score
from intvit.mapping.search import OBJECTIVES, Measured, Problem, run
from intvit.mapping.space import Space
from intvit.mapping.store import Store, key_of
from intvit.mapping.tables import Table

N = 6
RECIPE = build_recipe({"bits": 6})


@pytest.fixture(scope="module")
def recorded(vit):
    with Recording(vit.recording_path) as recording:
        yield recording


@pytest.fixture(scope="module")
def calibration(vit, recorded):
    from intvit.lowering.calibrate import calibrate

    return calibrate(vit.graph, recorded, RECIPE)


@pytest.fixture(scope="module")
def candidates(vit, calibration):
    return {name: uniform_model(vit.graph, calibration, RECIPE, name, PUBLISHED) for name in PUBLISHED}


def task_of(vit, calibration, candidates, basis, sites=None):
    variants = tuple(
        Variant(name, found.recipe, tuple(s for s in found.sites if sites is None or s in sites), basis != ISOLATED)
        for name, found in candidates.items()
    )
    return Task(vit.graph, calibration, basis, variants)


# ---------------------------------------------------------------------------------------- tables


def rows_of(images, value=1.0):
    rows = np.zeros(len(images), ROW)
    rows["image"], rows["ratio_out"] = images, value
    return rows


KEY = Key("m", "r", UNIFORM, "s", "softmax", "a")


def test_a_table_is_the_same_whatever_it_was_merged_from(tmp_path):
    parts = [Table({KEY: rows_of([i, i + 1], 2.0)}) for i in (4, 0, 2)]
    whole = Table.merged(parts)
    for order in itertools.permutations(parts):
        assert np.array_equal(Table.merged(order).rows[KEY], whole.rows[KEY])
    assert whole.column(KEY, "image").tolist() == list(range(6))
    assert np.array_equal(Table.merged([whole, *parts]).rows[KEY], whole.rows[KEY])
    with pytest.raises(IntvitError, match=r"m/r/uniform/s/softmax/a: rows of image 4 must be equal in all tables"):
        Table.merged([whole, Table({KEY: rows_of([4], 3.0)})])
    whole.write_csv(tmp_path / "t.csv")
    header, first, *rest = (tmp_path / "t.csv").read_text().splitlines()
    assert header.startswith("model,recipe,basis,site,operator,method,image,ratio_in,")
    assert first.startswith("m,r,uniform,s,softmax,a,0,0.0,")
    assert len(rest) == 5


@pytest.mark.parametrize("basis", [UNIFORM, ISOLATED])
def test_scores_do_not_depend_on_batches_spans_threads_or_pickling(vit, recorded, calibration, candidates, basis):
    task = task_of(vit, calibration, candidates, basis)
    whole = score(task, recorded, vit.recorded, (0, N))
    spans = [(4, N), (0, 1), (1, 4)]
    again = pickle.loads(pickle.dumps(task))
    parts = [score(again, recorded, vit.recorded, span, batch=2, threads=3) for span in spans]
    merged = Table.merged([pickle.loads(pickle.dumps(part)) for part in parts])
    assert list(merged.rows) == sorted(whole.rows)
    for key, rows in whole.rows.items():
        assert merged.rows[key].tobytes() == rows.tobytes(), key


def test_uniform_scores_are_errors_of_the_model_that_lower_makes(vit, recorded, calibration, candidates):
    found = score(task_of(vit, calibration, candidates, UNIFORM), recorded, vit.recorded, (0, N))
    integer = lower(vit.graph, calibration, RECIPE.with_method("fqvit"))
    site = "blocks.2.attn.softmax"
    node, mate = vit.graph.node(site), integer.node(site)
    names = {"in": (node.inputs[0], mate.inputs[0]), "out": (node.output, mate.output)}
    q = Engine(integer).run(vit.recorded.read(0, N), wanted=[q for _, q in names.values()])
    (key,) = (key for key in found.rows if (key.site, key.method) == (site, "fqvit"))
    assert key[2:] == (UNIFORM, site, "softmax", "fqvit")
    for side, (real, name) in names.items():
        wanted = errors(recorded.read(real, 0, N), q[name], integer.tensors[name])
        for field in wanted.dtype.names:
            assert np.array_equal(found.column(key, f"{field}_{side}"), wanted[field]), (side, field)
    outputs = {key.method for key in found.rows if key.site == LOGITS}
    assert outputs == set(PUBLISHED)
    assert not any(key.method == "fqvit" and key.operator == "gelu" for key in found.rows)  # borrowed


def test_isolated_scores_are_of_one_operator_on_the_rounded_float_input(vit, recorded, calibration, candidates):
    site = "blocks.4.mlp.act"
    found = score(task_of(vit, calibration, candidates, ISOLATED, {site}), recorded, vit.recorded, (0, N))
    assert {(key.site, key.method) for key in found.rows} == {(site, "ibert"), (site, "ivit")}
    node, integer = vit.graph.node(site), candidates["ibert"].graph
    mate = integer.node(site)
    before, after = (integer.tensors[name] for name in (mate.inputs[0], mate.output))
    x = recorded.read(node.inputs[0], 0, N)
    q = np.clip(np.rint(x / before.scale) + before.zero_point, before.dtype.min, before.dtype.max).astype(np.int64)
    from intvit.engine.evaluate import prepare_in

    y = prepare_in(integer, mate, "spec")([q[:2]])
    (key,) = (key for key in found.rows if key.method == "ibert")
    wanted = errors(recorded.read(node.output, 0, 2), y, after)
    assert np.allclose(found.column(key, "ratio_out")[:2], wanted["ratio"], rtol=1e-3)
    assert np.allclose(found.column(key, "ratio_in"), errors(x, q, before)["ratio"], rtol=1e-3)


# ----------------------------------------------------------------------------------------- rules


def ratios_table(values):
    """method -> (ratios in, ratios out), one per image."""
    found = {}
    for method, (before, after) in values.items():
        rows = np.zeros(len(after), ROW)
        rows["image"], rows["ratio_in"], rows["ratio_out"] = np.arange(len(after)), before, after
        found[Key("m", "r", UNIFORM, "s", "softmax", method)] = rows
    return Table(found)


def test_a_choice_inside_the_interval_is_a_tie():
    rng = np.random.default_rng(0)
    noise = rng.lognormal(0, 1, (3, 40))
    before = np.full(40, 1e4)
    swing = np.tile([0.5, 1.5], 20)
    table = ratios_table({"a": (before, 950 * swing), "b": (before, 1000 * swing[::-1]), "c": (before, noise[2])})
    decision = rules.decide(table, rules.rule_of("sqnr_output"), "abc")["s"]
    assert {decision.method, *decision.ties} == {"a", "b"}
    sure = ratios_table({"a": (before, 900 * noise[0]), "b": (before, 1000 * noise[0])})
    decision = rules.decide(sure, rules.rule_of("sqnr_output"), "ab")["s"]  # the same noise: compared in pairs
    assert (decision.method, decision.ties) == ("b", ())
    equal = ratios_table({"a": (before, noise[0]), "b": (before, noise[0])})
    for methods in ("ab", "ba"):
        decision = rules.decide(equal, rules.rule_of("sqnr_output"), methods)["s"]
        assert (decision.method, decision.ties) == (methods[0], (methods[1],))


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of 300 samples of 50 images about 95 % have the difference of a great many inside."""
    rng = np.random.default_rng(1)

    def draw(n):
        return rng.gamma(2.0, 1.0, n), rng.gamma(2.0, 1.5, n)

    a, b = draw(200_000)
    truth = 10 * math.log10(b.sum() / a.sum())
    inside = 0
    for _ in range(300):
        found = rules.difference(*draw(50))
        inside += found.low <= truth <= found.high
    assert 0.90 < inside / 300 < 0.99


def test_resamples_are_those_of_the_seed_and_the_site():
    assert np.array_equal(rules.resamples("s", 9), rules.resamples("s", 9))
    assert not np.array_equal(rules.resamples("s", 9), rules.resamples("s", 9, seed=1))
    assert not np.array_equal(rules.resamples("s", 9), rules.resamples("t", 9))
    assert (rules.resamples("s", 9).sum(axis=1) == 9).all()
    assert rules.resamples("s", 9).shape == (rules.RESAMPLES, 9)


def test_a_rule_of_ones_own_is_a_rule(monkeypatch):
    monkeypatch.setattr(rules, "RULES", dict(rules.RULES))
    rules.add_rule(rules.Rule("input", "largest ASQNR in", lambda before, after: -before))
    table = ratios_table({"a": (np.full(3, 10.0), np.ones(3)), "b": (np.full(3, 5.0), np.ones(3))})
    assert rules.decide(table, rules.rule_of("input"), "ba")["s"].method == "a"
    with pytest.raises(IntvitError, match="input is taken"):
        rules.add_rule(rules.Rule("input", "", lambda before, after: before))


# ----------------------------------------------------------------------------------------- space


FREE = ("blocks.0.norm1", "blocks.0.attn.softmax", "blocks.4.norm2", "blocks.4.mlp.act", "blocks.5.norm1", "norm")


def space_of(vit, calibration, candidates, sites=FREE, base="ivit"):
    options = {
        site: {name: found.choices[site] for name, found in candidates.items() if site in found.sites} for site in sites
    }
    return Space(vit.graph, calibration, RECIPE, options, tuple(base for _ in sites))


@pytest.fixture(scope="module")
def space(vit, calibration, candidates):
    return space_of(vit, calibration, candidates)


def outcome(vit, recorded, space, config):
    """Of the model that `lower` makes, run whole."""
    integer = lower(space.graph, space.calibration, space.recipe_of(config))
    y = Engine(integer).run(vit.recorded.read(0, N))[LOGITS] * integer.tensors[LOGITS].scale
    return compared(0, y, recorded.read(space.graph.outputs[0], 0, N), None)


def test_what_is_measured_of_a_mapping_is_what_its_model_gives(vit, recorded, space):
    rng = random.Random(0)
    configs = [tuple(rng.choice(list(space.options[site])) for site in space.sites) for _ in range(8)]
    configs += [space.base, *space.singles()[:3]]
    inputs = vit.recorded.read(0, N), recorded.read(vit.graph.outputs[0], 0, N)
    found = space.measure(configs, *inputs, batch=2, threads=2)
    assert set(found) == set(configs)
    for config in configs:
        assert found[config].tobytes() == outcome(vit, recorded, space, config).tobytes(), config
        space.verify(config)
    again = space.measure(reversed(configs), *inputs, batch=4, threads=1)
    assert all(again[config].tobytes() == found[config].tobytes() for config in configs)


def test_what_reaches_farther_than_single_changes_tell_is_noticed(vit, recorded, calibration, candidates, monkeypatch):
    """A lowering in which two far changes together move a third node: nothing is handed out."""
    from dataclasses import replace

    def entangled(graph, calibration, recipe):
        integer = lower(graph, calibration, recipe)
        both = [recipe.choice("layernorm", site).method for site in ("blocks.0.norm1", "norm")]
        if both != ["fqvit", "fqvit"]:
            return integer
        nodes = tuple(
            replace(node, attrs={**node.attrs, "bits": 5}) if node.name == "blocks.2.attn.proj.quant" else node
            for node in integer.nodes
        )
        assert any(a is not b for a, b in zip(nodes, integer.nodes, strict=True))
        return replace(integer, nodes=nodes)

    monkeypatch.setattr(spaces, "lower", entangled)
    space = space_of(vit, calibration, candidates, ("blocks.0.norm1", "norm"))
    space.verify(("fqvit", "ivit"))
    with pytest.raises(AssertionError, match="a far change reaches this segment"):
        space.verify(("fqvit", "fqvit"))


def test_an_undefined_method_is_no_mapping(vit, recorded, calibration, candidates, monkeypatch):
    def lowered(graph, calibration, recipe):
        if recipe.choice("softmax", "blocks.0.attn.softmax").method == "fqvit":
            raise Infeasible("blocks.0.attn.softmax", "not here")
        return lower(graph, calibration, recipe)

    monkeypatch.setattr(spaces, "lower", lowered)
    space = space_of(vit, calibration, candidates, ("blocks.0.attn.softmax", "norm"))
    configs = [("ivit", "ivit"), ("fqvit", "ivit"), ("fqvit", "ibert"), ("ibert", "ibert")]
    inputs = vit.recorded.read(0, 2), recorded.read(vit.graph.outputs[0], 0, 2)
    assert set(space.measure(configs, *inputs)) == {configs[0], configs[3]}


# ----------------------------------------------------------------------------------------- store


def test_a_store_gives_back_what_was_put_and_nothing_else(tmp_path):
    path = tmp_path / "s.search"
    rows = compared(0, np.eye(3), np.ones((3, 3), np.float32), None)
    with Store(path) as store:
        store.put({key_of("outcome", [1]): rows}, "outcome")
    with Store(path) as store:
        assert store.get(key_of("outcome", [1]), OUTCOME).tobytes() == rows.tobytes()
        assert store.get(key_of("outcome", [2]), OUTCOME) is None
        assert len(store) == 1
    other = tmp_path / "t.search"
    with Store(other) as store:
        store.put({key_of("outcome", [i]): rows for i in (1, 2)}, "outcome")
    with Store(path) as store:
        assert store.merge(other) == 1
        assert store.merge(other) == 0
        assert len(store) == 2
    connection = sqlite3.connect(other)
    connection.execute("update rows set value = zeroblob(length(value))")
    connection.commit()
    connection.close()
    with Store(other) as store, pytest.raises(IntvitError, match="must be as they were written, and were damaged"):
        store.get(key_of("outcome", [1]), OUTCOME)
    with Store(path) as store, pytest.raises(IntvitError, match="must be as they were written, and were damaged"):
        store.merge(other)


@pytest.mark.parametrize("content", [b"not a database" * 100, b""])
def test_a_file_that_is_no_store_is_refused_or_begun(tmp_path, content):
    path = tmp_path / "s"
    path.write_bytes(content)
    if not content:
        with Store(path) as store:
            assert len(store) == 0
        return
    with pytest.raises(IntvitError, match="must be a store of intvit"):
        Store(path)
    assert path.read_bytes() == content


def test_a_database_of_somebody_else_is_left_alone(tmp_path):
    path = tmp_path / "theirs"
    connection = sqlite3.connect(path)
    connection.execute("create table letters (text)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(IntvitError, match="must be a store of intvit, and holds tables letters"):
        Store(path)
    assert path.read_bytes() == before
    with pytest.raises(IntvitError, match="must be in a folder that there is"):
        Store(tmp_path / "none" / "s")


def test_a_store_of_another_kind_or_version_is_refused(tmp_path):
    for statement in ("update about set version = 7", "update about set format = 'x'"):
        path = tmp_path / statement.replace(" ", "_")
        with Store(path):
            pass
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.commit()
        connection.close()
        with pytest.raises(IntvitError, match=r"store must be intvit.store 1, not"):
            Store(path)


# ----------------------------------------------------------------------------- the quadratic model


def random_model(seed, n_sites=6):
    rng = np.random.default_rng(seed)
    options = [["a", "b", "c"][: rng.integers(2, 4)] for _ in range(n_sites)]
    changes = [(i, m) for i, methods in enumerate(options) for m in methods[1:]]
    single = {change: float(rng.normal(0.2, 1)) for change in changes}
    pair = {
        (x, y): float(rng.normal(0, 0.7))
        for x, y in itertools.combinations(changes, 2)
        if x[0] != y[0] and rng.random() < 0.7
    }
    return Quadratic(5.0, ("a",) * n_sites, single, pair), options


@pytest.mark.parametrize("seed", range(12))
def test_the_program_finds_what_brute_force_finds(seed):
    pytest.importorskip("highspy")
    model, options = random_model(seed)
    kinds = ["softmax", "gelu"] * 3
    costs = {"softmax": {"a": 1.0, "b": 2.0, "c": 4.0}, "gelu": {"b": 1.5}}
    for constraints in (Constraints(), Constraints(at_most=1), Constraints(2, costs, 6.5)):
        for changes in (None, 2):
            every = [
                config for config in itertools.product(*options)
                if constraints.allows(kinds, config)
                and (changes is None or sum(m != "a" for m in config) <= changes)
            ]  # fmt: skip
            found = best(model, options, kinds, constraints, changes=changes)
            assert found.proven
            assert constraints.allows(kinds, found.config)
            least = min(map(model.loss, every))
            assert found.loss == pytest.approx(least, abs=1e-6)
            assert found.bound <= least + 1e-6
            assert found.bound == pytest.approx(least, abs=1e-5)


def test_constraints_that_allow_nothing_are_said():
    pytest.importorskip("highspy")
    model, options = random_model(0)
    with pytest.raises(IntvitError, match="must allow one mapping at least"):
        best(model, options, ["gelu"] * 6, Constraints(None, {"gelu": {"a": 2.0, "b": 2.0, "c": 2.0}}, 11.0))


# ---------------------------------------------------------------------------------------- search


def problem_of(space, constraints=None, names=PUBLISHED):
    starts = [tuple(name if name in space.options[site] else "ivit" for site in space.sites) for name in names]
    return Problem(space, constraints or Constraints(), starts)


def measured_of(vit, recorded, space, **options):
    return Measured(space, recorded, vit.recorded, N, batch=3, **{"confidence": 0.0, **options})


@pytest.fixture(scope="module")
def everything(vit, recorded, space):
    """The loss of every mapping of the space."""
    configs = list(itertools.product(*(space.options[site] for site in space.sites)))
    found = space.measure(configs, vit.recorded.read(0, N), recorded.read(vit.graph.outputs[0], 0, N))
    return {config: OBJECTIVES["sqnr"].loss(rows) for config, rows in found.items()}


@pytest.mark.parametrize("constraints", [Constraints(), Constraints(at_most=1), Constraints(at_most=2)])
def test_an_exact_search_finds_the_best_of_all(vit, recorded, space, everything, constraints):
    problem = problem_of(space, constraints)
    found = run("exact", problem, measured_of(vit, recorded, space))
    allowed = {config: loss for config, loss in everything.items() if constraints.allows(problem.operators, config)}
    assert found.losses[found.config] == min(allowed.values())
    assert set(found.losses) == set(allowed) if constraints.at_most != 1 else set(found.losses) <= set(allowed)


@pytest.mark.parametrize("kind", ["greedy", "pairwise", "tpe"])
@pytest.mark.parametrize("constraints", [Constraints(), Constraints(at_most=1)])
def test_a_search_is_no_worse_than_a_uniform_model(vit, recorded, space, everything, kind, constraints):
    pytest.importorskip("highspy")
    pytest.importorskip("optuna")
    problem = problem_of(space, constraints)
    found = run(kind, problem, measured_of(vit, recorded, space, budget=60 if kind == "tpe" else None))
    assert problem.allows(found.config)
    assert found.losses[found.config] == everything[found.config]
    assert found.losses[found.config] <= min(everything[config] for config in problem.starts)
    ranked = sorted(loss for config, loss in everything.items() if problem.allows(config))
    assert found.losses[found.config] <= ranked[len(ranked) // 20]
    if kind == "pairwise":
        changed = [sum(a != b for a, b in zip(config, space.base, strict=True)) for config in found.losses]
        n = [len(space.options[site]) - 1 for site in space.sites]
        assert changed.count(1) >= sum(n)
        assert changed.count(2) >= sum(a * b for a, b in itertools.combinations(n, 2))
        assert found.independent.n == sum(a * b for a, b in itertools.combinations(n, 2))
        two = next(config for config in found.losses if sum(map(str.__ne__, config, space.base)) == 2)
        assert found.model.loss(two) == pytest.approx(everything[two], rel=1e-9)


def test_a_budget_ends_a_search_that_still_hands_out_what_it_measured(vit, recorded, space):
    pytest.importorskip("highspy")
    for kind, budget in (("greedy", 9), ("pairwise", 20), ("tpe", 7)):
        found = run(kind, problem_of(space), measured_of(vit, recorded, space, budget=budget))
        assert found.losses[found.config] == min(found.losses.values())
        assert budget <= len(found.losses) <= budget + 9  # the optima are always measured
        assert found.spent or kind == "tpe"
    with pytest.raises(IntvitError, match="exact must have at most 10 mappings to measure, not"):
        run("exact", problem_of(space), measured_of(vit, recorded, space, budget=10))


def test_a_search_that_was_ended_goes_on_where_it_was(vit, recorded, space, tmp_path, monkeypatch):
    whole = run("greedy", problem_of(space), measured_of(vit, recorded, space))
    with Store(tmp_path / "s") as store:
        run("greedy", problem_of(space), measured_of(vit, recorded, space, store=store, budget=10))
        assert len(store) == 10
        asked = []
        measure = Space.measure
        monkeypatch.setattr(Space, "measure", lambda self, configs, *rest, **options: (
            asked.extend(configs), measure(self, configs, *rest, **options))[1])  # fmt: skip
        again = run("greedy", problem_of(space), measured_of(vit, recorded, space, store=store))
    assert again.as_json() == whole.as_json()
    assert len(asked) == len(whole.losses) - 10


def test_a_search_leaves_a_uniform_model_only_for_one_that_is_surely_better(vit, recorded, space):
    pytest.importorskip("optuna")
    for kind in ("greedy", "tpe"):
        found = run(kind, problem_of(space), measured_of(vit, recorded, space, budget=30, confidence=0.9999))
        assert found.config in found.problem.starts
        assert found.losses[found.refused] < found.losses[found.config]
        assert found.as_json()["not_surely_better"]["changes"]


def test_of_equal_mappings_none_is_surely_better(vit, recorded, space):
    """What 300 draws of 40 mappings that differ by chance alone say: of 100 families at most about 5 have a winner."""
    rng = np.random.default_rng(0)
    measured = Measured(space, recorded, vit.recorded, 64)
    won = 0
    for _ in range(300):
        rows = np.zeros((40, 64), OUTCOME)
        rows["signal"] = 1
        rows["noise"] = rng.normal(1, 0.2, (40, 64)) ** 2
        measured.rows = {(str(i),): row for i, row in enumerate(rows)}
        won += measured.better(measured.least(measured.rows), ("0",), 39)
    assert won / 300 < 0.1
    measured.rows[("40",)] = rows[0].copy()
    measured.rows[("40",)]["noise"] = 0.9 * rows[0]["noise"]
    assert measured.better(("40",), ("0",), 1000)
    assert not measured.better(("0",), ("40",), 1)


@pytest.mark.parametrize(("degrees", "values"), [  # of 5 %, 1 % and 0.1 %, as tables have them
    (1, (6.314, 31.821, 318.309)), (2, (2.920, 6.965, 22.327)), (3, (2.353, 4.541, 10.215)),
    (4, (2.132, 3.747, 7.173)), (7, (1.895, 2.998, 4.785)), (30, (1.697, 2.457, 3.385)), (2047, (1.6456, 2.328, 3.094)),
])  # fmt: skip
def test_probabilities_of_students_t(degrees, values):
    assert [rules.beyond(t, degrees) for t in values] == pytest.approx([0.05, 0.01, 0.001], rel=2e-3)


@pytest.mark.parametrize("n_images", [2, 3, 8, 64])
def test_what_is_sure_on_few_images_is_wrong_as_seldom(n_images):
    """Equal models, 2,000 times: one of six at most is taken to be better in 5 % of them."""
    rng = np.random.default_rng(n_images)
    rows = rng.normal(size=(2000, 7, n_images))
    wrong = [any(rules.surely_less(row, first, 6) for row in others) for first, *others in rows]
    assert np.mean(wrong) < 0.065


def test_a_greedy_search_measures_on_few_images_first(vit, recorded, space, monkeypatch):
    monkeypatch.setattr(searching, "FEWEST", 1)
    counted = {}
    measure = Space.measure

    def count(self, configs, images, *rest, **options):
        for config in configs:
            counted[config] = counted.get(config, 0) + len(images)
        return measure(self, configs, images, *rest, **options)

    monkeypatch.setattr(Space, "measure", count)
    measured = measured_of(vit, recorded, space)
    found = run("greedy", problem_of(space), measured)
    assert {len(rows) for rows in measured.rows.values() if len(rows)} > {N}
    assert all(counted[config] == len(rows) for config, rows in measured.rows.items() if len(rows))  # none twice
    assert found.losses.keys() == {config for config, rows in measured.rows.items() if len(rows) in (0, N)}
    assert found.losses[found.config] <= found.losses[found.base]


def test_labels_and_classes_are_needed_where_they_are_asked_for(vit, recorded, space):
    with pytest.raises(IntvitError, match="objective: top1 must have labelled images, and has none"):
        run("greedy", problem_of(space), measured_of(vit, recorded, space, objective="top1"))
    labels = vit.recorded.labels[:N]
    found = run("greedy", problem_of(space), measured_of(vit, recorded, space, objective="top1", labels=labels))
    assert 0 <= found.losses[found.config] <= 1
    kl = run("greedy", problem_of(space), measured_of(vit, recorded, space, objective="kl"))
    assert kl.losses[kl.config] < kl.losses[kl.base]


# ------------------------------------------------------------------------------- from end to end


def mapped(vit, recorded, calibration, **options):
    return map_methods(vit.graph, recorded, vit.recorded, calibration, RECIPE, PUBLISHED, limit=N, **options)


def test_prefix_scores_are_those_of_the_model_of_the_choices_before(vit, recorded, calibration):
    fixed = {
        node.name: Choice(method="ivit") for node in vit.graph.nodes
        if node.op in ("softmax", "gelu", "layernorm") and node.name not in FREE
    }  # fmt: skip
    found = mapped(vit, recorded, calibration, basis=PREFIX, fixed=fixed, fallback=False)
    assert found.sites == FREE
    assert set(found.decisions) == set(FREE)
    site = "norm"
    for method in PUBLISHED:
        sites = {s: found.recipe.sites[s] for s in FREE if s != site} | {site: Choice(method=method)}
        integer = lower(vit.graph, calibration, RECIPE.with_method(method).model_copy(update={"sites": fixed | sites}))
        mate = integer.node(site)
        q = Engine(integer).run(vit.recorded.read(0, N), wanted=[mate.output])[mate.output]
        wanted = errors(recorded.read(vit.graph.node(site).output, 0, N), q, integer.tensors[mate.output])
        (key,) = (key for key in found.of(PREFIX).rows if (key.site, key.method) == (site, method))
        assert found.table.column(key, "ratio_out").tolist() == wanted["ratio"].tolist()


def test_fixed_sites_are_left_as_they_are(vit, recorded, calibration):
    fixed = {"norm": Choice(method="fqvit"), "blocks.0.mlp.act": Choice(method="ibert", n=3)}
    found = mapped(vit, recorded, calibration, fixed=fixed, search=Search("greedy", budget=5))
    assert not set(fixed) & set(found.decisions)
    for recipe in (found.recipe, mapped(vit, recorded, calibration, fixed=fixed).recipe):
        assert {site: recipe.sites[site] for site in fixed} == fixed
    with pytest.raises(IntvitError, match="head: must be a site of the model that has methods"):
        mapped(vit, recorded, calibration, fixed={"head": Choice(method="ivit")})
    with pytest.raises(IntvitError, match=r"norm: .*nothing"):
        mapped(vit, recorded, calibration, fixed={"norm": Choice(method="nothing")})


def test_map_with_a_search(cli, vit, tmp_path):
    pytest.importorskip("highspy")
    common = ["map", vit.onnx_path, "--recording", vit.recording_path, "--images", "fashion-mnist:calibration",
              "--limit", "6", "--bits", "6", "-o", tmp_path / "m.json"]  # fmt: skip
    fixed = [part for site in (f"blocks.{i}.{s}" for i in range(6) for s in ("norm1", "norm2", "mlp.act"))
             for part in ("--fix", f"{site}=ivit")]  # fmt: skip
    status, out, err = cli(*common, *fixed, "--search", "pairwise", "--rows", tmp_path / "rows.csv")
    assert status == 0, err
    report = json.loads((tmp_path / "m.json").read_text())
    found = report["search"]
    assert report["outputs_sqnr"]["searched"] >= max(report["outputs_sqnr"][name] for name in PUBLISHED)
    assert f"searched {report['outputs_sqnr']['searched']:.1f}" in out
    assert found["bound"]["proven"]
    assert found["bound"]["least"] <= found["bound"]["predicted"] + 1e-9
    assert not (tmp_path / "m.json.search").exists()
    chosen = {**found["base"], **found["chosen"]}
    assert {site: report["recipe"]["sites"][site]["method"] for site in chosen} == chosen
    loss = 10 ** (-report["outputs_sqnr"]["searched"] / 10)
    assert found["loss"]["chosen"] == pytest.approx(loss, rel=1e-4)
    rows = (tmp_path / "rows.csv").read_text().splitlines()
    assert len(rows) > 6 * 3
    (tmp_path / "costs.toml").write_text("[softmax]\nibert = 3.0\nfqvit = 1.0\nivit = 2.0\n")
    limited = ["--costs", tmp_path / "costs.toml", "--most-cost", "6", "--search", "greedy"]
    status, _, err = cli(*common, *fixed, *limited)
    assert status == 0, err
    report = json.loads((tmp_path / "m.json").read_text())
    assert {report["recipe"]["sites"][f"blocks.{i}.attn.softmax"]["method"] for i in range(6)} == {"fqvit"}


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--search", "best"], "search: must be one of greedy, pairwise, exact, tpe, not 'best'"),
        (["--search", "greedy", "--objective", "loss"], "objective: must be one of sqnr, kl, top1, not 'loss'"),
        (["--at-most", "1"], "--at-most: must go with --search"),
        (["--confidence", "0"], "--confidence: must go with --search"),
        (["--basis", "alone"], "basis: must be one of uniform, isolated, prefix, not 'alone'"),
        (["--fix", "nowhere=ivit"], "nowhere: must be a site of the model that has methods"),
        (["--fix", "nowhere"], "nowhere: no such site"),
        (["--methods", "ivit,ivit"], "methods: must each be named once, not ivit,ivit"),
        (["--search", "exact"], "search: exact must have at most 20000 mappings to measure, not"),
        (["--search", "greedy", "--costs", "c.toml"], "--costs and --most-cost: must be given together"),
        (["--search", "greedy", "--costs", "c.toml", "--most-cost", "1"], "c.toml"),
    ],
)
def test_bad_input_is_one_line(cli, vit, tmp_path, monkeypatch, arguments, rule):
    monkeypatch.chdir(tmp_path)
    common = ["map", vit.onnx_path, "--recording", vit.recording_path, "--images", "fashion-mnist:calibration"]
    status, out, err = cli(*common, "--limit", "2", "-o", "m.json", *arguments)
    assert (status, out) == (2, "")
    assert rule in err
    assert err.strip().count("\n") == 0
    assert not list(tmp_path.glob("m.json*"))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("[softmax]\nibert = -1\n", "softmax.ibert: must be a number of at least 0, not -1"),
        ("[softmax]\nnothing = 1\n", "softmax.nothing: must be one of"),
        ("[conv]\nibert = 1\n", "conv: must be a table named"),
        ("softmax = 3\n", "softmax: must be a table named"),
        ("[softmax\n", "c.toml: must be TOML"),
    ],
)
def test_costs_that_are_none_are_refused(tmp_path, text, rule):
    from intvit.mapping.quadratic import read_constraints

    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(IntvitError, match=rule.replace(".", r"\.")):
        read_constraints(None, path, 1.0)


def test_every_method_can_be_a_candidate():
    """Labels of a space are names: no two methods of an operator share one, but for their versions."""
    for operator in ("softmax", "gelu", "layernorm"):
        names = [(m.name, m.version) for m in registry.methods(operator)]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("move", ["reshape", "slice"])
def test_outputs_that_a_layout_move_makes_are_searched(tmp_path, cli, move):
    """A network cut behind a move of its classes: no recorded activation is its output, no channel keeps its scale."""
    rng = np.random.default_rng(2)
    weights = random_vit(rng, dim=16, depth=1, patch=4, side=8, channels=1, hidden=24, classes=4)
    weights["head.weight"] *= np.array([1, 30, 1, 30], np.float32)[:, None]
    np.savez(tmp_path / "w.npz", **weights)
    proto = import_timm(str(tmp_path / "w.npz"), num_heads=2, img_size=8, mean=[0.5], std=[0.5])
    (output,) = proto.graph.output
    constants = {"reshape": {"to": [0, 2, 2]}, "slice": {"from": [1], "to": [3], "axis": [1]}}[move]
    for name, values in constants.items():
        proto.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values))
    proto.graph.node.append(onnx.helper.make_node(move.title(), [output.name, *constants], ["fold"], name="fold"))
    shape = ["N", 2, 2] if move == "reshape" else ["N", 2]
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("fold", onnx.TensorProto.FLOAT, shape))
    onnx.save(proto, str(tmp_path / "m.onnx"))
    np.save(tmp_path / "x.npy", rng.integers(0, 256, (5, 1, 8, 8)).astype(np.uint8))
    common = ["map", tmp_path / "m.onnx", "--images", tmp_path / "x.npy", "-o", tmp_path / "m.json"]
    status, _, err = cli(*common, "--search", "greedy", "--methods", "ibert,ivit", "--confidence", "0")
    assert status == 0, err
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["search"]["loss"]["chosen"] > 0
    assert found["outputs_sqnr"]["ibert"] > 20
