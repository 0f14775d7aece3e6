"""Integers of whole uniform models are those that commit b2db6e3 computed from the same ranges."""

import json

from pipeline_digests import FOLDER, digests


def test_uniform_models_are_bit_for_bit_what_they_were():
    expected = json.loads((FOLDER / "digests.json").read_text())
    assert len(expected) == 12
    assert digests(json.loads((FOLDER / "ranges.json").read_text())) == expected
