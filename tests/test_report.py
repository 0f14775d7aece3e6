"""The report: its numbers are those of other commands, its page shows them and nothing else, and works in a browser."""

import csv
import doctest
import html.parser
import importlib
import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from intvit.analysis.sqnr import errors, mean_decibel
from intvit.cli import main
from intvit.engine import Engine
from intvit.errors import IntvitError
from intvit.floats.model import FloatModel
from intvit.graph.store import load
from intvit.mapping import rules
from intvit.report.collect import mean
from intvit.report.data import FLOAT, MIXED, Interaction, Point, Report, SearchOf, finite, read_report
from intvit.report.diff import differing
from intvit.report.figures import pareto
from intvit.report.histograms import MOST_IMAGES
from intvit.report.interactions import searched
from intvit.report.page import headline, render

N = 8
MODULES = ("collect", "data", "diff", "figures", "histograms", "interactions", "notes", "page", "svg")
CHANGED = {"blocks.0.attn.softmax": "ivit", "blocks.1.mlp.act": "ivit", "blocks.2.norm1": "fqvit"}
LOSSES = [((), 0.01), ((0,), 0.012), ((1,), 0.011), ((2,), 0.02), ((0, 1), 0.014), ((0, 2), 0.022), ((0, 1, 2), 0.05)]
"""Of a search that a test made up: numbers of CHANGED, and the loss."""
NASTY = "<script>alert('x')</script>\"&'`${}\u202e"


def search_part():
    names = list(CHANGED)
    measured = [
        {"changes": {names[i]: CHANGED[names[i]] for i in at}, "loss": loss, "cost": 30.0 - len(at)}
        for at, loss in LOSSES
    ]
    return {
        "kind": "pairwise", "objective": "sqnr", "base": {}, "chosen": {}, "loss": {"base": 0.01, "chosen": 0.01},
        "spent": True, "bound": None, "independent": {"n": 2, "r2": 0.9, "rank": None}, "quadratic": None,
        "measured": measured, "steps": [],
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def mapping(vit, folder):
    """Of 8 calibration images at 6 bits, with a search added by hand."""
    path = folder / "mapping.json"
    images = ["--images", "fashion-mnist:calibration", "--limit", str(N)]
    assert main(["map", str(vit.onnx_path), *images, "--bits", "6", "--no-fallback", "-o", str(path)]) == 0
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "search": search_part()}))
    return path


def arguments(vit, mapping, output):
    return ["report", vit.onnx_path, "--mapping", mapping, "--calibrate", "fashion-mnist:calibration",
            "--calibrate-limit", N, "--images", "fashion-mnist:test", "--limit", N, "-o", output]  # fmt: skip


@pytest.fixture(scope="module")
def made(vit, mapping, folder):
    assert main([str(word) for word in arguments(vit, mapping, folder / "a")]) == 0
    return folder / "a"


@pytest.fixture(scope="module")
def report(made):
    return read_report(made)


@pytest.fixture(scope="module")
def lowered(vit, mapping, folder):
    """Graph files of the mapping and of uniform ibert, made by `lower`."""
    source = ["--images", "fashion-mnist:calibration", "--limit", str(N)]
    paths = {MIXED: folder / "mixed.h5", "ibert": folder / "ibert.h5"}
    options = {MIXED: ["--mapping", str(mapping)], "ibert": ["--method", "ibert", "--bits", "6"]}
    for name, path in paths.items():
        assert main(["lower", str(vit.onnx_path), *source, *options[name], "-o", str(path)]) == 0
    return paths


def test_jinja_is_imported_when_a_page_is_made():
    code = "import sys, intvit.cli, intvit.report.page, intvit.report.diff; print('jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(f"intvit.report.{name}")).failed == 0


# ---------------------------------------------------------------------------------------- numbers


def test_outputs_are_those_of_eval(cli, vit, report, lowered, folder):
    noise = {}
    for name, path in lowered.items():
        options = ["--float", vit.onnx_path, "--limit", N, "--csv", folder / f"{name}.csv", "--json"]
        expected = json.loads(cli("eval", path, "fashion-mnist:test", *options)[1])
        found = report.model(name)
        assert found.top1.value == expected["integer"]
        assert report.model(FLOAT).top1.value == expected["float"]
        for key in ("agreement", "sqnr", "kl", "cosine"):
            assert getattr(found, key) == pytest.approx(expected[key], rel=1e-12), (name, key)
        noise[name] = column(folder / f"{name}.csv", "noise")
    gain = rules.difference(noise[MIXED], noise["ibert"])
    assert report.best == "ibert"
    assert report.model("ibert").sqnr_gain is None
    assert report.model(MIXED).sqnr_gain.model_dump() == pytest.approx(vars(gain), rel=1e-12)


def column(path, name):
    with path.open(newline="") as file:
        return np.array([float(row[name]) for row in csv.DictReader(file)])


@pytest.mark.parametrize("site", ["blocks.0.attn.softmax", "blocks.3.mlp.act", "norm"])
def test_scores_are_those_of_the_graphs(vit, report, lowered, site):
    images, node = vit.test.read(0, N), vit.graph.node(site)
    floats = FloatModel(vit.onnx_path, threads=1).run(images, [node.inputs[0], node.output])
    found = next(each for each in report.sites if each.site == site)
    for name, path in lowered.items():
        graph = load(path)
        mate, score = graph.node(site), found.score(name)
        values = Engine(graph).run(images, wanted=[mate.inputs[0], mate.output])
        pairs = [(floats[node.inputs[0]], mate.inputs[0]), (floats[node.output], mate.output)]
        before, after = (mean_decibel(errors(x, values[q], graph.tensors[q])["ratio"]) for x, q in pairs)
        got = score.asqnr_in, score.asqnr_out, score.sqnr_diff
        assert got == pytest.approx((before, after, after - before), abs=0.01)  # the float model runs in other batches


def test_choices_are_those_of_the_mapping(report, mapping):
    values = json.loads(mapping.read_text())
    decided = {each["site"]: each for each in values["decisions"]}
    for site in report.sites:
        assert (site.rule, site.ties) == (decided[site.site]["method"], decided[site.site]["ties"])
        assert site.chosen == values["recipe"]["sites"][site.site]["method"]
    assert len(report.sites) == len(decided) == 25
    assert report.methods == ["ibert", "fqvit", "ivit"]


def test_a_mean_and_its_interval():
    values = np.array([1.0] * 9 + [0.0])
    found = mean(values)
    assert found.value == 0.9
    assert found.low <= 0.7 < 0.9 < found.high <= 1.0
    assert mean(np.ones(5)).model_dump() == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert mean(np.array([1.0])).model_dump() == {"value": 1.0, "low": None, "high": None}


def test_histograms_are_of_the_float_values(vit, report):
    model = FloatModel(vit.onnx_path, threads=1)
    assert len(report.histograms) == 6
    assert len({each.operator for each in report.histograms}) == 3
    for each in report.histograms:
        name = vit.graph.node(each.site).output
        values = model.run(vit.test.read(0, N), [name])[name]
        assert each.images == N < MOST_IMAGES
        assert {len(counts) for counts in each.counts.values()} == {64}
        assert {sum(counts) for counts in each.counts.values()} == {values.size}
        assert (each.low, each.high) == pytest.approx((values.min(), values.max()), rel=1e-4)
        expected = np.histogram(values, 64, (each.low, each.high))[0]
        assert np.abs(expected - each.counts[FLOAT]).sum() <= 1e-3 * values.size


def test_interactions_by_hand(report):
    found = {each.sites: each for each in report.search.interactions}
    a, b, c = CHANGED
    assert set(found) == {(a, b), (a, c)}
    assert found[a, b].value == pytest.approx((0.014 - 0.012 - 0.011 + 0.01) / 0.01)
    assert found[a, c].value == pytest.approx(0.0, abs=1e-12)
    assert found[a, c].methods == ("ivit", "fqvit")


def test_costs_and_the_front(report):
    points = report.search.points
    assert len(points) == len(LOSSES)
    assert [point.role for point in points] == ["chosen", *[""] * (len(LOSSES) - 1)]
    assert [(p.cost, p.loss) for p in pareto(points)] == [(27.0, 0.05), (28.0, 0.014), (29.0, 0.011), (30.0, 0.01)]
    free = search_part()
    for each in free["measured"]:
        each["cost"] = 0.0
    assert searched(SearchOf.model_validate(free), graph_of(CHANGED)).points == []


def graph_of(sites):
    from intvit.graph.ir import Graph, Node

    return Graph((), (), tuple(Node("softmax", site, (), f"{site}.out") for site in sites), {})


def test_a_search_of_another_model():
    with pytest.raises(IntvitError, match=r"no site blocks\.0"):
        searched(SearchOf.model_validate(search_part()), graph_of(["others"]))


def test_a_gain_that_a_search_refused_is_said(mapping):
    from intvit.report.data import read_mapping
    from intvit.report.notes import _then

    said = "Search pairwise found a mapping that loses 20.0% less on the images of the mapping"
    values = json.loads(mapping.read_text())
    assert not any(said in line for line in _then(read_mapping(mapping)))
    values["search"]["not_surely_better"] = {"changes": {}, "loss": 0.008}
    mapping.with_name("refused.json").write_text(json.dumps(values))
    assert any(said in line for line in _then(read_mapping(mapping.with_name("refused.json"))))


def test_warnings(report):
    text = " ".join(report.warnings)
    assert "budget ended the search" in text
    assert f"{N} test images are few" in text
    assert "labels" not in text


# ---------------------------------------------------------------------------------------- files


def test_tables(made, report):
    tables = {}
    for name in ("outputs", "sites", "rows"):
        with (made / f"{name}.csv").open(newline="") as file:
            tables[name] = list(csv.DictReader(file))
    outputs = {row["name"]: row for row in tables["outputs"]}
    assert list(outputs) == [FLOAT, "ibert", "fqvit", "ivit", MIXED]
    assert float(outputs[MIXED]["sqnr"]) == report.model(MIXED).sqnr
    assert float(outputs[MIXED]["sqnr_gain_low"]) == report.model(MIXED).sqnr_gain.low
    assert len(tables["sites"]) == sum(len(site.scores) for site in report.sites) == 2 * 25 + 25 + 19
    for row in tables["sites"]:
        ratios = [
            float(r["ratio_out"]) for r in tables["rows"] if (r["site"], r["method"]) == (row["site"], row["method"])
        ]
        assert len(ratios) == N
        assert float(row["asqnr_out"]) == pytest.approx(mean_decibel(ratios), rel=1e-12)


def test_what_it_was_made_from(made, report, mapping, vit):
    sources = {each.role: each for each in report.sources}
    assert set(sources) == {"model", "mapping file", "calibration images", "test images"}
    assert sources["test images"].sha256 == vit.test.sha256(N)
    assert sources["calibration images"].sha256 == vit.recorded.sha256(N)
    assert sources["model"].sha256 == vit.graph.metadata["model_sha256"]
    assert set(report.versions) == {"intvit", "python", "numpy", "numba", "onnxruntime"}
    assert report.command == (
        f"intvit report {vit.onnx_path} --mapping {mapping} --calibrate fashion-mnist:calibration "
        f"--images fashion-mnist:test --output {made} --calibrate-limit {N} --limit {N}"
    )


def test_a_recording_images_without_labels_and_fewer_methods(cli, vit, mapping, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28), np.uint8))
    options = ["--mapping", mapping, "--recording", vit.recording_path, "--images", tmp_path / "x.npy"]
    options += ["--calibrate-limit", 4, "--methods", "ivit,ibert", "--seed", 3, "-o", tmp_path / "r"]
    status, out, err = cli("report", vit.onnx_path, *options)
    assert status == 0, err
    found = read_report(tmp_path / "r")
    assert out.strip() == headline(found)
    assert not found.labelled
    assert [model.top1 for model in found.models] == [None] * 4
    assert found.methods == ["ivit", "ibert"]
    page = (tmp_path / "r/report.html").read_text()
    assert "top-1, %" not in page
    assert "--seed 3" in page


# ---------------------------------------------------------------------------------------- the page


class Page(html.parser.HTMLParser):
    """Elements, links and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), name
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.links.append(value)

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_is_made_from_the_data_alone(made, report):
    page = (made / "report.html").read_text()
    assert render(report) == page
    assert render(Report.model_validate_json((made / "report.json").read_text())) == page
    assert len(page) < 1_000_000


def test_the_page_has_everything_and_links_nowhere(made, report):
    page = (made / "report.html").read_text()
    found = Page(page)
    text = "".join(found.texts)
    assert headline(report) in text
    for warning in report.warnings:
        assert warning in text
    for site in report.sites:
        assert site.site in text
        score = site.score("ibert")
        assert f"{score.asqnr_in:.1f} > {score.asqnr_out:.1f} (" in text
    assert report.command in text
    assert found.tags.count("svg") == 3 + 6 + 1 + 1 + 1
    assert found.tags.count("script") == 1
    assert found.links
    assert all(link.startswith("#") for link in found.links)
    assert not re.search(r"@import|url\(", page)


def nasty(report):
    """With a name that is an attack at every place where a file can put one."""
    values = json.loads(report.model_dump_json())
    text = json.dumps(values)
    for name in ("blocks.0.attn.softmax", "layernorm", "fqvit", "vit.onnx"):
        text = text.replace(name, json.dumps(NASTY)[1:-1] + name)
    return Report.model_validate_json(text)


def test_names_are_escaped(report):
    page = render(nasty(report))
    found = Page(page)
    assert found.tags.count("script") == 1
    assert "alert('x')" in "".join(found.texts)
    assert "<script>alert" not in page
    assert "\u202e" not in page


def test_a_page_of_37_sites_is_small(report):
    sites = [report.sites[i % 25].model_copy(update={"site": f"model.encoder.layers.{i}.block"}) for i in range(37)]
    pairs = [
        Interaction(sites=(sites[i].site, sites[j].site), methods=methods, value=math.sin(i * j))
        for i in range(37) for j in range(i) for methods in [("a", "b"), ("b", "a"), ("a", "c"), ("c", "c")]
    ]  # fmt: skip
    points = [Point(loss=1 + math.sin(i), cost=math.cos(7 * i), changes=2) for i in range(20_000)]
    search = report.search.model_copy(update={"interactions": pairs, "points": points})
    assert len(render(report.model_copy(update={"sites": sites, "search": search}))) < 1_000_000


def test_numbers_that_there_are_not(report):
    """A site without error, an empty search, no labels: a page all the same."""
    empty = {"asqnr_in": None, "asqnr_out": None, "sqnr_diff": None, "low": None, "high": None}
    sites = [
        site.model_copy(update={"scores": [score.model_copy(update=empty) for score in site.scores]})
        for site in report.sites
    ]
    models = [model.model_copy(update={"top1": None, "sqnr": None, "sqnr_gain": None}) for model in report.models]
    changes = {"sites": sites, "models": models, "search": None, "outputs": {"ibert": finite(math.inf)}}
    page = render(report.model_copy(update=changes))
    assert "- > - (-)" in "".join(Page(page).texts)
    assert 'id="search"' not in page


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>
const clicked = [], cells = (n) => Array.from(document.querySelectorAll("#sites tbody tr"))
  .filter((row) => !row.hidden).map((row) => row.cells[n].textContent.trim());
const button = document.querySelectorAll("#sites thead button")[3];
for (let i = 0; i < 2; i++) { button.click(); clicked.push(cells(1)); }
const kind = document.getElementById("kind"), text = document.getElementById("filter");
document.querySelectorAll("#sites thead button")[0].click();
text.value = "BLOCKS.3"; text.dispatchEvent(new Event("input"));
clicked.push(cells(1));
kind.value = "gelu"; kind.dispatchEvent(new Event("input"));
clicked.push(cells(1), [document.getElementById("count").textContent]);
const result = document.createElement("pre");
result.id = "probe"; result.textContent = JSON.stringify(clicked);
document.body.append(result);
</script></body>"""


def browsed(path, tmp_path):
    """The document as a browser has it after its scripts; AssertionError for a word on its console."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
def test_the_page_in_a_browser(report, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(render(nasty(report)).replace("</body>", PROBE))
    document = browsed(path, tmp_path)
    rising, falling, third, gelu, count = json.loads(
        html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', document)[1])
    )
    by_diff = sorted(nasty(report).sites, key=lambda site: site.score("ibert").sqnr_diff)
    assert [name.endswith(site.site[-10:]) for name, site in zip(rising, by_diff, strict=True)] == [True] * 25
    assert falling == rising[::-1]
    assert third == [site.site for site in report.sites if "blocks.3." in site.site]
    assert gelu == ["blocks.3.mlp.act"]
    assert count == ["1 of 25 sites"]


# ---------------------------------------------------------------------------------------- diff


def test_equal_reports_do_not_differ(cli, made):
    assert cli("report", "diff", made, made / "report.json")[:2] == (0, "nothing differs\n")
    assert json.loads(cli("report", "diff", made, made, "--json")[1]) == []


def test_differing_reports(cli, made, report, tmp_path):
    values = json.loads((made / "report.json").read_text())
    values["models"][-1]["sqnr"] += 1.5
    values["models"][1]["kl"] *= 1 + 1e-13
    values["sites"][2]["chosen"] = "other"
    values["sites"][2]["scores"][0]["low"] = None
    values["sites"].pop()
    (tmp_path / "b.json").write_text(json.dumps(values))
    found = {each.what: each for each in differing(report, read_report(tmp_path / "b.json"))}
    name = report.sites[2].site
    assert found["models[mixed].sqnr"].gain == pytest.approx(1.5)
    assert (found[f"sites[{name}].chosen"].a, found[f"sites[{name}].chosen"].b) == (report.sites[2].chosen, "other")
    assert found[f"sites[{name}].scores[ibert].low"].detail
    assert "models[ibert].kl" not in found
    assert {what for what in found if not what.startswith("sites[norm]")} == {
        "models[mixed].sqnr", f"sites[{name}].chosen", f"sites[{name}].scores[ibert].low",
    }  # fmt: skip
    status, out, _ = cli("report", "diff", made, tmp_path / "b.json")
    assert status == 0
    assert "+1.5" in out
    assert "intervals and details" in out
    told = json.loads(cli("report", "diff", made, tmp_path / "b.json", "--json")[1])
    assert {each["what"] for each in told} == set(found)


# ---------------------------------------------------------------------------------------- bad input


@pytest.fixture
def refused(cli, tmp_path):
    """Run, expect exit 2, one line with every given part, and nothing under tmp_path/out."""

    def run(words, *parts):
        status, out, err = cli(*words)
        assert status == 2, err
        assert (out, err.count("\n")) == ("", 1), err
        for part in parts:
            assert part in err
        assert not (tmp_path / "out").exists()

    return run


def renamed(values):
    return json.loads(json.dumps(values).replace("blocks.", "layers."))


def without_a_site(values):
    del values["recipe"]["sites"]["norm"]
    return {**values, "decisions": [each for each in values["decisions"] if each["site"] != "norm"]}


def other_operator(values):
    values["decisions"][0]["operator"] = "gelu"
    return values


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (renamed, ["a mapping of", "no layernorm layers.0.norm1"]),
        (without_a_site, ["a mapping of", "nothing for norm"]),
        (other_operator, ["a mapping of", "no gelu blocks.0.norm1"]),
        (lambda values: {**values, "version": 2}, ["version: must be 1, not 2"]),
        (lambda values: {**values, "format": "intvit.report"}, ["format: must be 'intvit.mapping'"]),
        (lambda values: {k: v for k, v in values.items() if k != "decisions"}, ["decisions: must be there"]),
        (lambda values: values["recipe"], ["format: must be there"]),
        (lambda values: {**values, "scores": 7}, ["scores: must be a valid array, not 7"]),
        (lambda values: {**values, "recipe": {"bits": 3}}, ["bits: must be greater", "not 3"]),
    ],
)
def test_mappings_that_are_refused(refused, vit, mapping, tmp_path, change, parts):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(change(json.loads(mapping.read_text()))))
    refused(arguments(vit, path, tmp_path / "out" / "r"), "m.json", *parts)


def test_options_that_are_refused(refused, vit, mapping, tmp_path):
    whole = arguments(vit, mapping, tmp_path / "out" / "r")
    (tmp_path / "cut.json").write_text(mapping.read_text()[:-500])
    refused([*whole[:2], "--mapping", tmp_path / "none.json", *whole[4:]], "none.json: no such file")
    refused([*whole[:2], "--mapping", tmp_path / "cut.json", *whole[4:]], "cut.json: must be whole JSON")
    refused(["report", tmp_path / "none.onnx", *whole[2:]], "none.onnx")
    refused([*whole, "--recording", "r.h5"], "--calibrate and --recording")
    refused([*whole, "--methods", "ibert,ibert"], "methods", "once", "ibert,ibert")
    refused([*whole, "--methods", "magic"], "magic", "ibert")
    refused([*whole, "--json"], "--json: must go with diff")
    refused(["report", vit.onnx_path], "--mapping, --images, --output: must be given")
    refused([*whole, "more"], "must be given one model")


def test_a_folder_that_is_there_stays(refused, vit, mapping, made):
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    refused(arguments(vit, mapping, made), "must not exist yet")
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda text: text[:1000], ["must be whole JSON"]),
        (lambda text: text.replace('"version": 1', '"version": 2'), ["version: must be 1, not 2"]),
        (lambda text: text.replace('"version": 1', '"version": 1, "more": 1'), ["more: must be a known key"]),
        (lambda text: text.replace('"seed": 0', '"seed": "x"'), ["seed: must be a valid integer, not 'x'"]),
        (lambda text: "[]", ["b.json: must be"]),
        (lambda text: "[" * 100_000, ["b.json: must be whole JSON"]),
    ],
)
def test_reports_that_are_refused(refused, made, tmp_path, change, parts):
    (tmp_path / "b.json").write_text(change((made / "report.json").read_text()))
    refused(["report", "diff", made, tmp_path / "b.json"], *parts)


def test_diff_needs_two_reports(refused, made, tmp_path):
    refused(["report", "diff", made], "two reports, not 1")
    refused(["report", "diff", made, tmp_path / "none"], "no such file")
    refused(["report", "diff", made, tmp_path], "report.json: no such file")
    refused(["report", "diff", made, "x" * 5000], "x")
    refused(["report", "diff", made, made, "--limit", "3"], "--limit: must go with a model")


def test_help_has_examples(cli):
    status, out, _ = cli("report", "--help")
    assert status == 0
    assert "Example: intvit report vit.onnx" in " ".join(out.split())
    assert "Example: intvit report diff" in " ".join(out.split())
