"""Who may import whom, read off the import statements; what must stay light, read off a fresh interpreter."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import intvit

PACKAGE = Path(__file__).resolve().parent.parent / "intvit"

LAYERS = [
    {"errors", "files"},
    {"spec"},
    {"kernels"},
    {"graph", "ops"},
    {"floats", "lowering"},
    {"engine"},
    {"vectors", "proofs"},
    {"analysis", "mapping"},
    {"report"},
    {"cli", "__main__"},
]
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}


def imports(path):
    """Names of intvit's parts that a file imports, deferred imports too; not what only annotations need."""
    tree = ast.parse(path.read_text())
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in (node for node in ast.walk(tree) if node not in typing):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "intvit":
            parts = node.module.split(".")
            yield from ([parts[1]] if len(parts) > 1 else [a.name for a in node.names])
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("intvit."))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_layers(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part == "__init__":
        return
    for name in imports(path):
        if name in RANK:
            assert RANK[name] <= RANK[part], f"{part} imports {name}"


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import intvit", ["numpy", "numba", "onnx", "onnxruntime", "h5py"]),
        ("from intvit.cli import main; main(['--help'])", ["numba", "onnx", "onnxruntime", "h5py", "torch"]),
        ("import intvit.vectors.memh, intvit.vectors.manifest", ["numba", "onnx", "onnxruntime", "h5py"]),
    ],
)
def test_heavy_packages_stay_out(statement, forbidden):
    code = f"import sys\n{statement}\nprint([n for n in {forbidden!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_the_top_of_the_package_is_the_way_of_the_data():
    entries = {path.name for path in PACKAGE.iterdir() if not path.name.startswith(("__", "."))} - {"py.typed"}
    assert entries == {
        *("analysis", "cli.py", "engine", "errors.py", "files", "floats", "graph", "kernels", "lowering"),
        *("mapping", "ops.py", "proofs", "report", "spec", "vectors"),
    }
    for folder in PACKAGE.rglob("*"):
        if folder.is_dir() and "__pycache__" not in folder.parts and folder.name != "data":
            assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_public_names_are_there():
    for name in intvit.__all__:
        assert getattr(intvit, name).__name__ == name
