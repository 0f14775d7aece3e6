"""A package of somebody else's, installed into a folder of its own: a softmax and nothing more, with one option."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from intvit.analysis.battery import findings
from intvit.errors import IntvitError
from intvit.kernels import registry
from intvit.lowering.recipe import build_recipe

TESTS = Path(__file__).resolve().parent.parent
FOREIGN = TESTS.parent / "golden" / "foreign"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A way to run intvit where the package is installed."""
    site, work = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("work")
    source = tmp_path_factory.mktemp("source") / "plugin"
    shutil.copytree(TESTS / "plugin", source)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    paths = [str(site), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def python(*arguments, status=0):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=environment,
            cwd=work,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    def run(*arguments, status=0):
        return python("-m", "intvit", *arguments, status=status)

    run.work, run.python = work, python
    run("import", FOREIGN / "vit_old13.onnx", "-o", "m.onnx")
    python("-c", "import numpy as np; np.save('x.npy', np.random.default_rng(0).normal(size=(2, 3, 16, 16)))")
    return run


def test_it_is_listed_and_passes_the_battery(installed):
    assert "softmax.pow2.v1" in installed("methods")
    assert "softmax.pow2.v1: nothing found" in installed("methods", "--check", "pow2")
    said = installed("methods", "--check", "pow3", status=2)
    assert "must be one of fqvit, ibert, ivit, ivit_tvm, pow2, not 'pow3'" in said


CHECK = """
import numpy as np
from intvit.graph.store import load
graph = load("g.h5")
print(sorted({(n.op, n.attrs["method"]) for n in graph.nodes if "method" in n.attrs}))
for node in graph.nodes:
    if node.op == "softmax":
        assert np.frexp(float(graph.tensors[node.inputs[0]].scale))[0] == 0.5
        assert node.attrs["params"]["guard"] == 16
        assert node.attrs["params"]["out_bits"] == 12
a, b = np.load("kernel.npz"), np.load("spec.npz")
assert all(np.array_equal(a[key], b[key]) for key in a.files)
"""


def test_a_uniform_model_borrows_what_it_lacks(installed):
    installed("lower", "m.onnx", "--images", "x.npy", "--method", "pow2", "-o", "g.h5")
    installed("run", "g.h5", "x.npy", "-o", "kernel.npz")
    installed("run", "g.h5", "x.npy", "-o", "spec.npz", "--backend", "spec")
    installed("golden", "export", "g.h5", "x.npy", "-o", "golden", "--site", "softmax")
    assert "every bit equal" in installed("golden", "check", "golden")
    kinds = installed.python("-c", CHECK).strip()
    assert kinds == "[('gelu', 'ivit'), ('layernorm', 'ivit'), ('softmax', 'pow2')]"


def test_its_option_is_checked_and_reaches_the_constants(installed):
    recipe = installed.work / "r.toml"
    recipe.write_text('softmax = { method = "pow2", guard = 9 }\n')
    installed("lower", "m.onnx", "--images", "x.npy", "--recipe", recipe, "-o", "h.h5")
    recipe.write_text('softmax = { method = "pow2", guard = 99 }\n')
    said = installed("lower", "m.onnx", "--images", "x.npy", "--recipe", recipe, "-o", "i.h5", status=2)
    assert "softmax: guard: must be less than or equal to 24, not 99" in said
    recipe.write_text('softmax = { method = "pow2", n = 6 }\n')
    said = installed("lower", "m.onnx", "--images", "x.npy", "--recipe", recipe, "-o", "i.h5", status=2)
    assert "n: must be an option of softmax.pow2.v1 (guard), not 6" in said


def test_it_is_a_candidate_of_a_mapping(installed):
    installed("map", "m.onnx", "--images", "x.npy", "--methods", "pow2,ivit", "-o", "map.json")
    scores = json.loads((installed.work / "map.json").read_text())["scores"]
    assert {(s["operator"], s["method"]) for s in scores} == {
        ("softmax", "pow2"), ("softmax", "ivit"), ("gelu", "ivit"), ("layernorm", "ivit"),
    }  # fmt: skip


@pytest.mark.parametrize("method", registry.methods(), ids=lambda m: m.id)
def test_every_method_of_ours_passes_the_battery(method):
    assert findings(method) == []


def floats(row, params, mask=None):
    return [float(value) for value in registry.get("gelu", "ivit").spec(row, params)]


def off_by_one(params):
    run = registry.get("gelu", "ivit").kernel(params)
    return lambda rows, mask=None: run(rows) + (rows > 100)


BROKEN = {
    "kernel": ({"kernel": off_by_one}, "spec gives"),
    "floats": ({"spec": floats}, "calls float"),
    "bound": ({"bound": lambda params, x_max, n: 3}, "bound: 3 must hold every output"),
    "fact": ({"lower": lambda in_scale, *, colour: None}, "colour must be a fact of gelu or an option"),
    "scale": ({"lower": lambda in_scale: 1 // 0}, "ZeroDivisionError"),
    "nowhere": ({"lower": lambda in_scale: build_recipe({"x": 1})}, "refused every scale"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_battery_can_fail(name):
    changes, expected = BROKEN[name]
    found = findings(dataclasses.replace(registry.get("gelu", "ivit"), **changes))
    assert any(re.search(expected, line) for line in found), found


def test_options_of_other_methods_are_refused_by_recipes():
    with pytest.raises(IntvitError, match=r"recipe: gelu: n: must be an option of gelu\.ivit\.v1 \(none\), not 6"):
        build_recipe({"gelu": {"method": "ivit", "n": 6}})
    with pytest.raises(IntvitError, match=r"recipe: gelu: n: must be less than or equal to 30, not 31"):
        build_recipe({"gelu": {"method": "ibert", "n": 31}})
    assert build_recipe({"gelu": {"method": "ibert", "n": None}}).gelu.options == {}
    assert build_recipe({}).with_method("ivit_tvm").softmax.method == "ivit_tvm"
