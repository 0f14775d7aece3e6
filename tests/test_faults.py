"""What commands leave behind when they are killed, interrupted, without room, beside each other or in a poor place."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from intvit.floats.recording import Recording

ROOT = Path(__file__).resolve().parent.parent
INTVIT = [sys.executable, "-m", "intvit"]


def test_every_kind_of_fault_at_a_sample_of_all_writes():
    """The tool's whole run is every write; here the first, the last and two between."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "write_faults.py", "--sample", "4"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if done.returncode == 3:
        pytest.skip("no C compiler")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": 0 findings") == 21


@pytest.fixture(scope="module")
def images(vit):
    path = vit.folder / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (6, 1, 28, 28), np.uint8))
    return path


@pytest.fixture(scope="module")
def commands(vit, mixed_path, images):
    """Every command that writes a file, but for the output."""
    recorded = ["--recording", vit.recording_path]
    return {
        "import": ["import", ROOT / "intvit/floats/data/vit_fashion.safetensors"],
        "record": ["record", vit.onnx_path, images],
        "lower": ["lower", vit.onnx_path, *recorded, "--method", "ivit"],
        "run": ["run", mixed_path, images],
        "map": ["map", vit.onnx_path, *recorded, "--images", "fashion-mnist:calibration", "--limit", "1"],
    }


WRITERS = ["import", "record", "lower", "run", "map"]


def unwritable(tmp_path):
    """A folder that takes no file: for a user one without rights, for root a file system that is read-only."""
    if os.geteuid() == 0:
        return Path("/sys")
    tmp_path.chmod(0o500)
    return tmp_path


@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_that_takes_no_file(cli, commands, tmp_path, command):
    folder = unwritable(tmp_path)
    for output in (folder / "x.h5", tmp_path / "missing" / "x.h5", tmp_path):
        status, _, err = cli(*commands[command], "-o", output)
        assert (status, err.count("\n")) == (2, 1), err
        assert f"{output}: " in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["lower", "run"])
def test_a_trace_or_graph_on_a_full_device(cli, commands, tmp_path, command):
    """`/dev/full` itself cannot be replaced, and stays what it is."""
    status, _, err = cli(*commands[command], "-o", "/dev/full/x")
    assert (status, err.count("\n")) == (2, 1), err


def test_npz_and_trace_appear_together_or_not_at_all(cli, commands, tmp_path):
    for npz, trace in ((tmp_path / "l.npz", tmp_path / "no" / "t.h5"), (tmp_path / "no" / "l.npz", tmp_path / "t.h5"),
                       (tmp_path / "x", tmp_path / "x")):  # fmt: skip
        status, _, err = cli(*commands["run"], "-o", npz, "--trace", trace, "--limit", "1")
        assert (status, err.count("\n")) == (2, 1), err
        assert list(tmp_path.iterdir()) == []


def start(*arguments, **options):
    return subprocess.Popen([*INTVIT, *map(str, arguments)], stderr=subprocess.PIPE, text=True, cwd=ROOT, **options)


@pytest.mark.parametrize("command", ["record", "lower"])
def test_writers_of_one_file_at_the_same_time(commands, tmp_path, command):
    running = [start(*commands[command], "-o", tmp_path / "x.h5") for _ in range(3)]
    ends = [(process.communicate(timeout=300)[1], process.returncode) for process in running]
    assert {status for _, status in ends} <= {0, 2}, ends
    assert 0 in {status for _, status in ends}
    assert all("one writer at a time" in err and err.count("\n") == 1 for err, status in ends if status == 2), ends
    assert [p.name for p in tmp_path.iterdir()] == ["x.h5"]


def wait_for(path, process):
    limit = time.monotonic() + 300
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.002)


ENDS = [(signal.SIGINT, 130, "intvit: interrupted\n"), (signal.SIGTERM, 143, "intvit: terminated\n"),
        (signal.SIGHUP, 129, "intvit: terminated\n")]  # fmt: skip


@pytest.mark.parametrize(("number", "status", "said"), ENDS[:2])
def test_a_signal_leaves_a_recording_that_resumes(vit, tmp_path, number, status, said):
    arguments = ["record", vit.onnx_path, "fashion-mnist:calibration", "-o", tmp_path / "r.h5", "--batch", "1",
                 "--limit", "20"]  # fmt: skip
    process = start(*arguments)
    wait_for(tmp_path / "r.h5.partial.journal", process)
    assert (ended(process, number), process.returncode) == (said, status)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.h5.partial", "r.h5.partial.journal"]
    done = subprocess.run([*INTVIT, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "resumed after image" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["r.h5"]
    with Recording(tmp_path / "r.h5") as recording:
        assert recording.n_images == 20


def ended(process, number):
    """What a process says last, sent a signal; Python may say before that it met it in a callback."""
    process.send_signal(number)
    said = process.communicate(timeout=300)[1]
    return said[said.rindex("intvit: ") :] if "Exception ignored" in said and "intvit: " in said else said


@pytest.mark.parametrize(("number", "status", "said"), ENDS)
def test_a_signal_leaves_nothing_of_a_trace(mixed_path, tmp_path, number, status, said):
    process = start("run", mixed_path, "fashion-mnist:test", "-o", tmp_path / "l.npz", "--trace", tmp_path / "t.h5",
                    "--batch", "1", "--threads", "1")  # fmt: skip
    wait_for(tmp_path / "t.h5.partial", process)
    assert (ended(process, number), process.returncode) == (said, status)
    assert list(tmp_path.iterdir()) == []


def test_no_home_no_terminal_no_standard_streams(commands, mixed_path, images, tmp_path):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = " ".join(map(str, [*INTVIT, "run", mixed_path, images, "-o", tmp_path / "l.npz", "--limit", "2"]))
    done = subprocess.run(
        ["sh", "-c", f"{command} <&- >&- 2>&-"], env={**environment, "HOME": "/nonexistent"}, timeout=600
    )
    assert done.returncode == 0
    done = subprocess.run(
        [*INTVIT, "eval", mixed_path, "fashion-mnist:test", "--limit", "2", "--json"],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["images"] == 2
    with np.load(tmp_path / "l.npz") as file:
        assert len(file["logits"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["l.npz"]
