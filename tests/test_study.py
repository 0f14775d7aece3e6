"""The study: the same results whole, in shards, by workers and after a kill; what it says is what models do."""

import argparse
import csv
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress

import numpy as np
import onnx
import pytest
import real_weights
import study
from PIL import Image
from test_import_timm import random_vit

from intvit.analysis.outputs import outcomes, summary
from intvit.errors import IntvitError
from intvit.floats.importers.timm import import_timm
from intvit.floats.live import LiveActivations
from intvit.floats.model import FloatModel
from intvit.lowering.calibrate import calibrate
from intvit.lowering.context import lower
from intvit.lowering.recipe import build_recipe

TOML = """
format = "intvit.study"
version = 1
bits = [8, 6]
seeds = [3]
observers = ["mse"]
rules = ["uniform/sqnr_diff", "isolated/sqnr_output", "prefix/sqnr_diff"]
test_images = 30

[[models]]
name = "small"
weights = "small.onnx"
pool = "pool.npz"
test = "test.npz"
calibration = 8
observed = 20
single = 10
ceiling = 10
searches = { greedy = 12, pairwise = 8, exact = 6, tpe = 4 }
quantizers_too = ["greedy"]
budget = 8
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    pytest.importorskip("highspy")
    pytest.importorskip("optuna")
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(5)
    weights = random_vit(rng, dim=16, depth=1, patch=4, side=8, channels=1, hidden=24, classes=4)
    np.savez(folder / "small.npz", **weights)
    onnx.save(
        import_timm(str(folder / "small.npz"), num_heads=2, img_size=8, mean=[0.5], std=[0.5]),
        str(folder / "small.onnx"),
    )
    for name, n in (("pool", 40), ("test", 36)):
        images = rng.integers(0, 256, (n, 1, 8, 8)).astype(np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=rng.integers(0, 4, n))
    (folder / "study.toml").write_text(TOML)
    return folder


def ran(data, folder, *options, status=0):
    command = [sys.executable, study.__file__, data / "study.toml", "--data", data, "--folder", folder, *options]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    ran(data, folder)
    return folder


def same(a, b):
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in ("study.json", "study.csv", "tables.md"))


def test_what_is_said_is_what_models_do(data, whole):
    first = json.loads((whole / "study.json").read_text())[0]
    records = {each["name"]: each for each in first["records"]}
    searches = {f"search {kind}" for kind in ("greedy", "pairwise", "exact", "tpe")}
    named = {f"uniform {name}" for name in ("ibert", "fqvit", "ivit")} | searches
    named |= {f"rule {each}" for each in ("uniform/sqnr_diff", "isolated/sqnr_output", "prefix/sqnr_diff")}
    named |= {"uniform of observer auto", "search quantizers+greedy"}
    named |= {"default of map", "ceiling", f"observer mse: {first['best']}", "observer mse: rule uniform/sqnr_diff"}
    assert set(records) == named
    model = FloatModel(data / "small.onnx")
    entry = study.read_study(data / "study.toml").models[0]
    subject = study.Subject.of(entry, data)
    seen, test = subject.split(3)
    assert len(seen) == 12
    recipe = build_recipe({"preset": "accurate", "bits": 8})
    calibration = calibrate(subject_graph(model), LiveActivations(model, seen, 8), recipe)
    integer = lower(subject_graph(model), calibration, recipe.with_method("ivit"))
    expected = summary(outcomes(integer, test, model, limit=30))
    assert records["uniform ivit"]["sqnr"] == pytest.approx(expected["sqnr"], abs=1e-9)
    assert records["uniform ivit"]["top1"] == pytest.approx(100 * expected["integer"])
    assert records[first["best"]]["sqnr_gain"] == [0, 0, 0]
    assert records["ceiling"]["sqnr"] > records["uniform ivit"]["sqnr"]
    assert all(-1 <= value <= 1 for value in first["correlations"].values())
    with (whole / "study.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(named)
    assert {line["bits"] for line in lines} == {"8", "6"}


def subject_graph(model):
    from intvit.floats.importers.onnx import float_graph

    return float_graph(model.proto)


def test_what_the_pool_leaves_judges(data, tmp_path):
    shutil.copy(data / "small.onnx", tmp_path / "small.onnx")
    numbers = np.repeat(np.arange(20, dtype=np.uint8), 64).reshape(20, 1, 8, 8)
    np.savez(tmp_path / "pool.npz", images=numbers)
    entry = {"name": "small", "weights": "small.onnx", "pool": "pool.npz", "calibration": 4}
    subject = study.Subject.of(study.ModelEntry(**entry, searches={"greedy": 12}), tmp_path)
    seen, test = (images.raw(0, len(images))[:, 0, 0, 0].tolist() for images in subject.split(7))
    assert (len(seen), sorted(seen + test)) == (12, list(range(20)))
    assert subject.split(7)[0].sha256() != subject.split(8)[0].sha256()
    with pytest.raises(IntvitError, match="small: pool must have more than 20 images, of which some judge"):
        study.Subject.of(study.ModelEntry(**entry, searches={"greedy": 20}), tmp_path).split(7)


def test_photographs_in_a_resource_file(monkeypatch, tmp_path):
    """Those of a side of 224 pixels and more, without alpha; as many as the version has."""

    def webp(size, alpha=255):
        file, image = io.BytesIO(), Image.effect_noise((size, size), 50).convert("RGB")
        image.putalpha(alpha)
        image.save(file, "WEBP")
        return file.getvalue()

    kept = [webp(224), webp(300)]
    (tmp_path / "a.rcc").write_bytes(b"qresRIFF" + kept[0] + webp(100) + b"RIFFRI" + webp(300, alpha=9) + kept[1])
    (tmp_path / "0.jpg").write_bytes(b"zero")
    monkeypatch.setattr(real_weights, "fetch", lambda folder: folder)
    monkeypatch.setattr(real_weights, "PHOTOGRAPHS", ["0.jpg"])
    monkeypatch.setattr(real_weights, "RESOURCES", {"a.rcc": 2})
    expected = [("00.jpg", b"zero"), ("a-00.webp", kept[0]), ("a-01.webp", kept[1])]
    assert list(real_weights.every_photograph(tmp_path)) == expected
    monkeypatch.setattr(real_weights, "RESOURCES", {"a.rcc": 3})
    with pytest.raises(IntvitError, match=r"a\.rcc: must hold 3 photographs, not 2"):
        list(real_weights.every_photograph(tmp_path))


def test_shards_merged_are_the_whole(data, whole, tmp_path):
    for shard in ("1/2", "2/2"):
        ran(data, tmp_path / "parts", "--shard", shard, "--store", tmp_path / f"{shard[0]}.sqlite")
    assert not (tmp_path / "parts" / "study.json").exists()
    into = tmp_path / "merged" / "rows.sqlite"
    into.parent.mkdir()
    command = [sys.executable, study.__file__, "merge", into, tmp_path / "1.sqlite", tmp_path / "2.sqlite"]
    subprocess.run(command, check=True, capture_output=True)
    done = ran(data, tmp_path / "merged")
    assert "mappings on test images" not in done.stderr  # nothing is measured again
    assert same(tmp_path / "merged", whole)


def test_a_killed_study_goes_on(data, whole, tmp_path):
    """Killed when some of the rows are there, however fast the machine is."""
    command = [sys.executable, study.__file__, data / "study.toml", "--data", data, "--folder", tmp_path / "s"]
    n_rows = rows_in(whole / "rows.sqlite")
    for least in (1, n_rows // 3, 2 * n_rows // 3):
        process = subprocess.Popen([str(c) for c in command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while rows_in(tmp_path / "s" / "rows.sqlite") < least:
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert least <= rows_in(tmp_path / "s" / "rows.sqlite") < n_rows
    ran(data, tmp_path / "s")
    assert same(tmp_path / "s", whole)


def test_a_job_that_was_killed_is_said(monkeypatch, capsys, tmp_path):
    script = tmp_path / "job.py"
    script.write_text("import os, sys\nif '2/3' in sys.argv:\n    os.kill(os.getpid(), 9)\n")
    monkeypatch.setattr(study, "__file__", str(script))
    study.spread(argparse.Namespace(study="a.toml", folder=tmp_path, data=tmp_path, store=tmp_path / "rows.sqlite"), 3)
    assert capsys.readouterr().err.startswith("job 2 of 3 was ended by SIGKILL, as one that lacks memory is; ")


def rows_in(store):
    """How many rows a study has written to a store that may not be there yet."""
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
        return connection.execute("select count(*) from rows").fetchone()[0]
    return 0


def test_workers_give_the_same_results(data, whole, tmp_path):
    pytest.importorskip("distributed")
    ran(data, tmp_path / "w", "--workers", "2", "--part", "5")
    assert same(tmp_path / "w", whole)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version = 1", "version = 2", "study must be intvit.study 1, not intvit.study 2"),
        ('format = "intvit.study"', "", "study must be intvit.study 1, not None 1"),
        ("bits = [8, 6]", "bits = [9]", "bits.0: Input should be less than or equal to 8"),
        ("seeds = [3]", "seeds = []", "seeds: List should have at least 1 item"),
        ("uniform/sqnr_diff", "uniform/best", "rule: must be one of sqnr_diff, sqnr_diff_signed, sqnr_output"),
        ("isolated/", "alone/", "rules: must be basis/rule with a basis of uniform, isolated, prefix, not 'alone/"),
        ("observed = 20", "observe = 20", "models.0.observe: Extra inputs are not permitted"),
        ("bits = [8, 6]", "bits = [8,", "must be a TOML file"),
        ('"small.onnx"', '"embedded:deit"', "weights must be embedded:vit, embedded:swin or a file"),
        ('"small.onnx"', '"none.onnx"', "none.onnx"),
        ('test = "test.npz"\ncalibration = 8', "calibration = 40", "pool must have more than 40 images"),
        ("greedy = 12", "best = 12", "models.0.searches.best"),
        ("greedy = 12, ", "", "small: quantizers_too must be of its searches, and greedy is not"),
    ],
)
def test_wrong_studies_are_refused(data, tmp_path, old, new, message):
    assert old in TOML
    path = tmp_path / "study.toml"
    path.write_text(TOML.replace(old, new))
    command = [sys.executable, study.__file__, path, "--data", data, "--folder", tmp_path / "s"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.sqlite"))


def test_a_damaged_store_is_not_merged(data, whole, tmp_path):
    damaged, into = tmp_path / "damaged.sqlite", tmp_path / "into.sqlite"
    shutil.copyfile(whole / "rows.sqlite", damaged)
    with closing(sqlite3.connect(damaged)) as connection, connection:
        key, value = connection.execute("select key, value from rows order by key desc limit 1").fetchone()
        changed = bytes([value[0] ^ 1]) + value[1:]
        connection.execute("update rows set value = ? where key = ?", (changed, key))
    done = subprocess.run([sys.executable, study.__file__, "merge", into, damaged], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 2
    assert f"rows {key[:12]} must be as they were written, and were damaged" in done.stderr
    assert not into.exists()


def test_a_folder_that_cannot_be_made_is_said(data):
    done = ran(data, "/proc/none", status=2)
    assert "/proc/none: must be a folder that can be made, not: No such file or directory" in done.stderr


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1/3", "1", "a/b"])
def test_wrong_shards_are_refused(data, tmp_path, shard):
    done = ran(data, tmp_path / "s", "--shard", shard, status=2)
    assert f"--shard: must be i/n with 1 <= i <= n <= 2, the cells, not '{shard}'" in done.stderr
