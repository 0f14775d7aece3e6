"""No change of a golden bundle passes: of a byte, a name, a file, a digest, or of all digests where values contradict.

What a tampering does is written here anew, with the standard library and the words of golden/FORMAT.md.
"""

import hashlib
import io
import json
import os
import random
import re
import shutil
import socket

import numpy as np
import pytest
from small_graph import renamed, small_graph, small_images

from intvit.graph.inttypes import IntType
from intvit.vectors.check import check
from intvit.vectors.export import export
from intvit.vectors.npz import format_npz

SITES = ("fc", "fc.quant", "codes", "av", "qk", "sum", "weights", "act", "norm", "pool")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "v"
    export(small_graph(), small_images(2), folder)
    return folder


@pytest.fixture
def bundle(pristine, tmp_path):
    return Bundle(shutil.copytree(pristine, tmp_path / "v"))


def dump(value):
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def hashed(array):
    return sha256(f"<i8{list(array.shape)}".encode() + array.astype("<i8").tobytes())


class Bundle:
    """A copy of the bundle, and hands to change it."""

    def __init__(self, root):
        self.root, self.index = root, root / "index.json"

    def part(self, site):
        return self.root / site / "part.json"

    def case(self, site, image=0):
        return self.root / site / f"image{image}"

    def edit(self, path, change):
        value = json.loads(path.read_bytes())
        change(value)
        path.write_bytes(dump(value))

    def manifest(self, site, change, images=(0,)):
        for image in images:
            self.edit(self.case(site, image) / "case.json", change)

    def facts(self, tensor, everywhere=True, **values):
        """What the parts say of a tensor; the first of them only, if not `everywhere`."""
        for site in SITES:
            found = tensor in json.loads(self.part(site).read_bytes())["tensors"]
            if found:
                self.edit(self.part(site), lambda m: m["tensors"][tensor].update(values))
                if not everywhere:
                    return

    def parameter(self, at, which, /, **values):
        self.edit(self.part(at), lambda m: next(p for p in m["parameters"] if p["key"] == which).update(values))

    def replace(self, path, old, new, count=1):
        data = path.read_bytes()
        assert old in data, (path, old)
        path.write_bytes(data.replace(old, new, count))

    def write(self, path, change):
        path.write_bytes(change(path.read_bytes()))

    def arrays(self, site, image=0):
        """All of a case, the constants too."""
        found = {}
        for path in (self.root / site / "parameters.npz", self.case(site, image) / "case.npz"):
            if path.is_file():
                with np.load(path) as file:
                    found |= {key: np.array(file[key], np.int64) for key in file.files}
        return found

    def store(self, site, image=0, **values):
        """Other arrays, with all that is said of them: digests, shapes, hex files."""
        arrays = self.arrays(site, image) | {key: np.asarray(value, np.int64) for key, value in values.items()}
        part = json.loads(self.part(site).read_bytes())
        for p in part["parameters"]:
            p["shape"], p["sha256"] = list(arrays[p["key"]].shape), hashed(arrays[p["key"]])
        signals = [{"key": p["key"], **part["tensors"][p["tensor"]]} for p in (*part["stimuli"], *part["expected"])]
        for p in (*part["stimuli"], *part["expected"]):
            part["tensors"][p["tensor"]]["shape"] = list(arrays[p["key"]].shape)
        self.part(site).write_bytes(dump(part))
        if part["parameters"]:
            self.files(part, part["parameters"], self.root / site, "parameters.npz", arrays)
        self.files(part, signals, self.case(site, image), "case.npz", arrays)
        hashes = {s["key"]: hashed(arrays[s["key"]]) for s in signals}
        self.manifest(site, lambda m: m.update(signals=hashes), (image,))

    def files(self, part, signals, folder, npz, arrays):
        layout = {}
        origin = f"graph {part['graph_hash'][:16]} spec {part['spec_version']} numerics {part['numerics'][:16]}"
        for s in signals:
            array, bits = arrays[s["key"]], int(s["dtype"][1:])
            words = "".join(f"{int(v) % 2**bits:0{-(-bits // 4)}x}\n" for v in array.reshape(-1))
            what = f"// {part['part']} {s['key']} {s['dtype']} shape {list(array.shape)}, row-major"
            (folder / f"{s['key']}.hex").write_text(f"{what}; {origin} layout plain\n{words}")
            layout[s["key"]] = IntType.parse(s["dtype"]), array.shape
        (folder / npz).write_bytes(format_npz({key: arrays[key] for key in layout}, layout))

    def seal(self):
        """Make all digests anew, as one would who wants the changes to pass."""
        index = json.loads(self.index.read_bytes())
        for listed in index["parts"]:
            folder = self.root / listed["folder"]
            paths = [(folder / "part.json", listed)]
            paths += [(folder / f"image{entry['image']}" / "case.json", entry) for entry in listed["cases"]]
            for path, entry in paths:
                if path.is_file():
                    manifest = json.loads(path.read_bytes())
                    manifest["files"] = {name: sha256((path.parent / name).read_bytes()) for name in manifest["files"]
                                         if (path.parent / name).is_file()}  # fmt: skip
                    path.write_bytes(dump(manifest))
                    entry["sha256"] = sha256(path.read_bytes())
        index["digest"] = ""
        index["digest"] = sha256(dump(index))
        self.index.write_bytes(dump(index))

    def swap(self, first, second):
        between = self.root.parent / "between"
        first.rename(between)
        second.rename(first)
        between.rename(second)

    def hex_lines(self, path, change):
        lines = path.read_bytes().split(b"\n")
        path.write_bytes(b"\n".join(change(lines)))


def test_the_pristine_bundle_is_equal(pristine, cli):
    status, out, err = cli("golden", "check", pristine)
    assert (status, err) == (0, "")
    digest = json.loads((pristine / "index.json").read_bytes())["digest"]
    assert out == f"{2 * len(SITES)} cases: every bit equal\ndigest {digest}\n"
    status, out, _ = cli("golden", "check", pristine, "--json", "--digest", digest)
    expected = {"cases": 2 * len(SITES), "digest": digest, "mismatches": [], "spec_rows": [0, 0]}
    assert (status, json.loads(out)) == (0, expected)


def test_the_sealing_of_these_tests_gives_the_exporters_bytes(bundle, pristine):
    for site in SITES:
        bundle.store(site)
    bundle.seal()
    for path in sorted(pristine.rglob("*")):
        if path.is_file():
            assert (bundle.root / path.relative_to(pristine)).read_bytes() == path.read_bytes()


def word(text):
    """Replace the third word of fc's output (8 digits)."""
    return lambda b: b.hex_lines(b.case("fc") / "output.hex", lambda lines: [*lines[:3], text, *lines[4:]])


def hex_file(change):
    return lambda b: b.hex_lines(b.case("sum") / "output.hex", change)


def text(path, old, new):
    return lambda b: b.replace(b.root / path, old, new)


def write(path, data):
    return lambda b: (b.root / path).write_bytes(data)


def append(path, data):
    return lambda b: (b.root / path).write_bytes((b.root / path).read_bytes() + data)


def prepend(path, data):
    return lambda b: (b.root / path).write_bytes(data + (b.root / path).read_bytes())


def case_json(**values):
    return lambda b: b.manifest("sum", lambda m: m.update(values))


def part_json(**values):
    return lambda b: b.edit(b.part("sum"), lambda m: m.update(values))


def output(**values):
    return lambda b: b.facts("sum", everywhere=False, **values)


def port(**values):
    return lambda b: b.edit(b.part("sum"), lambda m: m["expected"][0].update(values))


def constant(**values):
    return lambda b: b.parameter("sum", "m", **values)


def index_json(change):
    return lambda b: b.edit(b.index, change)


def repack(save):
    def run(b):
        arrays = {key: array for key, array in b.arrays("sum").items() if key in ("input0", "input1", "output")}
        save(b.case("sum") / "case.npz", arrays)

    return run


def linked(path, folder=False):
    def run(b):
        outside = b.root.parent / "outside"
        (b.root / path).rename(outside)
        (b.root / path).symlink_to(outside, target_is_directory=folder)

    return run


def fifo(path):
    def run(b):
        (b.root / path).unlink()
        os.mkfifo(b.root / path)

    return run


def bound_socket(b):
    here = os.getcwd()
    os.chdir(b.case("fc"))
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind("s")
    finally:
        os.chdir(here)


def folder_for_file(b):
    (b.case("fc") / "m.hex").mkdir()


def drop_entry(b):
    b.edit(b.index, lambda i: i["parts"].pop(3))


def drop_case(b):
    drop_entry(b)
    shutil.rmtree(b.root / "av")


DEEP = b"[" * 100_000 + b"]" * 100_000
SUM = "sum/image0"

RAW = {
    # folders and files
    "two sites swapped": lambda b: b.swap(b.root / "fc", b.root / "sum"),
    "two cases of one operator swapped": lambda b: b.swap(b.case("fc.quant"), b.case("sum")),
    "two images of a site swapped": lambda b: b.swap(b.case("fc", 0), b.case("fc", 1)),
    "image0 renamed image7": lambda b: b.case("fc").rename(b.root / "fc/image7"),
    "a site renamed": lambda b: (b.root / "fc").rename(b.root / "fd"),
    "a site in upper case": lambda b: (b.root / "fc").rename(b.root / "FC"),
    "a case deleted": lambda b: shutil.rmtree(b.case("fc")),
    "a site deleted": lambda b: shutil.rmtree(b.root / "fc"),
    "a case copied": lambda b: shutil.copytree(b.case("fc"), b.root / "fc/image2"),
    "a file beside the cases": write("notes.txt", b""),
    "a file beside the images": write("fc/notes.txt", b""),
    "a file in a case": write("fc/image0/notes.txt", b""),
    "a hidden file": write(".hidden", b""),
    "a name with a line feed": write("fc/image0/a\nb", b""),
    "an empty folder": lambda b: (b.root / "empty").mkdir(),
    "an empty folder in a case": folder_for_file,
    "a socket": bound_socket,
    "output.hex deleted": lambda b: (b.case("sum") / "output.hex").unlink(),
    "all hex files of a case deleted": lambda b: [p.unlink() for p in b.case("sum").glob("*.hex")],
    "case.json deleted": lambda b: (b.case("sum") / "case.json").unlink(),
    "case.npz deleted": lambda b: (b.case("sum") / "case.npz").unlink(),
    "two hex files swapped": lambda b: b.swap(b.case("sum") / "input0.hex", b.case("sum") / "input1.hex"),
    "npz of another image": lambda b: b.swap(b.case("sum") / "case.npz", b.case("sum", 1) / "case.npz"),
    "manifest of another image": lambda b: b.swap(b.case("sum") / "case.json", b.case("sum", 1) / "case.json"),
    "a link to a file": linked(f"{SUM}/output.hex"),
    "a link to the manifest": linked(f"{SUM}/case.json"),
    "a link to a case": linked(SUM, folder=True),
    "a link to a site": linked("sum", folder=True),
    "a link to the index": linked("index.json"),
    "a pipe for the npz": fifo(f"{SUM}/case.npz"),
    "a pipe for the manifest": fifo(f"{SUM}/case.json"),
    "a pipe for the index": fifo("index.json"),
    # the index
    "index deleted": lambda b: b.index.unlink(),
    "index emptied": write("index.json", b""),
    "index an empty object": write("index.json", b"{}\n"),
    "index a list": write("index.json", b"[]\n"),
    "index without parts": index_json(lambda i: i.update(parts=[])),
    "index without cases": index_json(lambda i: i["parts"][0].update(cases=[])),
    "index with a case dropped": drop_entry,
    "index and folder with a case dropped": drop_case,
    "index with a case doubled": index_json(lambda i: i["parts"][0]["cases"].append(i["parts"][0]["cases"][-1])),
    "index with a part doubled": index_json(lambda i: i["parts"].append(i["parts"][-1])),
    "index in another order": index_json(lambda i: i["parts"].reverse()),
    "index with cases in another order": index_json(lambda i: i["parts"][0]["cases"].reverse()),
    "index with two parts swapped": index_json(lambda i: i["parts"].insert(4, i["parts"].pop(3))),
    "index of other stimuli": index_json(lambda i: i.update(stimuli="directed")),
    "index of unknown stimuli": index_json(lambda i: i.update(stimuli="none")),
    "index of a layout": index_json(lambda i: i.update(layout="0" * 64)),
    "index of another graph": index_json(lambda i: i.update(graph_hash="0" * 64)),
    "index of another recipe": index_json(lambda i: i["recipe"].update(bits=6)),
    "index of another spec": index_json(lambda i: i.update(spec_version=0)),
    "index with another digest": index_json(lambda i: i.update(digest="0" * 64)),
    "index with an empty digest": index_json(lambda i: i.update(digest="")),
    "index with a digest in upper case": index_json(lambda i: i.update(digest=i["digest"].upper())),
    "index with another sha256": index_json(lambda i: i["parts"][0].update(sha256="0" * 64)),
    "index with another sha256 of a case": index_json(lambda i: i["parts"][0]["cases"][0].update(sha256="0" * 64)),
    "index without digest": index_json(lambda i: i.pop("digest")),
    "index of version 1": index_json(lambda i: [i.pop(k) for k in ("format", "version", "digest")]),
    "index of version 2": index_json(lambda i: i.update(version=2)),
    "index of version 4": index_json(lambda i: i.update(version=4)),
    "index of another format": index_json(lambda i: i.update(format="other")),
    "index with an unknown key": index_json(lambda i: i.update(surprise=1)),
    "index nested deep": write("index.json", DEEP),
    "index not JSON": write("index.json", b'{"cases": [\n'),
    "index not text": write("index.json", b"\xff\xfe\x00"),
    "index huge": lambda b: os.truncate(b.index, 1 << 33),
    # manifests
    "scale": output(scale=123.0),
    "scale as a list": output(scale=[0.0625] * 3),
    "bound": output(bound=40000),
    "bound left out": lambda b: b.facts("fc", everywhere=False, bound=None),
    "encoding": output(encoding="log2"),
    "tensor": port(tensor="other"),
    "graph_hash": case_json(graph_hash="0" * 64),
    "recipe": case_json(recipe={"bits": 6}),
    "spec_version": case_json(spec_version=0),
    "part": case_json(part="fc"),
    "image": case_json(image=1),
    "graph_hash of the part": part_json(graph_hash="0" * 64),
    "spec_version of the part": part_json(spec_version=0),
    "numerics of the part": part_json(numerics="0" * 64),
    "layout of the part": part_json(layout="0" * 64),
    "name of the part": part_json(part="fc"),
    "no nodes": part_json(nodes=[]),
    "taps": part_json(taps=[{"key": "tap.x", "site": "sum", "intermediate": "x", "shape": [1], "dtype": "s8",
                             "some": False}]),
    "op": lambda b: b.edit(b.part("sum"), lambda m: m["nodes"][0].update(op="matmul")),
    "attrs": lambda b: b.edit(b.part("sum"), lambda m: m["nodes"][0]["attrs"].update(bits=15)),
    "inputs": lambda b: b.edit(b.part("sum"), lambda m: m["nodes"][0]["inputs"].reverse()),
    "a node twice": lambda b: b.edit(b.part("sum"), lambda m: m["nodes"].append(m["nodes"][0])),
    "a tensor more": lambda b: b.edit(b.part("sum"), lambda m: m["tensors"].update(y=m["tensors"]["sum"])),
    "a constant's name": constant(constant="n"),
    "a constant's site": constant(site="fc"),
    "a constant's type": constant(dtype="s40"),
    "a constant's digest": constant(sha256="0" * 64),
    "dtype": output(dtype="s17"),
    "dtype unsigned": output(dtype="u16"),
    "dtype spelt otherwise": output(dtype="s016"),
    "dtype in other digits": output(dtype="s１６"),
    "dtype of no width": output(dtype="s0"),
    "dtype too wide": output(dtype="s65"),
    "dtype unsigned and too wide": output(dtype="u64"),
    "shape": output(shape=[3, 1, 3]),
    "shape flattened": output(shape=[9]),
    "shape huge": output(shape=[1 << 40, 1 << 40]),
    "shape of many axes": output(shape=[1] * 100),
    "shape with a zero": output(shape=[0, 3]),
    "shape with a negative": output(shape=[-3, -3]),
    "shape with a bool": output(shape=[True, 3, 3]),
    "key": port(key="out"),
    "key with a path": port(key="../../output"),
    "a constant's key with a path": constant(key="../../m"),
    "sha256": case_json(signals={"input0": "0" * 64, "input1": "0" * 64, "output": "0" * 64}),
    "no signals": case_json(signals={}),
    "signals as a list": case_json(signals=[]),
    "version 1": case_json(version=1),
    "unknown key in the part": part_json(surprise=1),
    "unknown key": case_json(surprise=1),
    "missing key": lambda b: b.manifest("sum", lambda m: m.pop("signals")),
    "wrong types": case_json(image="0", signals={}),
    "a bool for a number": case_json(image=False),
    "a float for a number": case_json(image=0.0),
    "files left out": lambda b: b.manifest("sum", lambda m: m["files"].pop("output.hex")),
    "file with a path": lambda b: b.manifest("sum", lambda m: m["files"].update({"../../x": "0" * 64})),
    "manifest emptied": write(f"{SUM}/case.json", b""),
    "manifest nested deep": write(f"{SUM}/case.json", DEEP),
    "recipe nested deep": text("index.json", b'"note": null', b'"note": ' + DEEP),
    "manifest with a key twice": text(f"{SUM}/case.json", b' "image": 0,', b' "image": 0,\n "image": 0,'),
    "manifest with an equal key": text("sum/part.json", b'"site"', b'"\\u0073ite"'),
    "manifest with NaN": text("sum/part.json", b'"scale": 0.0625', b'"scale": NaN'),
    "manifest with infinity": text("sum/part.json", b'"scale": 0.0625', b'"scale": 1e999'),
    "manifest with a number of 5000 digits": text(f"{SUM}/case.json", b'"image": 0', b'"image": ' + b"1" * 5000),
    "manifest with a number spelt otherwise": text("sum/part.json", b"0.0625", b"6.25e-2"),
    "manifest indented otherwise": text(f"{SUM}/case.json", b'\n "part"', b'\n  "part"'),
    "manifest with CRLF": text(f"{SUM}/case.json", b"\n", b"\r\n"),
    "manifest with a byte order mark": prepend(f"{SUM}/case.json", b"\xef\xbb\xbf"),
    "manifest with a line feed more": append(f"{SUM}/case.json", b"\n"),
    "manifest with a NUL more": append(f"{SUM}/case.json", b"\0"),
    "manifest not text": prepend(f"{SUM}/case.json", b"\xff\xfe"),
    "manifest with a lone surrogate": text(f"{SUM}/case.json", b'"part": "sum"', b'"part": "\\ud800"'),
    # hex files: what `$readmemh` or a lenient parser reads otherwise
    "hex with 0x": word(b"0x0026a8"),
    "hex with a plus": word(b"+00026a8"),
    "hex with a minus": word(b"-00026a8"),
    "hex with an underscore": word(b"0_0026a8"),
    "hex with x": word(b"xxxxxxxx"),
    "hex with z": word(b"0000000z"),
    "hex with an address": word(b"@0000002"),
    "hex with a comment": word(b"00000000 // 2"),
    "hex with a block comment": word(b"/*abcd*/"),
    "hex with other digits": word("0000000１".encode()),
    "hex with too few digits": word(b"0"),
    "hex with too many digits": word(b"000000000"),
    "hex with two words in a line": word(b"00000000 00000000"),
    "hex with an empty line": word(b""),
    "hex with another value": word(b"00000000"),
    "hex in upper case": hex_file(lambda lines: [lines[0], *(line.upper() for line in lines[1:])]),
    "hex with CRLF": hex_file(lambda lines: [line + b"\r" for line in lines[:-1]] + [b""]),
    "hex with CR": hex_file(lambda lines: [b"\r".join(lines)]),
    "hex with a space behind": hex_file(lambda lines: [*lines[:-2], lines[-2] + b" ", b""]),
    "hex with a tab before": hex_file(lambda lines: [lines[0], b"\t" + lines[1], *lines[2:]]),
    "hex with a form feed": hex_file(lambda lines: [lines[0], lines[1] + b"\f", *lines[2:]]),
    "hex without the last line feed": hex_file(lambda lines: lines[:-1]),
    "hex with a line feed more": hex_file(lambda lines: [*lines, b""]),
    "hex with a word less": hex_file(lambda lines: [*lines[:-2], b""]),
    "hex with a word more": hex_file(lambda lines: [*lines[:-1], b"0000", b""]),
    "hex with two words swapped": hex_file(lambda lines: [lines[0], lines[2], lines[1], *lines[3:]]),
    "hex without header": hex_file(lambda lines: lines[1:]),
    "hex with a second comment": hex_file(lambda lines: [lines[0], b"// more", *lines[1:]]),
    "hex with a lying header": hex_file(lambda lines: [lines[0].replace(b"s16", b"s17"), *lines[1:]]),
    "hex with a header of another site": hex_file(lambda lines: [lines[0].replace(b"sum", b"fc"), *lines[1:]]),
    "hex with bits above its width": lambda b: b.replace(b.case("codes") / "output.hex", b"\n0", b"\n8"),
    "hex emptied": write(f"{SUM}/output.hex", b""),
    "hex with a NUL": append(f"{SUM}/output.hex", b"\0"),
    "hex huge": lambda b: os.truncate(b.case("sum") / "output.hex", 1 << 36),
    # npz
    "bytes after the npz": append(f"{SUM}/case.npz", b"\0"),
    "bytes before the npz": prepend(f"{SUM}/case.npz", b"#!/bin/sh\n"),
    "npz emptied": write(f"{SUM}/case.npz", b""),
    "npz huge": lambda b: os.truncate(b.case("sum") / "case.npz", 1 << 36),
    "npz truncated": lambda b: os.truncate(b.case("sum") / "case.npz", 100),
    "npz not a zip": lambda b: b.write(b.case("sum") / "case.npz", lambda data: b"x" * len(data)),
    "npz as numpy writes it": repack(lambda path, arrays: np.savez(path, **arrays)),
    "npz compressed": repack(lambda path, arrays: np.savez_compressed(path, **arrays)),
    "npz with an array more": repack(lambda path, arrays: np.savez(path, more=np.zeros(3), **arrays)),
    "npz with a pickle": repack(lambda path, arrays: np.savez(path, **{**arrays, "m": np.array([{}], object)})),
    "npz of floats": repack(lambda path, arrays: np.savez(path, **{k: v * 1.0 for k, v in arrays.items()})),
    "npz in Fortran order": lambda b: b.replace(b.case("sum") / "case.npz", b"False", b"True "),
    "npz of unsigned": lambda b: b.replace(b.case("sum") / "case.npz", b"'<i2'", b"'<u2'"),
    "npz big-endian": lambda b: b.replace(b.case("sum") / "case.npz", b"'<i2'", b"'>i2'"),
    "npz with another member name": lambda b: b.replace(b.case("sum") / "case.npz", b"output.npy", b"outqut.npy"),
    "npz with another date": lambda b: b.replace(b.case("sum") / "case.npz", b"\x21\0", b"\x22\0"),
}  # fmt: skip


def refused(cli, folder, *options):
    """A check that must not pass; gives (exit status, what it said)."""
    status, out, err = cli("golden", "check", folder, *options)
    if status == 1:
        assert err == ""
        assert "every bit equal" not in out
        assert all(c.isprintable() or c == "\n" for c in out)
        return status, out
    assert status == 2, (status, out, err)
    assert out == ""
    assert err.startswith("intvit: ")
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable(), err
    assert len(err) < 800, err
    return status, err


@pytest.mark.parametrize("change", RAW.values(), ids=RAW)
def test_a_change_is_noticed(bundle, cli, change):
    change(bundle)
    refused(cli, bundle.root)


def node(site, change):
    return lambda b: b.edit(b.part(site), lambda m: change(m["nodes"][0]))


def tensor_of(site, key, tensor):
    """Another tensor under a key of a part."""

    def change(m):
        port = next(p for p in (*m["stimuli"], *m["expected"]) if p["key"] == key)
        facts = m["tensors"].pop(port["tensor"])
        m["tensors"].setdefault(tensor, facts)
        port["tensor"] = m["nodes"][0]["output"] = tensor

    return lambda b: b.edit(b.part(site), change)


def stored(site, **values):
    """Other arrays on both images."""
    return lambda b: [b.store(site, image, **values) for image in (0, 1)]


def added(site, key, change):
    """`change` an array of a site on both images."""

    def run(b):
        changed = [change(b.arrays(site, image)[key]) for image in (0, 1)]
        for image in (0, 1):
            b.store(site, image, **{key: changed[image]})

    return run


def wrapped(b):
    """Values modulo 2**8, as the 8 bits that they are declared to be."""
    arrays = [b.arrays("norm", image)["output"] for image in (0, 1)]
    assert all(np.abs(values).max() > 128 for values in arrays)
    b.edit(b.part("norm"), lambda m: m["tensors"]["norm"].pop("bound", None))
    b.facts("norm", dtype="s8")
    for image, values in enumerate(arrays):
        b.store("norm", image, output=(values + 128) % 256 - 128)


def rename_folder(text):
    def run(b):
        b.edit(b.index, lambda i: i["parts"][0].update(folder=text))

    return run


def renumber(b):
    """Image 1 becomes image 2."""
    for site in SITES:
        b.manifest(site, lambda m: m.update(image=2), images=(1,))
        b.case(site, 1).rename(b.case(site, 2))
    b.edit(b.index, lambda i: [part["cases"][1].update(image=2) for part in i["parts"]])


def drop_image(b):
    b.edit(b.index, lambda i: i["parts"][3]["cases"].pop(1))
    shutil.rmtree(b.case(SITES[3], 1))


def without_hex(b):
    for path in b.case("sum").glob("*.hex"):
        path.unlink()


def without_one_hex(b):
    (b.case("sum") / "output.hex").unlink()


def renamed_key(b):
    folder = b.root / "sum"
    (folder / "m.hex").rename(folder / "n.hex")
    b.replace(folder / "n.hex", b" m ", b" n ")
    b.edit(b.part("sum"), lambda m: m["files"].update({"n.hex": m["files"].pop("m.hex")}))
    b.parameter("sum", "m", key="n")
    data = (folder / "parameters.npz").read_bytes()
    (folder / "parameters.npz").write_bytes(data.replace(b"m.npy", b"n.npy"))


def retyped(b):
    """A parameter of one bit more than it needs."""
    b.parameter("sum", "e", dtype="s8")
    b.store("sum")


SEALED = {
    "an output": (added("norm", "output", lambda v: v + 1), 1),
    "an output that wraps": (wrapped, 2),
    "an output of one image": (lambda b: b.store("norm", output=b.arrays("norm")["output"] ^ 1), 1),
    "an output of a stimulus": (lambda b: b.store("fc", output=b.arrays("fc")["output"] + 1), 2),
    "a stimulus of one case": (lambda b: b.store("act", input0=b.arrays("act")["input0"] ^ 1), 2),
    "parameters": (added("fc", "bias", lambda v: v + 1), 1),
    "e": (added("sum", "e", lambda v: v + 1), 1),
    "bits": (stored("sum", bits=8), 2),
    "m that is one too many": (stored("fc.quant", m=[1 << 30] * 5), 2),
    "m and e of two lengths": (stored("fc.quant", e=[30]), 2),
    "no m": (stored("fc.quant", m=[[1 << 30] * 4]), 2),
    "a bias that is one too short": (stored("fc", bias=[0, 1, 2]), 2),
    "a weight of another shape": (stored("fc", weight=np.zeros((2, 8))), 2),
    "a weight of three axes": (stored("fc", weight=np.zeros((1, 4, 4))), 2),
    "a LayerNorm bias too short": (stored("norm", bias=[0, 1, 2]), 2),
    "a LayerNorm bias of one": (stored("norm", bias=[0]), 2),
    "a GELU of three channels": (stored("act", b=[-1, -1, -1]), 2),
    "a scale of one part": (lambda b: b.facts("qk", everywhere=False, scale=123.0), 2),
    "a bound of one part": (lambda b: b.facts("qk", everywhere=False, bound=99999), 2),
    "a bound that values pass": (lambda b: b.facts("qk", bound=5), 2),
    "a bound beyond the type": (lambda b: b.facts("sum", bound=1 << 20), 2),
    "a type that values pass": (lambda b: b.facts("pool", dtype="s2"), 2),
    "a parameter's type": (retyped, 2),
    "an encoding": (lambda b: b.facts("sum", encoding="log2"), 2),
    "a scale per channel too many": (lambda b: b.facts("sum", scale=[0.1] * 4), 2),
    "a tensor that is computed twice": (tensor_of("sum", "output", "fc"), 2),
    "a tensor that is its own input": (tensor_of("fc", "output", "x"), 2),
    "the order": (lambda b: b.edit(b.index, lambda i: i["parts"].insert(0, i["parts"].pop(1))), 2),
    "the order of images": (lambda b: b.edit(b.index, lambda i: i["parts"][0]["cases"].reverse()), 2),
    "numerics": (lambda b: b.edit(b.part("sum"), lambda m: m.update(numerics="0" * 64)), 2),
    "numerics of a node": (node("sum", lambda n: n["attrs"].update(numerics={"rounding": "floor"})), 2),
    "a case dropped": (drop_image, 2),
    "an image number": (renumber, 2),
    "a graph_hash": (case_json(graph_hash="0" * 64), 2),
    "a recipe": (lambda b: b.edit(b.index, lambda i: i.update(recipe=[6])), 2),
    "a part": (case_json(part="summ"), 2),
    "a site": (node("sum", lambda n: n.update(site="summ")), 2),
    "an operator": (node("qk", lambda n: n.update(op="log2_matmul")), 2),
    "an unknown operator": (node("qk", lambda n: n.update(op="magic")), 2),
    "a layout operator": (node("qk", lambda n: n.update(op="transpose")), 2),
    "an unknown method": (node("act", lambda n: n["attrs"].update(method="magic")), 2),
    "another method": (node("act", lambda n: n["attrs"].update(method="ivit")), 2),
    "another version": (node("act", lambda n: n["attrs"].update(version=2)), 2),
    "a version that is a bool": (node("act", lambda n: n["attrs"].update(version=True)), 2),
    "no version": (node("act", lambda n: n["attrs"].pop("version")), 2),
    "numbers in two places": (node("act", lambda n: n["attrs"].update(params={"n": 6})), 2),
    "a parameter that is a list": (stored("act", n=[6]), 2),
    "a number for a vector": (stored("act", b=-1), 2),
    "a division by zero": (stored("weights", x0=0), 2),
    "attributes more": (node("sum", lambda n: n["attrs"].update(more=1)), 2),
    "bits twice": (node("sum", lambda n: n["attrs"].update(bits=16)), 2),
    "bits too many": (stored("sum", bits=65), 2),
    "no axis": (node("pool", lambda n: n["attrs"].update(axis=7)), 2),
    "an axis that is a bool": (node("pool", lambda n: n["attrs"].update(axis=True)), 2),
    "keepdims": (node("pool", lambda n: n["attrs"].update(keepdims=True)), 2),
    "a key": (renamed_key, 2),
    "a folder above": (rename_folder("../fc/image0"), 2),
    "a folder elsewhere": (rename_folder("/etc/image0"), 2),
    "a folder that is the same": (rename_folder("fc/./image0"), 2),
    "hex files of one case": (without_hex, 2),
    "one hex file": (without_one_hex, 2),
}  # fmt: skip


@pytest.mark.parametrize(("change", "status"), SEALED.values(), ids=SEALED)
def test_a_change_that_contradicts_is_noticed_with_all_digests_made_anew(bundle, cli, change, status):
    change(bundle)
    bundle.seal()
    assert refused(cli, bundle.root)[0] == status


def test_only_the_digest_kept_elsewhere_tells_a_bundle_that_agrees_with_itself(bundle, cli):
    digest = json.loads(bundle.index.read_bytes())["digest"]
    bundle.facts("pool", scale=123.0)
    bundle.facts("norm", scale=[1.0, 2.0, 3.0, 4.0])
    bundle.seal()
    assert cli("golden", "check", bundle.root)[0] == 0
    status, out = refused(cli, bundle.root, "--digest", digest)
    assert status == 1
    assert f"expected {digest}, got " in out


@pytest.mark.parametrize("digest", ["", "0" * 63, "G" * 64, "A" * 64])
def test_a_digest_that_is_none_is_refused(pristine, cli, digest):
    status, said = refused(cli, pristine, "--digest", digest)
    assert (status, "digest: must be 64 lower-case hex digits" in said) == (2, True)


def test_the_digest_is_that_of_the_index_with_an_empty_digest(pristine):
    text = (pristine / "index.json").read_text()
    assert sha256(re.sub('^ "digest": ".*"', ' "digest": ""', text, flags=re.M).encode()) == json.loads(text)["digest"]


def test_the_index_lists_cases_in_the_order_of_execution(pristine):
    parts = json.loads((pristine / "index.json").read_bytes())["parts"]
    assert [part["part"] for part in parts] == list(SITES)
    assert [[case["image"] for case in part["cases"]] for part in parts] == [[0, 1]] * len(SITES)


def test_two_exports_are_equal_byte_by_byte(pristine, tmp_path):
    export(small_graph(), small_images(2), tmp_path / "v")
    names = sorted(p.relative_to(pristine) for p in pristine.rglob("*"))
    assert sorted(p.relative_to(tmp_path / "v") for p in (tmp_path / "v").rglob("*")) == names
    assert all(
        (tmp_path / "v" / n).read_bytes() == (pristine / n).read_bytes() for n in names if (pristine / n).is_file()
    )


def test_numpy_and_zipfile_read_the_arrays(pristine):
    import zipfile

    for path in pristine.rglob("case.npz"):
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            assert archive.testzip() is None
        signals = json.loads((path.parent / "case.json").read_bytes())["signals"]
        with np.load(path) as file:
            assert {key: hashed(file[key]) for key in file.files} == signals


@pytest.mark.parametrize("seed", range(3))
def test_changes_at_random_are_noticed(pristine, tmp_path, seed):
    """Single bytes anywhere, cut ends, bytes deleted and doubled; `find_missed` with more of them finds none either."""
    assert find_missed(pristine, tmp_path / "v", seed, 60) == []


def find_missed(pristine, folder, seed, n):
    from intvit.errors import IntvitError

    rng = random.Random(seed)
    shutil.copytree(pristine, folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    missed = []
    for _ in range(n):
        path = rng.choice(files)
        data = path.read_bytes()
        at = rng.randrange(len(data))
        kind = rng.choice(["bit", "byte", "cut", "delete", "double", "swap"])
        changed = {
            "bit": data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
            "byte": data[:at] + bytes([(data[at] + rng.randrange(1, 256)) % 256]) + data[at + 1 :],
            "cut": data[:at],
            "delete": data[:at] + data[at + 1 :],
            "double": data[:at] + data[at : at + 1] + data[at:],
            "swap": data[: at // 2] + data[at:] + data[at // 2 : at],
        }[kind]
        if changed == data:
            continue
        path.write_bytes(changed)
        try:
            if not check(folder, backends=("kernel",)).mismatches:
                missed.append((str(path), kind, at))
        except IntvitError:
            pass
        path.write_bytes(data)
    return missed


# ------------------------------------------------------------------------------------------ names

HOSTILE = ["../../../x", "/abs/x", "index.json", "case.json", "a\0b", "Case", "cASE", ".", "..", "", "a\nb",
           "\u0661\x1b[31m", "nul", "a/b/../c"]  # fmt: skip


@pytest.mark.parametrize("hex_files", [True, False])
def test_names_of_every_kind_stay_inside_the_folder(tmp_path, cli, hex_files):
    names = dict(zip((*SITES, "v", "x")[: len(HOSTILE)], HOSTILE, strict=False))
    graph = renamed(small_graph(), {old: new for old, new in names.items() if old != "x"})
    folder = tmp_path / "a" / "b" / "c" / "v"
    export(graph, small_images(), folder, hex_files=hex_files)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a"]
    assert [p.name for p in folder.parent.iterdir()] == ["v"]
    assert {p.name for p in folder.iterdir()} >= {"index.json", "%2e.%2f..%2f..%2fx", "%2fabs%2fx", "%"} - {"%"}
    assert cli("golden", "check", folder)[0] == 0
    names = [p.name for p in folder.rglob("*")]
    assert all(name.isascii() and name.isprintable() and name == name.lower() for name in names)


def test_a_mismatch_at_a_hostile_name_is_one_printable_line(tmp_path, cli):
    graph = renamed(small_graph(), {"norm": "a\nb\x1b[31m\u0661"})
    export(graph, small_images(), tmp_path / "v", sites=["layernorm"])
    b = Bundle(tmp_path / "v")
    (case,) = b.root.glob("*/image0")
    b.edit(case / "case.json", lambda m: m["signals"].update(output="0" * 64))
    b.seal()
    status, out = refused(cli, b.root)
    assert (status, out.count("\n")) == (1, 3)


def test_a_name_too_long_for_a_folder_is_refused(tmp_path):
    from intvit.errors import IntvitError

    graph = renamed(small_graph(), {"norm": "x" * 300})
    with pytest.raises(IntvitError, match="must fit 200 characters"):
        export(graph, small_images(), tmp_path / "v")
    assert list(tmp_path.iterdir()) == []
