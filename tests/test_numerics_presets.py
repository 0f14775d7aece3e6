"""Every preset against what its owner's own code made of the same 2**20 values a case (tools/preset_vectors.py)."""

import json
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import preset_owners
import preset_vectors as vectors
import pytest

from intvit import ops
from intvit.spec.numerics import PRESETS

MODES = ("half_even", "half_up", "half_away", "floor", "toward_zero")
CASES = list(vectors.cases())
GOLDEN = json.loads(vectors.GOLDEN.read_text(encoding="ascii"))["presets"]


@lru_cache(maxsize=5)
def inputs(preset, name):
    return vectors.inputs(preset, name)


@pytest.fixture(scope="module", params=CASES, ids=[f"{preset}.{name}" for preset, name in CASES])
def made(request):
    """A case, what the kernel makes of it, and what is stored of it."""
    preset, name = request.param
    case = inputs(preset, name)
    return SimpleNamespace(case=case, y=ops.requantize(case.x, **case.options()), stored=GOLDEN[preset]["cases"][name])


def reproduced(preset, name, **changed):
    """Whether the owner's outputs are those of the preset with other numerics."""
    case = inputs(preset, name)
    y = ops.requantize(case.x, **case.options() | {"numerics": case.numerics | changed})
    return vectors.digest(y) == GOLDEN[preset]["cases"][name]["outputs"]


def test_every_preset_has_an_owner_and_a_million_values():
    counted = {name: min(case["count"] for case in found["cases"].values()) for name, found in GOLDEN.items()}
    assert set(counted) == set(vectors.OWNERS) == set(PRESETS)
    assert [(preset, name) for preset, found in GOLDEN.items() for name in found["cases"]] == sorted(CASES)
    assert min(counted.values()) >= 10**6


def test_every_owner_that_is_not_on_pypi_has_what_runs_it():
    for preset in set(vectors.OWNERS) - {"hawq", "tosa_single", "tosa_double"}:
        assert preset.removesuffix("_single").removesuffix("_double") in preset_owners.RUN
    assert {path.suffix for path in preset_owners.OWN.rglob("*") if path.is_file()} == {".c", ".cc", ".h", ".sv"}


def test_inputs_are_those_that_the_owner_got(made):
    assert vectors.digest(*made.case.arrays().values()) == made.stored["inputs"]


def test_sampled_rows_are_the_owners(made):
    """Says which value differs, where the next test says only that one does."""
    assert vectors.sample(made.case, made.y) == made.stored["sample"]


def test_all_values_are_the_owners(made):
    assert vectors.digest(made.y) == made.stored["outputs"]


def test_the_specification_agrees(made):
    few = made.case.columns(512)
    assert few.x.size >= 2000
    np.testing.assert_array_equal(ops.requantize(few.x, **few.options(), backend="spec"), made.y[:, ::512])


@pytest.mark.parametrize("preset", PRESETS)
def test_another_rounding_is_found(preset):
    """In some case of each: of x without a sign half_up is half_away."""
    same = [mode for mode in MODES if all(reproduced(preset, name, rounding=mode) for name in vectors.KINDS[preset])]
    assert same == [PRESETS[preset].rounding]


@pytest.mark.parametrize(
    ("preset", "name", "changed"),
    [
        ("tosa_single", "s32", {"double_rounding": True}),
        ("tosa_double", "s32", {"double_rounding": False}),
        ("tflite_single", "s32", {"double_rounding": True}),
        ("tflite_double", "s32", {"double_rounding": False}),
        ("cmsis_nn", "s8", {"double_rounding": False}),
        ("hawq", "s8", {"output_overflow": "wrap"}),
        ("hawq", "s8_residual", {"rounded_bits": 8}),
        ("deeploy", "of_s32", {"residual": "each"}),
        ("deeploy", "wraps", {"product_overflow": "saturate"}),
        ("deeploy", "wraps", {"product_bits": 64}),
        ("ita", "unsigned_wide", {"rounded_bits": 35}),
        ("ita", "unsigned_wide", {"rounded_overflow": "saturate"}),
    ],
    ids=str,
)
def test_another_word_is_found(preset, name, changed):
    assert not reproduced(preset, name, **changed)
