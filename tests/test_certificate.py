"""Certificates: an independent checker of few lines derives every claim again, and refuses every other number."""

import copy
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from check_certificate import main as check
from small_graph import small_graph

from intvit.graph.ir import Graph, Node
from intvit.graph.store import save
from intvit.lowering.recipe import build_recipe
from intvit.proofs.certificate import certified, constants, format_certificate

KINDS = ("intervals", "ties", "clamps")
CHECKER = Path(__file__).resolve().parent.parent / "tools" / "check_certificate.py"


def written(graph, folder, change=None):
    """The certificate of `graph` in a folder, its JSON changed by a function."""
    data = constants(graph)
    content = json.loads(format_certificate(graph, certified(graph), "c.npz", data))
    if change is not None:
        change(content)
    (folder / "c.npz").write_bytes(data)
    (folder / "c.json").write_text(json.dumps(content, sort_keys=True))
    return folder / "c.json"


def refused(path, capsys):
    """What the checker says of a certificate that is wrong."""
    capsys.readouterr()
    try:
        assert check(path) == 1
    except Exception as error:  # as its last lines do
        return f"{type(error).__name__}: {error}"
    return capsys.readouterr().out


def numbers(value, at=()):
    """The paths of all numbers of a JSON value, truth values too."""
    if isinstance(value, dict):
        return [path for key, each in value.items() for path in numbers(each, (*at, key))]
    if isinstance(value, list):
        return [path for i, each in enumerate(value) for path in numbers(each, (*at, i))]
    return [at] if isinstance(value, (int, float)) else []


def changed(content, path, rng):
    """One number made another."""
    *way, last = path
    for key in way:
        content = content[key]
    old = content[last]
    content[last] = (not old) if isinstance(old, bool) else old + rng.choice((-1, 1)) * rng.choice((1, 1, 2, 1000))


def test_the_checker_stands_alone():
    text = CHECKER.read_text()
    assert len(text.splitlines()) <= 200
    words = re.findall(r"^(?:import|from) ([\w, ]+?)(?: import .*)?$", text, re.MULTILINE)
    modules = {name.strip() for line in words for name in line.split(",")}
    assert modules <= sys.stdlib_module_names
    assert "intvit" not in modules


def test_every_claim_is_derived_again(tmp_path):
    path = written(small_graph(), tmp_path)
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(CHECKER), str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(re.escape(str(path)) + r" \d+ claims hold\n", done.stdout)


@pytest.mark.parametrize("method", ["ibert", "ivit", "fqvit"])
@pytest.mark.parametrize("preset", ["published", "accurate"])
def test_embedded_networks(vit, preset, method, tmp_path):
    graph = vit.lower(build_recipe({"preset": preset}).with_method(method))
    assert check(written(graph, tmp_path)) == 0


def test_the_mixed_network(mixed, tmp_path):
    """Every method; those that the checker does not know are declared."""
    path = written(mixed, tmp_path)
    assert check(path) == 0
    content = json.loads(path.read_text())
    assert content["declared"]
    kept = {(site, signal) for site, signal, *_ in content["intervals"]}
    assert not [site for site in content["declared"] if (site, "y") in kept]


def test_every_kind_of_claim_is_there(tmp_path):
    content = json.loads(written(small_graph(), tmp_path).read_text())
    assert {signal for _, signal, *_ in content["intervals"]} >= {
        *("product", "sum", "bias", "y", "rounded", "residual_rounded", "total", "weight", "normalized", "shift")
    }
    assert {site for site, *_ in content["ties"]} == {"fc.quant", "sum"}
    assert any(reachable for _, _, _, reachable, *_ in content["ties"])
    assert {never for *_, never in content["clamps"]} == {True, False}


def test_no_number_may_be_another(tmp_path, capsys):
    """Of the claims, which are named, and of the rest: structure, version."""
    rng, graph = Random(8), small_graph()
    whole = json.loads(written(graph, tmp_path).read_text())
    claims = [path for kind in KINDS for path in numbers(whole[kind], (kind,))]
    rest = [path for path in numbers(whole) if path[0] not in KINDS]
    assert len(claims) > 130
    for path in [*claims, *rest]:
        content = copy.deepcopy(whole)
        changed(content, path, rng)
        (tmp_path / "c.json").write_text(json.dumps(content, sort_keys=True))
        said = refused(tmp_path / "c.json", capsys)
        if path[0] in KINDS:
            site, signal = whole[path[0]][path[1]][:2]
            assert f"{path[0]} {site} {signal}: " in said
    (tmp_path / "c.json").write_text(json.dumps(whole, sort_keys=True))
    assert check(tmp_path / "c.json") == 0


def test_no_number_of_a_network_may_be_another(mixed, tmp_path, capsys):
    """60 numbers of the claims, of every kind and place in a claim."""
    rng = Random(9)
    whole = json.loads(written(mixed, tmp_path).read_text())
    paths = [path for kind in KINDS for path in numbers(whole[kind], (kind,))]
    rng.shuffle(paths)
    first = {(path[0], path[2]): path for path in paths}
    assert len(first) == 5 + 2 + 3  # no constant of this network ties
    for path in [*first.values(), *paths[:48]]:
        content = copy.deepcopy(whole)
        changed(content, path, rng)
        (tmp_path / "c.json").write_text(json.dumps(content, sort_keys=True))
        site, signal = whole[path[0]][path[1]][:2]
        assert f"{path[0]} {site} {signal}: " in refused(tmp_path / "c.json", capsys)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["intervals"].pop(3), "intervals"),
        (lambda c: c["intervals"].append(c["intervals"][0]), "intervals: "),
        (lambda c: c["intervals"].append(["fc", "other", 0, 1, 2, None, None]), "intervals"),
        (lambda c: c["ties"].pop(0), "ties"),
        (lambda c: c["ties"][0].__setitem__(5, 3), "ties fc.quant rounded"),
        (lambda c: c["clamps"].pop(0), "clamps"),
        (lambda c: c["declared"].append("fc"), "declared"),
        (lambda c: c["graph"]["nodes"][0].update(name="another"), "content_hash"),
        (lambda c: c["graph"]["metadata"].update(more=1), "content_hash"),
        (lambda c: c.update(content_hash="0" * 64), "content_hash"),
        (lambda c: c.update(format="another"), "format"),
        (lambda c: c.update(more={}), "format"),
        (lambda c: c["constants"].update(sha256="0" * 64), "sha256"),
        (lambda c: c["intervals"][0].__setitem__(2, float(c["intervals"][0][2])), "intervals fc product"),
        (lambda c: c["intervals"][0].__setitem__(2, str(c["intervals"][0][2])), "intervals fc product"),
    ],
)
def test_claims_that_are_missing_repeated_or_new_are_refused(change, said, tmp_path, capsys):
    assert said in refused(written(small_graph(), tmp_path, change), capsys)


def test_another_weight_is_another_graph(tmp_path, capsys):
    """A constant that is changed, with the archive's hash made anew; and with the content hash made anew as well."""
    graph = small_graph()
    nodes = [with_weight(node) if node.name == "fc" else node for node in graph.nodes]
    other = Graph(graph.inputs, graph.outputs, tuple(nodes), graph.tensors, graph.metadata)
    data = constants(other)

    def rehashed(content):
        content["constants"]["sha256"] = hashlib.sha256(data).hexdigest()

    path = written(graph, tmp_path, rehashed)
    path.with_name("c.npz").write_bytes(data)
    assert "content_hash" in refused(path, capsys)
    path = written(
        graph, tmp_path, lambda content: (rehashed(content), content.update(content_hash=other.content_hash))
    )
    path.with_name("c.npz").write_bytes(data)
    assert "intervals fc " in refused(path, capsys)


def with_weight(node):
    weight = np.full_like(node.arrays["weight"], 127)
    return Node(node.op, node.name, node.inputs, node.output, node.attrs, {**node.arrays, "weight": weight})


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"format": 1}', b"PK\x03\x04"])
def test_what_is_no_certificate_is_said_in_one_line(damage, tmp_path):
    (tmp_path / "c.json").write_bytes(damage)
    done = subprocess.run(
        [sys.executable, str(CHECKER), str(tmp_path / "c.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "not a certificate" in done.stderr


def test_the_command_writes_both_files_whole(cli, tmp_path):
    save(small_graph(), tmp_path / "g.h5")
    status, _, err = cli("prove", tmp_path / "g.h5", "--certificate", tmp_path / "proof.json")
    assert status == 0, err
    assert check(tmp_path / "proof.json") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.h5", "proof.json", "proof.npz"]
    with np.load(tmp_path / "proof.npz") as archive:
        assert len(archive.files) == sum(len(node.arrays) for node in small_graph().nodes)
    before = (tmp_path / "proof.json").read_bytes(), (tmp_path / "proof.npz").read_bytes()
    assert cli("prove", tmp_path / "g.h5", "--certificate", tmp_path / "proof.json")[0] == 0
    assert before == ((tmp_path / "proof.json").read_bytes(), (tmp_path / "proof.npz").read_bytes())
