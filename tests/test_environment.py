"""Processors, LLVMs, folders and package versions that a user may have."""

import json
import os
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from numba import types

from intvit.kernels import cache, gemm
from intvit.kernels.gemm import detect, intrinsics, layout

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = """
import numpy as np
from intvit.kernels import gemm
from intvit.kernels.arith import isqrt
from intvit import ops
assert isqrt(99) == 9
y, _ = ops.softmax(np.array([[5, -3, 7]]), 0.1, method="ivit", out_bits=8)
print(gemm.chosen_path(), y.tolist())
"""


def run(code, cwd=ROOT, **environment):
    env = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")} | environment
    env = {key: value for key, value in env.items() if value is not None}
    return subprocess.run([sys.executable, "-c", code], env=env, cwd=cwd, capture_output=True, text=True, check=False)


def tile_assembly(kind, processor):
    """Machine code of one tile for a processor that need not be the host's."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    module.triple = "x86_64-unknown-linux-gnu"
    pointer = ir.IntType(8).as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [pointer, pointer, pointer, ir.IntType(64)])
    function = ir.Function(module, signature, "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    intrinsics._emit_tile(builder, kind, *function.args)
    builder.ret_void()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    machine = llvm.Target.from_triple(module.triple).create_target_machine(cpu=processor, opt=2)
    return machine.emit_assembly(parsed)


@pytest.mark.parametrize(
    ("kind", "fused", "processor", "instruction"),
    [
        (types.uint8, True, "cascadelake", r"vpdpbusd.*zmm"),
        (types.uint16, True, "cascadelake", r"vpdpwssd.*zmm"),
        (types.uint16, False, "skylake-avx512", r"vpmaddwd.*zmm"),
        (types.int16, False, "haswell", r"vpmaddwd.*ymm"),
    ],
)
def test_every_tile_compiles_with_the_llvm_of_this_numba(monkeypatch, kind, fused, processor, instruction):
    monkeypatch.setattr(intrinsics, "fuses_additions", lambda: fused)
    found = re.findall(instruction, tile_assembly(kind, processor))
    assert len(found) >= layout.MR * 2


def test_an_intrinsic_that_llvm_does_not_have_is_noticed(monkeypatch):
    form = detect.NEEDS["avx2"][1]
    assert detect.known_to_llvm(*form)

    def refuse(text):
        raise RuntimeError("Intrinsic has incorrect argument type!")

    monkeypatch.setattr(llvm, "parse_assembly", refuse)
    assert not detect.known_to_llvm(*form)


def test_a_missing_intrinsic_takes_the_next_path(monkeypatch):
    monkeypatch.setattr(detect, "known_to_llvm", lambda *form: False)
    gemm.path_notes.cache_clear()
    try:
        assert gemm.available_paths() == ("blas",)
        assert all(gemm.path_notes()[path] for path in ("vnni", "avx512", "avx2"))
    finally:
        gemm.path_notes.cache_clear()


def test_the_path_follows_the_processor_that_numba_compiles_for():
    done = run(PRODUCT, NUMBA_CPU_NAME="generic")
    assert (done.returncode, done.stdout.split()[0]) == (0, "blas"), done.stderr
    if "avx2" in gemm.available_paths():
        done = run("from intvit.kernels import gemm; print(gemm.chosen_path())", NUMBA_CPU_FEATURES="+avx2")
        assert done.stdout == "avx2\n", done.stderr


def test_a_read_only_install_without_a_home_runs_uncached_with_one_warning(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    folders = f"[__import__('pathlib').Path({str(blocked)!r})]"
    block = f"import intvit.kernels.cache as c; c._candidates = lambda here: {folders}\n"
    done = run(block + PRODUCT, HOME=str(blocked))
    assert done.returncode == 0, done.stderr
    assert done.stdout == run(PRODUCT).stdout
    assert done.stderr.count("compiled kernels cannot be kept") == 1, done.stderr


def test_where_kernels_are_kept(tmp_path, monkeypatch):
    here = Path(cache.__file__).parent
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert list(cache._candidates(here)) == [tmp_path]
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert list(cache._candidates(here)) == [here / "__pycache__"]
    monkeypatch.setattr(cache, "_candidates", lambda here: [])
    cache.cache_folder.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="cannot be kept"):
            assert cache.cache_folder() is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert int(cache.compiled(lambda a: a.sum())(np.arange(4))) == 6
    finally:
        cache.cache_folder.cache_clear()


def test_an_edited_kernel_file_has_a_folder_of_its_own_wherever_it_lies(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    digests = [cache._digest(tmp_path)]
    for name, text in (("a.py", "1"), ("deep/b.py", "1"), ("deep/er/c.py", "1"), ("deep/er/c.py", "2"), ("b.py", "1")):
        (tmp_path / name).write_text(text)
        digests.append(cache._digest(tmp_path))
    assert len(set(digests)) == len(digests)


def test_damaged_or_full_cache_folders_cost_time_and_nothing_else():
    class Broken:
        enabled = True

        def load_overload(self, *arguments):
            raise EOFError("truncated")

        def save_overload(self, *arguments):
            raise OSError(28, "No space left on device")

        def disable(self):
            self.enabled = False

    kept = Broken()
    forgiving = cache._Forgiving(kept)
    assert forgiving.load_overload("sig", "target") is None
    forgiving.save_overload("sig", "data")
    assert not kept.enabled


def test_lower_bounds_are_exact_versions():
    """`tools/lowest.py` pins what pyproject.toml promises; CI runs the suite with exactly these."""
    text = subprocess.run([sys.executable, ROOT / "tools/lowest.py"], capture_output=True, text=True, check=True).stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    promised = [*project["dependencies"], *extras["test"], *extras["rtl"], *extras["search"], *extras["distributed"]]
    assert text.splitlines() == [item.replace(">=", "==") for item in promised]


def test_doctor_says_what_runs_and_why_not_something_faster(cli, monkeypatch):
    notes = {"vnni": "this LLVM lacks an intrinsic", "avx2": "", "blas": ""}
    monkeypatch.setattr("intvit.engine.environment.path_notes", lambda: notes)
    monkeypatch.setattr("intvit.engine.environment.chosen_path", lambda: "avx2")
    status, out, _ = cli("doctor", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["integer products"] == "avx2"
    assert found["  vnni"] == "this LLVM lacks an intrinsic"
    assert found["numpy"] == np.__version__
    status, _, err = cli("doctor", "--bits", 8)
    assert (status, err) == (2, "intvit: --bits: must come with a checkpoint, or with a float model and --images\n")
