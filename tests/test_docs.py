"""The documents say what is computed: worked rows, tables of widths and citations are held to the code."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import widths

from intvit import spec
from intvit.kernels import registry

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
ARITHMETIC = (ROOT / "docs" / "quantization.md").read_text()
SOURCES = [path for folder in ("intvit", "tools", "tests", "docs") for path in sorted((ROOT / folder).rglob("*.py"))]
CITATION = re.compile(r'docs/quantization\.md,\s+(?:#\s+)?"([^"]+)"')


def headings():
    return set(re.findall(r"^##+ (.+)$", ARITHMETIC, re.MULTILINE))


def run_examples(text, name):
    """Doctest's result on a text, with whatever differs as one string."""
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    said = []
    runner = doctest.DocTestRunner()
    runner.run(test, out=said.append)
    return runner.summarize(verbose=False), "".join(said)


def test_worked_rows():
    result, said = run_examples(ARITHMETIC, "quantization.md")
    assert result.failed == 0, said
    assert result.attempted >= 20


def test_a_changed_digit_is_noticed():
    line = "    factor     u12  2394"
    assert line in ARITHMETIC
    result, said = run_examples(ARITHMETIC.replace(line, "    factor     u12  2395"), "changed")
    assert result.failed == 1
    assert "2395" in said


def test_every_function_of_the_spec_has_a_worked_row():
    calls = re.findall(r">>> .*?(?:show|intermediates)\((\w+\.\w+)", ARITHMETIC)
    methods = {f"{m.spec.__module__.rpartition('.')[2]}.{m.spec.__name__}" for m in registry.methods()}
    assert methods | {"requantize.requantize", "matmul.linear", "matmul.log2_matmul", "pool.mean"} <= set(calls)


@pytest.mark.parametrize("module", [m.name for m in pkgutil.iter_modules(spec.__path__)])
def test_examples_of_the_spec(module):
    assert doctest.testmod(importlib.import_module(f"intvit.spec.{module}")).failed == 0


def test_tables_of_widths_are_those_of_the_tool():
    assert widths.with_tables(ARITHMETIC) == ARITHMETIC, "python tools/widths.py --write"


def test_the_tool_measures_other_rows():
    command = [sys.executable, str(ROOT / "tools" / "widths.py"), "--operator", "softmax"]
    command += ["--rows", "7", "--columns", "9", "--bits", "6", "--scale", "0.5", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("**softmax**: 7 rows of 9 s6, scale 0.5, seed 3\n")
    assert "| `x_max` | s6 | s6 | s6 | s6 | largest input that is not masked |" in done.stdout


def test_sections_that_are_cited_exist():
    cited = {}
    for path in [*SOURCES, *DOCUMENTS, *sorted((ROOT / "docs" / "decisions").glob("*.md"))]:
        for title in CITATION.findall(path.read_text()):
            cited.setdefault(re.sub(r"\s+", " ", title), path.name)
    assert len(cited) >= 8
    assert {title: name for title, name in cited.items() if title not in headings()} == {}
    for method in registry.methods():
        named = CITATION.findall(method.source)
        assert set(named) <= headings(), method.id
        assert named or method.source.startswith("arXiv "), method.id


def test_sections_that_the_document_itself_cites_exist():
    assert set(re.findall(r'\("([A-Z][^"]+)"\)', ARITHMETIC)) <= headings()


def test_nothing_cites_a_text_that_is_not_here():
    absent = "conformance" + " README"
    assert [p.name for p in [*SOURCES, *DOCUMENTS] if absent.lower() in p.read_text().lower()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.stem)
def test_lines_are_no_longer_than_120(path):
    """But for what a command printed, between ``` marks, or wrote there itself."""
    text = re.sub(r"^```.*?^```|^<!-- begin.*?^<!-- end", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in text.splitlines() if len(line) > 120] == []


def test_the_recipe_of_the_documents_is_one(vit, tmp_path):
    """Every key that docs/recipes.md shows, read and lowered."""
    from intvit.lowering.recipe import Quantizers, Recipe, read_recipe

    text = (ROOT / "docs" / "recipes.md").read_text()
    (tmp_path / "r.toml").write_text(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    recipe = read_recipe(tmp_path / "r.toml")
    assert recipe.model_fields_set == set(Recipe.model_fields) - {"layernorm"}
    assert vit.lower(recipe).metadata["recipe"]["quantizers"]["blocks.1.mlp.fc2"] == {
        "weight_bits": 6,
        "zero_point": False,
    }
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert rows == set(Quantizers.model_fields)
