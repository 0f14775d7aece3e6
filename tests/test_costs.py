"""Operations of operators: counted in the specification, by the hand's count of its formulas."""

import json
import tomllib

import numpy as np
import pytest
from small_graph import small_graph

from intvit.analysis.costs import Counts, _counting, by_method, costs, of_row, read_weights
from intvit.errors import IntvitError
from intvit.graph.store import load, save
from intvit.kernels import registry
from intvit.mapping.quadratic import read_constraints
from intvit.spec import softmax

FACTS = {"out_bits": 8, "gamma": np.ones(16), "beta": np.ones(16), "out_scale": 0.1, "factor": None, "shift": 2}
N = 16
ROW = list(range(-8, 8))


def counted(operator, method):
    m = registry.get(operator, method)
    return of_row(m.spec, ROW, m.constants(0.02, FACTS, {})[0]).of


def test_shiftmax_by_hand():
    """Per element: x - max; d + (d >> 1) - (d >> 4), clamped; q = v // x0; r = v - x0 q; ((r - 2 x0) << (n - q)) >> 1;
    the sum; e F >> k. Once: the maximum, F = M // min(sum, M)."""
    found = counted("softmax", "ivit")
    assert found["multiplications"] == 2 * N
    assert found["additions"] == 7 * N
    assert found["shifts"] == 5 * N
    assert found["divisions"] == N + 1
    assert found["comparisons"] == N - 1 + N + 1
    assert found["roots"] == 0


def test_ibert_layernorm_by_hand():
    """Per element: the sum, x - mean, the shift, its square, their sum, d F >> 1, the bias; once mean, root and F."""
    found = counted("layernorm", "ibert")
    assert (found["multiplications"], found["roots"]) == (2 * N + 0, 1)
    assert N <= found["shifts"] - N <= N + 1
    assert found["divisions"] == 2


def test_powers_of_two_only_shift():
    def spec(row):
        (x,) = row
        return [x * 3, x * 4, 4 * x, x // 8, x // 3, 64 // x, x**2, x % 16]

    counts = Counts()
    spec([_counting(counts)(40)])
    assert counts.of == {
        "multiplications": 2,
        "shifts": 4,
        "divisions": 2,
        "additions": 0,
        "comparisons": 0,
        "roots": 0,
    }


@pytest.mark.parametrize("method", registry.methods(), ids=lambda m: m.id)
def test_counting_changes_no_value_and_no_specification(method):
    params = method.constants(0.02, FACTS, {})[0]
    before = method.spec(ROW, params)
    found = of_row(method.spec, ROW, params)
    assert sum(found.of.values()) >= 3 * N
    assert method.spec(ROW, params) == before
    assert all(type(v) is int for v in method.spec(ROW, params))
    assert softmax.rhe.__module__ == "intvit.spec.arith"
    assert of_row(method.spec, ROW, params).of == found.of


def test_shapes_say_what_products_cost():
    graph = small_graph()
    found = {each.site: each for each in costs(graph)}
    rows, channels = 3, 4
    of = found["fc"].operations.of
    assert (of["multiplications"], of["additions"]) == (rows * channels * channels,) * 2
    assert found["fc"].bytes_constant * 8 >= channels * channels * 8
    of = found["fc.quant"].operations.of
    assert (of["multiplications"], of["shifts"], of["additions"]) == (rows * channels,) * 3
    assert {"fc", "fc.quant"} <= set(found)
    assert all(sum(each.operations.of.values()) > 0 for each in found.values() if each.operator not in ("slice",))


def test_on_the_command_line(cli, mixed, tmp_path):
    save(mixed, tmp_path / "g.h5")
    status, out, err = cli("costs", tmp_path / "g.h5", "-o", tmp_path / "c.toml", "--weights", "divisions=25")
    assert status == 0, err
    assert "linear" in out
    tables = tomllib.loads((tmp_path / "c.toml").read_text())
    assert set(tables["softmax"]) == {"ibert", "fqvit", "ivit"}
    assert read_constraints(None, tmp_path / "c.toml", 1e9).costs == tables
    assert tables == json.loads(json.dumps(tables))
    rows = json.loads(cli("costs", tmp_path / "g.h5", "--json", "--weights", "divisions=25")[1])
    sites = [r["weighed"] for r in rows if r["operator"] == "softmax" and r["method"] == "ivit.v1"]
    assert tables["softmax"]["ivit"] == pytest.approx(sum(sites) / len(sites), rel=1e-5)
    expected = by_method(costs(load(tmp_path / "g.h5")), read_weights("divisions=25"))
    assert expected["gelu"]["ibert"] == pytest.approx(tables["gelu"]["ibert"], rel=1e-5)
    for weights in ("foo=1", "divisions", "divisions=-1", "divisions=nan"):
        status, _, err = cli("costs", tmp_path / "g.h5", "--weights", weights, "-o", tmp_path / "d.toml")
        assert status == 2
        assert "--weights: must be KIND=NUMBER" in " ".join(err.split())
        assert not (tmp_path / "d.toml").exists()
    with pytest.raises(IntvitError, match="roots"):
        read_weights("root=2")
