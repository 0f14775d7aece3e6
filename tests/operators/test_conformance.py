"""The published arithmetic, from the project's own copy of the vectors: operators and whole models, both backends."""

import json
import subprocess
import sys
from pathlib import Path

import conformance
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = sorted((ROOT / "golden" / "conformance").rglob("*.npz"))


def test_all_files_are_here():
    assert len(FILES) == 31


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_element_is_equal(path):
    score = conformance.replay_file(path)
    assert score.ok, score.problems[:3]


def run_tool(folder):
    command = [sys.executable, str(ROOT / "tools" / "conformance.py"), str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout)


def copy_with(path, folder, change):
    with np.load(path) as file:
        arrays = {key: np.array(file[key]) for key in file.files}
    change(arrays)
    np.savez(folder / path.name, **arrays)


def test_tool_fails_on_one_changed_element(tmp_path):
    def change(arrays):
        arrays["case3_y_int"].reshape(-1)[5] += 1

    copy_with(next(p for p in FILES if p.stem == "ivit_softmax_8"), tmp_path, change)
    status, report = run_tool(tmp_path)
    assert (status, report["ok"]) == (1, False)
    assert "case 3 kernel y_int: 1 of" in report["files"][0]["problems"][0]


def test_tool_fails_on_a_changed_model_tensor(tmp_path):
    def change(arrays):
        arrays["int/blocks.1.attn.proj"].reshape(-1)[7] ^= 1

    copy_with(next(p for p in FILES if p.stem == "vit_ivit"), tmp_path, change)
    assert run_tool(tmp_path)[0] == 1


@pytest.mark.parametrize("name", ["unknown.npz", "broken.npz", "surprise.bin"])
def test_tool_never_skips(tmp_path, name):
    if name == "unknown.npz":
        np.savez(tmp_path / name, num_cases=np.array(1))
    else:
        (tmp_path / name).write_bytes(b"PK\x03\x04 nothing")
    status, report = run_tool(tmp_path)
    assert status == 1
    assert report["files"][0]["problems"]


def test_an_empty_folder_fails(tmp_path):
    assert run_tool(tmp_path)[0] == 1
