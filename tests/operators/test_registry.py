"""Versions of a method stand side by side: each keeps its bits, graphs and golden vectors look theirs up."""

import dataclasses

import numpy as np
import pytest

from intvit import ops
from intvit.engine import Engine
from intvit.errors import IntvitError
from intvit.floats.importers.onnx import float_graph
from intvit.floats.importers.timm import build_vit
from intvit.graph.store import load, save
from intvit.kernels import registry
from intvit.lowering.recipe import build_recipe

FIRST = registry.get("softmax", "ivit")


def halved(row, params, mask=None):
    return [value >> 1 for value in FIRST.spec(row, params, mask)]


def halved_kernel(params):
    run = FIRST.kernel(params)
    return lambda rows, mask=None: run(rows, mask) >> 1


SECOND = dataclasses.replace(FIRST, version=2, spec=halved, kernel=halved_kernel, fast=None)


class Point:
    name = "second"

    def __init__(self, value=SECOND):
        self.value = value

    def load(self):
        return self.value


@pytest.fixture
def registered(monkeypatch):
    """Register values as another package's entry points would."""

    def register(*values):
        monkeypatch.setattr(registry, "entry_points", lambda group: [Point(value) for value in values])
        registry._table.cache_clear()

    yield register
    monkeypatch.undo()
    registry._table.cache_clear()


def tiny_graph(recipe):
    from test_graph_check import tiny_weights

    from intvit.lowering.calibrate import Calibration
    from intvit.lowering.context import lower

    graph = float_graph(build_vit(tiny_weights(1, np.random.default_rng(1)), {"num_heads": 2, "img_size": 8}))
    return lower(graph, Calibration(dict.fromkeys(graph.tensors, (-3.0, 3.0))), build_recipe(recipe))


def softmax_of(graph):
    return next(node for node in graph.nodes if node.op == "softmax")


def test_the_newest_version_is_the_default_and_each_can_be_pinned(registered):
    registered(SECOND)
    assert registry.get("softmax", "ivit") is SECOND
    assert registry.get("softmax", "ivit.v1") is FIRST
    assert registry.get("softmax", "ivit", 1) is FIRST
    assert registry.get("softmax", "ivit.v2") is SECOND
    assert [m.id for m in registry.methods("softmax") if m.name == "ivit"] == ["softmax.ivit.v1", "softmax.ivit.v2"]
    x = np.array([[5, -3, 7]])
    first, second = (ops.softmax(x, 0.1, method=name, out_bits=8)[0] for name in ("ivit.v1", "ivit"))
    assert np.array_equal(first >> 1, second)
    with pytest.raises(IntvitError, match=r"softmax method must be one of .*ivit\.v1, ivit\.v2, .*not 'ivit\.v3'"):
        registry.get("softmax", "ivit.v3")


def test_a_graph_of_the_first_version_stays_what_it_was(registered, tmp_path, cli):
    x = np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32)
    old = tiny_graph({})
    save(old, tmp_path / "old.h5")
    before = Engine(old).run(x, wanted=list(old.tensors))
    registered(SECOND)
    again = load(tmp_path / "old.h5")
    assert again.content_hash == old.content_hash
    for backend in ("kernel", "spec"):
        found = Engine(again, backend).run(x, wanted=list(again.tensors))
        assert all(np.array_equal(found[name], before[name]) for name in before)
    new, pinned = tiny_graph({}), tiny_graph({"softmax": {"method": "ivit.v1"}})
    assert softmax_of(new).attrs["version"] == 2
    assert (softmax_of(pinned).attrs["method"], softmax_of(pinned).attrs["version"]) == ("ivit", 1)
    assert not np.array_equal(Engine(new).run(x)["logits"], before["logits"])
    assert np.array_equal(Engine(pinned).run(x)["logits"], before["logits"])
    np.save(tmp_path / "x.npy", x)
    for name, graph in (("old", old), ("new", new)):
        save(graph, tmp_path / f"{name}.h5")
        assert cli("golden", "export", tmp_path / f"{name}.h5", tmp_path / "x.npy", "-o", tmp_path / name)[0] == 0
        assert cli("golden", "check", tmp_path / name)[0] == 0
    registered()
    assert cli("golden", "check", tmp_path / "old")[0] == 0
    status, _, err = cli("golden", "check", tmp_path / "new")
    assert status == 2
    assert "ivit.v2" in err


def test_a_name_that_ends_like_a_version_and_an_id_twice_are_refused(registered):
    registered(dataclasses.replace(FIRST, name="ivit.v3"))
    with pytest.raises(IntvitError, match="must not end like a version"):
        registry.methods()
    registered(dataclasses.replace(FIRST, summary="another"))
    with pytest.raises(IntvitError, match=r"softmax\.ivit\.v1 must not exist already"):
        registry.methods()
