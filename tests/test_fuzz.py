"""The fuzzer: a short campaign of every kind of input, and that it sees what it is there to see."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SEED, COUNT = 10, 250

pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc/self/status").exists(),
                                reason="the fuzzer watches forked children through /proc")  # fmt: skip


def python(code, *arguments):
    """Run Python in a process of its own: the fuzzer forks, and this one has threads."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tools'}{os.pathsep}{ROOT}"}
    command = [sys.executable, *(["-c", code] if code else []), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def test_a_short_campaign_finds_nothing(tmp_path):
    done = python("", ROOT / "tools" / "fuzz.py", "--seed", SEED, "--count", COUNT, "--work", tmp_path / "work",
                  "--seconds", 60, "--workers", 2, "--real", 0.01)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{COUNT} of {COUNT} inputs" in done.stdout
    assert not list((tmp_path / "work").iterdir())


FAULTY = """
import json, os, signal, sys, time
import fuzz_environment
from pathlib import Path
import fuzz_cases
from fuzz_child import Settings
from fuzz_server import run_cases

work, bodies = Path(sys.argv[1]), json.loads(sys.argv[2])
for name in ("seeds", "secret"):
    (work / name).mkdir(parents=True)

def main(arguments):
    scope = globals()
    exec("def run():\\n " + bodies[int(arguments[1])], scope)
    return scope["run"]()

def seen(index, label, status, findings, text):
    found[-1].extend(finding.kind for finding in findings)

found = []
for i, body in enumerate(bodies):
    found.append([])
    fuzz_cases.COMMANDS.clear()
    fuzz_cases.COMMANDS["x"] = fuzz_cases.Command(1, f"import {i} -o m.onnx")
    run_cases(Settings(1, work, seconds=1.5 if "sleep" in body else 60, real_share=0.0), main, 0, 1, seen)
print(json.dumps(found))
"""
WRITE, REFUSE = "open('m.onnx', 'w')", "print('intvit: x: must be y, not z', file=sys.stderr)"
BODIES = {
    f"{WRITE}; return 0": [],
    f"{REFUSE}; return 2": [],
    "raise KeyError('x')": ["traceback"],
    "print('Traceback (most recent call last):', file=sys.stderr); return 70": ["traceback"],
    "return 3": ["exit"],
    "return 1": ["exit"],
    "os._exit(0)": ["died"],
    "os.kill(os.getpid(), signal.SIGSEGV)": ["killed by signal 11"],
    "time.sleep(60)": ["hang"],
    f"b'x' * (9 << 28); {REFUSE}; return 2": ["memory"],
    "return 0": ["left"],
    f"{WRITE}; open('m.onnx.partial', 'w'); return 0": ["left"],
    f"{WRITE}; {REFUSE}; return 2": ["left"],
    f"{WRITE}; open('../in/x', 'w'); return 0": ["outside"],
    f"{WRITE}; open('../outside/x', 'w'); return 0": ["outside"],
    f"{WRITE}; open('/tmp/intvit-fuzz-outside/x', 'w'); return 0": ["outside"],
    f"{WRITE}; open('../tmp/x', 'w'); return 0": ["left"],
    f"{REFUSE}; print('y', file=sys.stderr); return 2": ["message"],
    "print('intvit: x\\x1b[31m', file=sys.stderr); return 2": ["message"],
    f"{WRITE}; print('x.py:3: RuntimeWarning: y', file=sys.stderr); return 0": ["warning"],
}
"""What a command does -> the kinds of findings."""


def test_sees_what_it_is_there_to_see(tmp_path):
    done = python(FAULTY, tmp_path / "work", json.dumps(list(BODIES)))
    assert done.returncode == 0, done.stderr
    assert dict(zip(BODIES, json.loads(done.stdout), strict=True)) == BODIES


def test_a_case_is_drawn_from_its_seed_and_index_alone(tmp_path):
    code = """
import sys, hashlib, os, random
import fuzz_environment
from pathlib import Path
from fuzz_text import mutate_json, mutate_toml, mutate_bytes
from fuzz_arrays import mutate_npz, mutate_npy, npy_bytes, zip_bytes
from fuzz_formats import mutate_png, mutate_safetensors
import numpy as np, io
from PIL import Image
from safetensors.numpy import save
array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
picture = io.BytesIO()
Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture, "png")
npy = npy_bytes(array)
seeds = {mutate_json: b'{"a": [1, {"b": null}], "c": "x"}', mutate_bytes: bytes(100),
         mutate_toml: b'a = 1\\n[b]\\nc = "x"\\n',
         mutate_npy: npy, mutate_npz: zip_bytes([("a.npy", npy), ("b.npy", npy)], 8),
         mutate_png: picture.getvalue(), mutate_safetensors: save({"a": array, "b": array}, metadata={"intvit": "{}"})}
digest, changed = hashlib.sha256(), 0
for mutate, data in seeds.items():
    for i in range(150):
        made, what = mutate(random.Random(f"1:{i}"), data)
        changed += made != data
        digest.update(made + what.encode())
print(digest.hexdigest(), changed)
"""
    first, second = (python(code).stdout.split() for _ in range(2))
    assert first == second
    assert int(first[1]) > 0.9 * 7 * 150


def test_the_hash_of_a_changed_graph_is_the_one_that_the_package_computes(tmp_path, mixed, mixed_path):
    from fuzz_graph import constants, content_hash

    from intvit.graph.ir import describe

    assert content_hash(describe(mixed), constants(mixed_path)) == mixed.content_hash
    assert all(array.dtype.kind in "iub" and np.size(array) for array in constants(mixed_path).values())


def test_onnxruntime_does_not_report_on_anybody(tmp_path, vit):
    """Its telemetry leaves a file in the temporary folder, and starts a thread, as soon as it is imported."""
    for name in ("tmp", "out"):
        (tmp_path / name).mkdir()
    environment = {k: v for k, v in os.environ.items()
                   if k != "ORT_DISABLE_TELEMETRY"} | {"TMPDIR": str(tmp_path / "tmp")}  # fmt: skip
    command = [sys.executable, "-m", "intvit", "record", vit.onnx_path, "fashion-mnist:test", "-o", "r.h5", "--limit",
               "1"]  # fmt: skip
    environment["PYTHONPATH"] = str(ROOT)
    subprocess.run(command, env=environment, cwd=tmp_path / "out", check=True, capture_output=True)
    assert not list((tmp_path / "tmp").iterdir())
