"""The equivalence tests can fail: with kernels that refuse everything, not one of them passes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from intvit.kernels import gemm

TESTS = Path(__file__).resolve().parent
REFUSING = """
import importlib, pkgutil
from hypothesis import Phase, settings
from intvit import kernels
from intvit.errors import IntvitError

def refuse(*arguments, **options):
    raise IntvitError("refused")

names = [m.name for m in pkgutil.walk_packages(kernels.__path__, "intvit.kernels.")]
modules = [importlib.import_module(name) for name in names]
from intvit.kernels.border import BORDERS
matmul = importlib.import_module("intvit.kernels.matmul")
assert len(BORDERS) > 25
settings.register_profile("refusing", phases=[Phase.explicit, Phase.generate])  # no search for the least
settings.load_profile("refusing")
for module in modules:
    for name, value in list(vars(module).items()):
        if value in BORDERS or value in (matmul.matmul, matmul.prepare_linear):
            setattr(module, name, refuse)
"""
"""A pytest plugin: every way from Python into compiled code, and the products on BLAS, refuse."""
COMPARISONS = {
    "*/test_*_equivalence.py": "test",
    "test_plan.py": "8_bit_scores or gelu_tables or log2_weights or every_tensor or plans_of",
    "matmul/test_gemm.py": "test_linear or requantized or ties or products or laid_out",
    "operators/test_inputs.py": "(every_type and i4) or broadcasts or ends_of_every or (unsigned and not spec)"
    " or random_integers or reported",
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_no_comparison_passes_when_every_kernel_refuses(name, tmp_path):
    if name == "matmul/test_gemm.py" and gemm.available_paths() == ("blas",):
        pytest.skip("this processor has no integer dot products that we use")
    (tmp_path / "refusing.py").write_text(REFUSING)
    paths = [str(tmp_path), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", "-p", "refusing", "-q", "--tb=no", "-rA", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *map(str, sorted(TESTS.glob(name))), "-k", COMPARISONS[name]],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    failed = re.findall(r"^FAILED .*", done.stdout, re.M)
    others = re.findall(r"^(?:PASSED|SKIPPED|ERROR|XFAIL|XPASS) .*", done.stdout, re.M)
    assert others == [], done.stdout[-2000:]
    assert len(failed) >= 5, done.stdout[-2000:] + done.stderr[-2000:]
