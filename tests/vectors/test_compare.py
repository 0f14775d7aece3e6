"""A dump against golden cases: statuses by site, what stands in for what is missing, bad input, reports."""

import dataclasses
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from intvit.errors import IntvitError
from intvit.files import safe_name
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Graph, Node, Tensor
from intvit.vectors.cases import Vectors, cases_from, read_cases
from intvit.vectors.diagnosis import report as reports
from intvit.vectors.diagnosis.compare import EQUAL, EXTRA, MISSING, PROPAGATED, ROOT, compare
from intvit.vectors.diagnosis.dump import Archive, Place, parse_word
from intvit.vectors.export import export
from intvit.vectors.part import part_of, run

ODD = 'odd "name" <&\x00\x1b]]>/../É'
IMAGES = (3, 4, 5)


def chain(tokens=5, channels=6, seed=0, last=ODD):
    """linear -> requantize -> transpose -> requantize -> linear, on s8."""
    rng = np.random.default_rng(seed)
    one = np.asarray(0.1)
    weight = rng.integers(-128, 128, (channels, channels))
    m, e = rng.integers(2**30, 2**31, channels), np.full(channels, 40)
    nodes = (
        Node("linear", "a", ("x",), "a", {}, {"weight": weight, "bias": rng.integers(-900, 900, channels)}),
        Node("requantize", "b", ("a",), "b", {"bits": 8}, {"m": m, "e": e}),
        Node("transpose", "turned", ("b",), "turned", {"perm": [1, 0]}),
        Node("requantize", "c", ("turned",), "c", {"bits": 8}, {"m": np.array([1500000000]), "e": np.array([31])}),
        Node("linear", last, ("c",), "out", {}, {"weight": rng.integers(-99, 99, (4, tokens))}),
    )
    shapes = {"x": (tokens, channels), "a": (tokens, channels), "b": (tokens, channels), "turned": (channels, tokens),
              "c": (channels, tokens), "out": (channels, 4)}  # fmt: skip
    bits = {"a": 32, "out": 32}
    tensors = {name: Tensor(name, shape, IntType(bits.get(name, 8)), one) for name, shape in shapes.items()}
    return Graph(("x",), ("out",), nodes, tensors, {"spec_version": 1})


@pytest.fixture(scope="module")
def graph():
    return chain()


def values_of(graph, seed=1, images=IMAGES):
    x = np.random.default_rng(seed).integers(-128, 128, (len(images), *graph.tensors["x"].shape))
    return run(graph, {"x": x}, list(graph.tensors))


@pytest.fixture(scope="module")
def cases(graph):
    return cases_from(graph, values_of(graph), images=IMAGES)


def dump_of(cases, without=(), change=None, **more):
    """What a device would dump that is right, less some sites, with `change(site, image, array)` of others."""
    arrays = {}
    for case in cases:
        for i in case.images:
            for name, value in case.expected(i).items():
                if case.name not in without:
                    made = np.array(value)
                    arrays[safe_name(case.name), i, "output"] = made if change is None else change(case.name, i, made)
                    _ = name
    return Archive(Path("dump.npz"), {**arrays, **more.get("extra", {})})


def flipped(site, image, at=(0, 1)):
    """One element of one site on one image, off by one."""

    def change(name, i, array):
        if name == site and i == image:
            array = array.copy()
            array[at] += -1 if array[at] > 0 else 1
        return array

    return change


def statuses(report):
    return {result.site: result.status for result in report.results}


def test_a_right_dump_is_equal_and_has_no_cause(cases):
    report = compare(cases, dump_of(cases))
    assert set(statuses(report).values()) == {EQUAL}
    assert not report.differs
    assert all(result.explained is None for result in report.results)


@pytest.mark.parametrize("site", ["a", "b", "c", ODD])
@pytest.mark.parametrize("image", IMAGES)
def test_one_wrong_element_is_a_root_and_named_exactly(cases, site, image):
    report = compare(cases, dump_of(cases, change=flipped(site, image, (2, 3))), isolated=True, causes=False)
    (root,) = report.roots
    assert (root.site, root.first.image, root.first.index) == (site, image, (2, 3))
    assert root.n_different == 1
    assert abs(root.first.expected - root.first.got) == 1
    assert root.by_image == {i: ROOT if i == image else EQUAL for i in IMAGES}


def device(graph, cases, seed=1, **faults):
    """What a device gives that computes on from its own tensors: tensor -> what becomes of it."""
    stimuli = values_of(graph, seed)
    values = {"x": stimuli["x"]}
    from intvit.engine.evaluate import prepare_in

    for node in graph.nodes:
        made = prepare_in(graph, node)([values[name] for name in node.inputs]).astype(np.int64)
        values[node.output] = faults.get(node.output, lambda v: v)(made)
    by_site = {node.name: node.output for node in graph.nodes}
    return dump_of(cases, change=lambda name, i, array: values[by_site[name]][IMAGES.index(i)])


def test_what_spreads_is_propagated_where_the_way_is_known(graph, cases):
    made = device(graph, cases, b=lambda v: np.maximum(v - 3, -128))
    assert statuses(compare(cases, made, graph=graph, causes=False)) == {
        "a": EQUAL, "b": ROOT, "c": PROPAGATED, ODD: PROPAGATED,
    }  # fmt: skip
    # without the graph nobody knows that c reads b, turned
    alone = compare(cases, made, causes=False)
    assert statuses(alone) == {"a": EQUAL, "b": ROOT, "c": ROOT, ODD: PROPAGATED}
    assert "golden stands in for input turned, whose maker is not known" in alone.results[2].notes


def test_two_roots_are_two_and_the_first_line_is_the_earliest(graph, cases):
    made = device(graph, cases, b=lambda v: np.maximum(v - 3, -128), out=lambda v: v + 1)
    report = compare(cases, made, graph=graph, causes=False)
    assert [r.site for r in report.roots] == ["b", ODD]
    assert reports.headline(report).startswith("b: root, image 3, token 0, channel 0: expected ")


def test_a_site_that_was_not_dumped_is_missing_and_computed_from_what_was(graph, cases):
    """b went wrong and was not dumped; then c, by what a gave, is a root."""
    made = device(graph, cases, b=lambda v: np.clip(v - 3, -128, 127))
    del_b = Archive(made.path, {key: v for key, v in made.arrays.items() if key[0] != "b"})
    report = compare(cases, del_b, graph=graph)
    assert statuses(report) == {"a": EQUAL, "b": MISSING, "c": ROOT, ODD: PROPAGATED}
    root = report.roots[0]
    assert root.notes[0] == "golden stands in for input b, which was not dumped"
    assert all(cause.site in ("b", "c") for cause in root.explained.causes)


def test_a_cause_in_a_site_that_was_not_dumped(graph, cases):
    """The accumulators are not dumped, as hardware fuses them: the bias is missing there."""
    bias = graph.node("a").arrays["bias"]
    made = device(graph, cases, a=lambda v: v - bias)
    fused = Archive(made.path, {key: v for key, v in made.arrays.items() if key[0] != "a"})
    (root,) = compare(cases, fused, graph=graph).roots
    assert root.site == "b"
    assert ("missing", "a", "bias") in {(c.kind, c.site, c.step) for c in root.explained.causes}


def test_a_case_of_several_sites(graph):
    """Only its output is dumped, or what is inside as well."""
    values = values_of(graph)
    part = part_of(graph, ["a", "b", "c"])
    case = Vectors("many", part, IMAGES, {"x": values["x"]}, {"c": values["c"]})
    right = {("many", i, "output"): values["c"][n] for n, i in enumerate(IMAGES)}
    assert statuses(compare([case], Archive(Path("d"), right))) == {"a": MISSING, "b": MISSING, "c": EQUAL}
    wrong = {key: np.minimum(v, 20) for key, v in right.items()}
    assert statuses(compare([case], Archive(Path("d"), wrong), causes=False))["c"] == ROOT
    inside = {("many", i, "b"): np.minimum(values["b"][n], 20) for n, i in enumerate(IMAGES)}
    found = statuses(compare([case], Archive(Path("d"), {**right, **inside}), causes=False))
    assert found == {"a": MISSING, "b": ROOT, "c": EQUAL}


def test_what_is_not_known_is_not_compared(cases):
    arrays = dict(dump_of(cases, change=flipped("b", 4, (1, 1))).arrays)
    valid = np.ones((5, 6), bool)
    valid[1, 1] = False
    arrays["b", 4, "output.valid"] = valid
    with pytest.raises(IntvitError) as error:
        compare(cases, Archive(Path("d"), arrays))
    assert str(error.value) == (
        "d: b/image4/output: element [1, 1] must be there, and 1 of 30 are missing; --partial compares the others"
    )
    report = compare(cases, Archive(Path("d"), arrays), partial=True)
    assert statuses(report)["b"] == MISSING
    assert report.results[1].n_missing == 1
    assert reports.headline(report) == "3 sites equal, 1 missing, 1 of them in part (b: 1 of 90 elements missing)"
    assert not report.differs
    arrays["b", 4, "output.valid"] = np.zeros((5, 6), bool)
    report = compare(cases, Archive(Path("d"), arrays), partial=True)
    assert {i for i, status in report.results[1].by_image.items() if status == MISSING} == {4}
    assert reports.headline(report) == "3 sites equal, 1 missing, 1 of them in part (b: image 4 missing)"
    arrays["b", 4, "output.valid"] = valid
    arrays["b", 4, "output"] = arrays["b", 4, "output"] ^ ~valid ^ (np.arange(30).reshape(5, 6) == 3)
    assert statuses(compare(cases, Archive(Path("d"), arrays), partial=True, causes=False))["b"] == ROOT


def test_a_site_that_lacks_an_image_is_not_equal(cases):
    arrays = dict(dump_of(cases).arrays)
    del arrays["b", 4, "output"]
    report = compare(cases, Archive(Path("d"), arrays))
    assert statuses(report) == {"a": EQUAL, "b": MISSING, "c": EQUAL, ODD: EQUAL}
    assert reports.headline(report) == "3 sites equal, 1 missing, 1 of them in part (b: image 4 missing)"
    assert b'message="missing, ' in reports.junit(report)


@dataclasses.dataclass(frozen=True, eq=False)
class Marked(Archive):
    """The arrays of an archive; an element of some sites is x."""

    sites: frozenset[str] = frozenset()

    def read(self, key, shape, dtype):
        found = super().read(key, shape, dtype)
        x = np.zeros(shape, bool)
        x.reshape(-1)[7] = key[0] in self.sites
        return dataclasses.replace(found, valid=~x, undefined=x)


def test_x_is_a_fault_where_it_begins_and_spreads(graph, cases):
    for sites, expected in (
        ({"a"}, {"a": ROOT, "b": EQUAL, "c": EQUAL}),
        ({"a", "b", "c"}, {"a": ROOT, "b": PROPAGATED, "c": PROPAGATED}),
        ({"c"}, {"a": EQUAL, "b": EQUAL, "c": ROOT}),
    ):
        dump = Marked(Path("d"), dump_of(cases).arrays, frozenset(sites))
        report = compare(cases, dump, graph=graph)
        assert {k: v for k, v in statuses(report).items() if k in "abc"} == expected
        assert report.differs
        assert ": root, image 3, " in reports.headline(report)
        assert reports.headline(report).endswith("got x or z")
        first = report.roots[0]
        assert (first.n_different, first.n_undefined, first.explained) == (3, 3, None)
        assert "3 elements are x or z" in first.notes
        assert reports.document(report)["sites"][0]["status"] in (ROOT, EQUAL)
        assert not compare(cases, dump, partial=True).differs


def test_a_golden_output_behind_a_wrong_input_is_equal(cases):
    """A bench that gives every site golden stimuli: a fault does not spread."""
    report = compare(cases, dump_of(cases, change=flipped("b", 3)), causes=False)
    assert statuses(report) == {"a": EQUAL, "b": ROOT, "c": EQUAL, ODD: EQUAL}


def test_extra_tensors_are_named(cases):
    report = compare(cases, dump_of(cases, extra={("zz", 3, "output"): np.zeros(2, int)}))
    assert statuses(report)["zz"] == EXTRA
    assert not report.differs
    assert reports.headline(report) == "4 sites equal, 1 extra"


def test_a_layout_tells_where_in_memory(cases):
    class Laid(Archive):
        def place(self, key, index, shape):
            return Place(0x40 + index[0], index[1], 2)

    made = dump_of(cases, change=flipped("b", 3, (1, 2)))
    report = compare(cases, Laid(made.path, made.arrays), causes=False)
    assert ", token 1, channel 2, address 0x41, beat 2, lane 2: expected " in reports.headline(report)
    assert reports.document(report)["sites"][1]["first"]["address"] == 0x41


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (13, 11)])
@pytest.mark.parametrize("fault", ["up", "zero", "turned"])
def test_odd_shapes_are_compared_and_explained(shape, fault):
    graph = chain(*shape, last="last")
    cases = cases_from(graph, values_of(graph), images=IMAGES)
    assert not compare(cases, dump_of(cases)).differs
    faults = {"up": lambda v: v ^ 1, "zero": lambda v: v * 0, "turned": lambda v: v[::-1]}
    made = dump_of(cases, change=lambda name, i, v: faults[fault](v) if name == "b" else v)
    report = compare(cases, made)
    changed = any(not np.array_equal(made.arrays["b", i, "output"], cases[1].expected(i)["b"]) for i in IMAGES)
    assert bool(report.roots) == changed
    if changed:
        assert report.results[1].explained.causes


# -------------------------------------------------------------------------------------------------- bad input

BAD = {
    "foreign": (lambda a: {("other", 3, "output"): np.zeros(3, int)}, "must hold tensors of these cases"),
    "missing image": (lambda a: {k: v for k, v in a.items() if k[1] != 4}, "must hold a tensor of image 4"),
    "truncated": (lambda a: {**a, ("b", 3, "output"): a["b", 3, "output"][:-1]}, "or 30 elements, not [4, 6]"),
    "too wide": (
        lambda a: {**a, ("b", 3, "output"): a["b", 3, "output"].astype(int) + 300},
        "element [0, 0] must fit s8, not ",
    ),
    "floats": (lambda a: {**a, ("b", 3, "output"): a["b", 3, "output"] * 1.0}, "must hold integers, not float64"),
    "mask": (lambda a: {**a, ("b", 3, "output.valid"): np.ones(3, bool)}, ".valid: must be bools of shape [5, 6]"),
    "nothing known": (
        lambda a: {**a, **{(*k[:2], "output.valid"): np.zeros(v.shape, bool) for k, v in a.items()}},
        "element [0, 0] must be there, and ",
    ),
    "twice": (lambda a: {**a, ("b", 3, "b"): a["b", 3, "output"]}, "must hold a tensor once"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_dump_is_refused_in_one_line(cases, name):
    change, said = BAD[name]
    with pytest.raises(IntvitError) as error:
        compare(cases, Archive(Path("d"), change(dict(dump_of(cases).arrays))))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_larger_unsigned_word_does_not_wrap(cases):
    arrays = dict(dump_of(cases).arrays)
    arrays["b", 3, "output"] = np.full((5, 6), 2**64 - 1, np.uint64)
    with pytest.raises(IntvitError, match="must fit s8, not 18446744073709551615"):
        compare(cases, Archive(Path("d"), arrays))


@pytest.mark.parametrize(
    ("word", "value"),
    [("ff", -1), ("7f", 127), ("0080", None), ("ff80", -128), ("ff7f", None), ("007f", 127), ("f", None), ("FE", -2),
     ("0x1", None), ("-1", None), ("1_0", None), ("", None), ("@10", None), ("١٢", None)],
)  # fmt: skip
def test_words(word, value):
    if value is None:
        if word == "0080":
            word = "0180"
        with pytest.raises(IntvitError):
            parse_word(word, IntType(8))
    else:
        assert parse_word(word, IntType(8)) == value


def test_a_word_with_x_is_not_known():
    for word in ("xx", "1x", "zz"):
        with pytest.raises(LookupError):
            parse_word(word, IntType(8))


# ------------------------------------------------------------------------------------------ files and command


@pytest.fixture(scope="module")
def bundle(vit, tmp_path_factory):
    from intvit.lowering.recipe import build_recipe

    graph = vit.lower(build_recipe({"bits": 8}))
    folder = tmp_path_factory.mktemp("compare") / "vectors"
    export(graph, vit.test.read(0, 2), folder, sites=["blocks.0.norm1*", "blocks.0.attn.qkv*", "blocks.0.attn.softmax"])
    return folder


def archive(cases, change=lambda name, i, v: v):
    return {
        f"{safe_name(c.name)}/image{i}/output": change(c.name, i, np.array(c.expected(i)[c.part.outputs[0]]))
        for c in cases
        for i in c.images
    }


def test_the_command(bundle, cli, tmp_path):
    cases = read_cases(bundle)
    np.savez(tmp_path / "right.npz", **archive(cases))
    status, out, _ = cli("golden", "compare", bundle, tmp_path / "right.npz")
    assert (status, out.splitlines()[0]) == (0, f"{len(cases)} sites equal")
    site = "blocks.0.norm1.quant"
    np.savez(tmp_path / "wrong.npz", **archive(cases, lambda n, i, v: np.roll(v, 1, axis=1) if n == site else v))
    junit = tmp_path / "r.xml"
    status, out, _ = cli("golden", "compare", bundle, tmp_path / "wrong.npz", "--junit", junit)
    assert status == 1
    assert out.splitlines()[0].startswith(f"{site}: root, image 0, token 0, channel 0: expected ")
    assert "each row 1 element late, the rest around the end (late)" in out
    status, out, _ = cli("golden", "compare", bundle, tmp_path / "wrong.npz", "--json", "--no-causes", "--isolated")
    found = json.loads(out)
    assert (status, found["counts"]["root"], found["counts"]["equal"]) == (1, 1, len(cases) - 1)
    suite = ElementTree.parse(junit).getroot()[0]
    failed = [case.attrib["name"] for case in suite if case.find("failure") is not None]
    assert f"{site} image 0" in failed
    assert suite.attrib["tests"] == str(len(list(suite))) == str(2 * len(cases))


def test_a_folder_of_hex_files(bundle, cli, tmp_path):
    """The hex files of the bundle itself are a right dump; one with unknown words, one with a wrong one."""
    for case in read_cases(bundle):
        for i in case.images:
            folder = tmp_path / "d" / safe_name(case.name) / f"image{i}"
            folder.mkdir(parents=True)
            (folder / "output.hex").write_bytes(
                (bundle / safe_name(case.name) / f"image{i}" / "output.hex").read_bytes()
            )
    assert cli("golden", "compare", bundle, tmp_path / "d")[0] == 0
    path = tmp_path / "d" / "blocks.0.attn.softmax" / "image1" / "output.hex"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0], "xxxx", *lines[2:]]))
    status, out, _ = cli("golden", "compare", bundle, tmp_path / "d")
    assert (status, "got x or z" in out) == (1, True)
    status, out, _ = cli("golden", "compare", bundle, tmp_path / "d", "--partial")
    assert (status, "1 of them in part" in out) == (0, True)
    path.write_text("\n".join([lines[0], f"{int(lines[1], 16) ^ 1:04x}", *lines[2:]]))
    assert cli("golden", "compare", bundle, tmp_path / "d", "--no-causes")[0] == 1
    for text, said in (
        ("\n".join(lines[:-2]), "must hold"),
        ("\n".join([*lines[:-2], "zzz\n"]), None),
        ("\n".join([*lines[:-2], "12345\n"]), "no bit above"),
        ("\n".join([*lines[:-2], "@0010\n"]), "need a layout"),
        ("\n".join([*lines[:-2], "1g00\n"]), f"line {len(lines) - 1}: must be hex digits"),
    ):
        path.write_text(text)
        status, _, err = cli("golden", "compare", bundle, tmp_path / "d", "--no-causes")
        assert status == (1 if said is None else 2)
        assert said is None or (said in err and "output.hex" in err and len(err.strip().splitlines()) == 1)


@pytest.mark.parametrize("what", ["empty", "text", "pickle", "cut", "object", "name", "link", "nothing"])
def test_files_that_are_no_dump(bundle, cli, tmp_path, what):
    path = tmp_path / "dump.npz"
    good = archive(read_cases(bundle))
    if what in ("cut", "object", "name"):
        key = next(iter(good))
        if what == "object":
            good[key] = np.array([None, 1], object)
        if what == "name":
            good["../../etc"] = good.pop(key)
        np.savez(path, **good)
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    if what in ("empty", "text", "pickle"):
        path.write_bytes({"empty": b"", "text": b"12\n34\n", "pickle": b"\x80\x04]\x94."}[what])
    if what == "link":
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "a").symlink_to("/etc")
        path = tmp_path / "d"
    if what == "nothing":
        path = tmp_path / "e"
        path.mkdir()
    status, out, err = cli("golden", "compare", bundle, path)
    assert (status, out) == (2, "")
    assert len(err.strip().splitlines()) == 1, err


def test_a_changed_bundle_is_refused(bundle, cli, tmp_path):
    import shutil

    np.savez(tmp_path / "d.npz", **archive(read_cases(bundle)))
    shutil.copytree(bundle, tmp_path / "v")
    path = tmp_path / "v" / "blocks.0.attn.qkv" / "image0" / "output.hex"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    status, _, err = cli("golden", "compare", tmp_path / "v", tmp_path / "d.npz")
    assert status == 2
    assert "golden check" in err


def test_junit_holds_any_name(graph, cases):
    report = compare(cases, dump_of(cases, change=flipped(ODD, 3), extra={("z\x00", 3, "<&>"): np.zeros(1, int)}))
    text = reports.junit(report)
    suites = ElementTree.fromstring(text)
    names = [case.attrib["classname"] for case in suites[0]]
    assert reports.plain(ODD) in names
    assert "\\x00" in reports.plain(ODD)
    assert suites.attrib["failures"] == "1"
    lines = "\n".join(reports.lines(report))
    assert "root" in lines
    json.dumps(reports.document(report))


def test_images_can_be_chosen(cases):
    made = dump_of(cases, change=flipped("b", 5))
    only = Archive(made.path, {k: v for k, v in made.arrays.items() if k[1] != 4})
    assert not compare(cases, only, images=[3]).differs
    assert compare(cases, only, images=[5, 3], causes=False).differs
    with pytest.raises(IntvitError, match=r"image: must be one of the cases', 3\.\.5, not 9"):
        compare(cases, only, images=[9])


def test_a_wrong_case_is_refused(graph):
    values = values_of(graph)
    part = part_of(graph, ["a", "b", "c"])
    case = Vectors("many", part, (3,), {"x": values["x"][:1]}, {"c": values["c"][:1] * 0})
    with pytest.raises(IntvitError, match="must be what its stimuli give"):
        compare([case], Archive(Path("d"), {("many", 3, "output"): values["c"][0]}))


def test_results_are_values(cases):
    result = compare(cases, dump_of(cases)).results[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.status = ROOT


def test_codes_for_which_a_site_is_not_defined_are_no_bad_input():
    """A device may give a log2 softmax codes that there are not: that is its fault, and a difference."""
    one = np.asarray(0.1)
    tensors = {
        "q": Tensor("q", (3, 4), IntType(8), one, "log2", 15),
        "p": Tensor("p", (3, 4), IntType(8), one, "log2", 15),
        "v": Tensor("v", (4, 5), IntType(8), one),
        "y": Tensor("y", (3, 5), IntType(32), one),
    }
    first = Graph(("q",), ("p",), (Node("reshape", "move", ("q",), "p", {"shape": [3, 4]}),), tensors)
    second = Graph(("p", "v"), ("y",), (Node("log2_matmul", "mix", ("p", "v"), "y"),), tensors)
    rng = np.random.default_rng(0)
    p, v = rng.integers(-1, 16, (1, 3, 4)), rng.integers(-128, 128, (1, 4, 5))
    y = run(second, {"p": p, "v": v})["y"]
    cases = [
        Vectors("move", first, (0,), {"q": p}, {"p": p}),
        Vectors("mix", second, (0,), {"p": p, "v": v}, {"y": y}),
    ]
    made = {("move", 0, "output"): -p[0] - 2, ("mix", 0, "output"): y[0] + 1}
    report = compare(cases, Archive(Path("d"), made))
    assert statuses(report) == {"move": ROOT, "mix": ROOT}
