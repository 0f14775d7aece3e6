"""The list of mutants without effect: it names changes that exist, each with a search; what hangs is no kill."""

import os
import subprocess
import sys

import mutant_import
import mutate
from equivalent_mutants import EQUIVALENT
from mutant_searches import SEARCHES


def test_every_listed_mutant_exists_once_and_has_a_search_and_a_reason():
    assert mutate.listed_keys().keys() <= {mutant.key for mutant in mutate.all_mutants()}
    assert {entry.search for entry in EQUIVALENT} == set(SEARCHES)
    assert all(len(entry.reason) > 20 for entry in EQUIVALENT)


def test_a_rename_leaves_the_name_of_a_mutant(tmp_path):
    kernel = (mutate.ROOT / "intvit/kernels/requantize.py").read_text()
    assert kernel.count("residual") > 10
    (tmp_path / "renamed.py").write_text(kernel.replace("residual", "other_operand"))
    before, after = (
        [mutant.key for mutant in mutate.mutants_of(path, "kernels/requantize.py")]
        for path in (mutate.ROOT / "intvit/kernels/requantize.py", tmp_path / "renamed.py")
    )
    assert before == after


def test_mutants_have_names_of_their_own():
    mutants = mutate.all_mutants("kernels/requantize.py")
    assert len({mutant.key for mutant in mutants}) == len(mutants)
    assert len({mutant.text() for mutant in mutants[::10]}) == len(mutants[::10])


def test_a_run_of_the_tests_that_takes_too_long_is_counted_apart():
    assert mutate.run_tests(None, timeout=0) == "timed out"


def test_outcomes_of_a_search_differ_by_dtype_shape_and_refusal():
    import numpy as np

    same = np.zeros(2, np.int64)
    others = [same.astype(np.int32), same[:1], same.reshape(1, 2), same + 1, "IntvitError: x", 0, (same,)]
    assert all(mutate.plain(other) != mutate.plain(same) for other in others)
    assert mutate.plain((same, 1)) == mutate.plain((same.copy(), 1))


def test_a_mutant_in_a_subfolder_is_compiled_anew_with_what_calls_it():
    found = mutant_import.reached("kernels/gemm/pack.py")
    assert {"intvit.kernels.gemm.pack", "intvit.kernels.gemm.product"} <= found
    assert "intvit.kernels.layernorm" not in found
    assert "intvit.kernels.gemm.product" in mutant_import.reached("kernels/arith.py")


def test_every_file_of_kernels_in_a_subfolder_has_its_tests():
    files = {mutant.file for mutant in mutate.all_mutants() if mutant.file.count("/") == 2}
    assert {"kernels/gemm/pack.py", "kernels/gemm/intrinsics.py"} <= files
    assert all(mutate.keyword_of(file) for file in files)


def test_the_way_of_a_mutant_breaks_nothing_by_itself(tmp_path):
    """Numba's own `@njit`, which it meets when a first signature is compiled, is compiled as it is."""
    script = """
import mutant_import
mutant_import.install("kernels/arith.py", (mutant_import.KERNELS / "arith.py").read_text())
import numpy as np
from numba.typed import Dict
from intvit import ops
assert ops.requantize(np.array([5, 7]), 1.0, 2.0, 8).tolist() == [2, 4]
"""
    paths = os.pathsep.join(str(path) for path in (mutate.ROOT / "tools", mutate.ROOT))
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
