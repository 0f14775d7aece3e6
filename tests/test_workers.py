"""Workers: tables by a Dask cluster are those of one process, bit for bit, whatever happens to the workers."""

import os
import pickle
import signal
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

from intvit.errors import Infeasible, IntvitError
from intvit.floats.model import FloatModel
from intvit.floats.recording import Recording
from intvit.lowering.recipe import build_recipe
from intvit.mapping.candidates import PUBLISHED, uniform_model
from intvit.mapping.scores import ISOLATED, UNIFORM, Task, Variant, score
from intvit.mapping.space import Space
from intvit.mapping.workers import Shards, cluster

pytest.importorskip("distributed")

N = 8
RECIPE = build_recipe({"bits": 6})


@pytest.fixture(scope="module")
def local():
    with cluster(n_workers=2) as found:
        yield found


@pytest.fixture(scope="module")
def candidates(vit):
    methods = PUBLISHED[::2]
    return {name: uniform_model(vit.graph, vit.calibration, RECIPE, name, methods) for name in methods}


@pytest.fixture(scope="module")
def space(vit, candidates):
    sites = list(next(iter(candidates.values())).choices)[-6:]
    options = {site: {name: c.choices[site] for name, c in candidates.items() if site in c.sites} for site in sites}
    return Space(vit.graph, vit.calibration, RECIPE, options, tuple("ivit" for _ in sites))


@dataclass(frozen=True)
class Doing:
    """Work of the tests."""

    what: str

    def ready(self):
        return getattr(self, self.what)

    def double(self, part):
        return 2 * part

    def slow(self, part):
        time.sleep(0.3)
        return os.getpid(), part

    def die(self, part):
        os.kill(os.getpid(), signal.SIGKILL)

    def refuse(self, part):
        raise Infeasible("a site", f"part {part} is refused")


def shards(vit, local, part):
    return Shards(local, FloatModel(vit.onnx_path), part)


@pytest.mark.parametrize("basis", [UNIFORM, ISOLATED])
@pytest.mark.parametrize("part", [3, 32])
def test_scores_of_workers_are_those_of_one_process(vit, local, candidates, basis, part):
    variants = tuple(Variant(name, c.recipe, c.sites, basis != ISOLATED) for name, c in candidates.items())
    task = Task(vit.graph, vit.calibration, basis, variants)
    with Recording(vit.recording_path) as recording:
        whole = score(task, recording, vit.recorded, (0, N))
    counted = []
    found = shards(vit, local, part).score(task, vit.recorded, N, counted.append)
    assert list(found.rows) == list(whole.rows)
    assert all(found.rows[key].tobytes() == rows.tobytes() for key, rows in whole.rows.items())
    assert sum(counted) == N


@pytest.mark.parametrize("part", [1, 3])
def test_outcomes_of_workers_are_those_of_one_process(vit, local, space, part):
    images = vit.recorded.read(0, N)
    (outputs,) = FloatModel(vit.onnx_path).run(images).values()
    labels = np.arange(N)
    configs = [space.base, *space.singles()]
    whole = space.measure(configs, images, outputs, labels=labels)
    found = shards(vit, local, part).measure(space, configs, images, outputs, labels)
    assert list(found) == [config for config in configs if config in whole]
    assert all(found[config].tobytes() == rows.tobytes() for config, rows in whole.items())


def test_a_killed_worker_loses_nothing(local):
    killed = []

    def kill():
        time.sleep(1)
        killed.append(next(iter(local.client.run(os.getpid).values())))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    done = []
    found = local.map(Doing("slow"), list(range(20)), done.append)
    killer.join()
    assert [part for _, part in found] == list(range(20))
    assert sorted(done) == list(range(20))
    assert killed
    assert local.map(Doing("double"), [1, 2, 3]) == [2, 4, 6]


def test_two_clusters_stand_side_by_side(local):
    with cluster(n_workers=1) as one, cluster(n_workers=1) as other:
        assert [each.map(Doing("double"), [1]) for each in (local, one, other)] == [[2], [2], [2]]


def test_what_kills_every_worker_is_given_up():
    with (
        cluster(n_workers=2) as own,  # one that dies while it is started is not started again
        pytest.raises(IntvitError, match=r"workers: must end what they are given, and 5 of them died|none was for"),
    ):
        own.map(Doing("die"), [0])


def test_work_without_workers_ends(monkeypatch):
    monkeypatch.setattr("intvit.mapping.workers.SECONDS", 1)
    monkeypatch.setattr("intvit.mapping.workers.ALONE", 2)
    with cluster(n_workers=1) as own:
        own.client.cluster.scale(0)
        with pytest.raises(IntvitError, match=r"workers: must be there, and none was for 2 s"):
            own.map(Doing("double"), [1])


def test_what_a_part_raises_is_raised(local):
    with pytest.raises(Infeasible, match=r"a site: part \d is refused") as caught:
        local.map(Doing("refuse"), [1, 2, 3])
    assert caught.value.site == "a site"
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.site, again.why) == (str(caught.value), caught.value.site, caught.value.why)


def test_workers_of_a_scheduler_are_asked_for_their_version(local, monkeypatch):
    address = local.client.scheduler.address
    local.client.wait_for_workers(2, timeout=60)  # those that other tests killed come back
    with cluster(address) as found:
        assert found.n_workers == 2
        assert found.map(Doing("double"), [5]) == [10]
    monkeypatch.setattr("intvit.__version__", "0.0.0")
    with pytest.raises(IntvitError, match=r"workers must have intvit 0\.0\.0 of specification \d+, and tcp.* has "):
        cluster(address).__enter__()


def test_map_by_workers_writes_the_same_file(vit, local, tmp_path, cli):
    common = ["map", vit.onnx_path, "--images", "fashion-mnist:calibration", "--limit", "8", "--bits", "6"]
    search = ["--search", "greedy", "--methods", "ibert,ivit", "--budget", "8"]
    address = local.client.scheduler.address
    for name, options in {"here": [], "there": ["--scheduler", address, "--part", "3"]}.items():
        assert cli(*common, *search, *options, "-o", tmp_path / name, "--rows", tmp_path / f"{name}.csv")[0] == 0
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()
    assert (tmp_path / "here.csv").read_bytes() == (tmp_path / "there.csv").read_bytes()


def test_wrong_workers_are_refused(vit, tmp_path, cli, monkeypatch):
    monkeypatch.setattr("intvit.mapping.workers.SECONDS", 1)
    for options, words in [
        (["--scheduler", "tcp://127.0.0.1:9"], "scheduler tcp://127.0.0.1:9: must be a Dask scheduler that answers in"),
        (["--scheduler", "nowhere"], "scheduler nowhere: must be a Dask scheduler that answers in"),
        (["--scheduler", "tcp://127.0.0.1:9", "--workers", "2"], "workers: must be those of a scheduler or a number"),
        (["--workers", "2", "--threads", "2"], "--threads: must not go with --workers or --scheduler"),
        (["--part", "2"], "--part: must go with --workers or --scheduler"),
    ]:
        common = ["map", vit.onnx_path, "--images", "fashion-mnist:calibration", "--limit", "2"]
        status, _, err = cli(*common, *options, "-o", tmp_path / "m.json")
        assert status == 2, options
        assert words in " ".join(err.split()), err
        assert list(tmp_path.iterdir()) == []
