"""Traces and graph files: what they say is bound to what they hold; names of any kind are keys."""

import dataclasses

import h5py
import numpy as np
import pytest

from intvit.engine import Engine, quantize_images, trace
from intvit.engine.trace import in_flight, read_tensor
from intvit.errors import IntvitError
from intvit.files import safe_key
from intvit.graph.store import load, save

NAMES = ["blocks.0.norm1", "blocks.0.norm1.quant", "blocks.0.attn.softmax", "head"]


@pytest.fixture(scope="module")
def tensors(vit, mixed):
    return Engine(mixed).evaluate(quantize_images(mixed, vit.test.read(0, 2)), list(mixed.tensors))


def write(path, graph, tensors, names):
    with trace.writer(path, graph, names, 2) as sink:
        for i in (0, 1):
            sink(i, {name: tensors[name][i : i + 1] for name in names})


@pytest.fixture(scope="module")
def whole(mixed, tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "t.h5"
    write(path, mixed, tensors, NAMES)
    return path.read_bytes()


def move(file, a, b):
    file.move(f"tensors/{a}", f"tensors/{b}")


def swap(file):
    move(file, "blocks.0.norm1", "x")
    move(file, "blocks.0.norm1.quant", "blocks.0.norm1")
    move(file, "x", "blocks.0.norm1.quant")


def change_value(file):
    file["tensors/blocks.0.norm1"][1, 0, 0] += 1


def attribute(name, value, node="tensors/blocks.0.norm1"):
    return lambda file: file[node].attrs.__setitem__(name, value)


def replaced(**options):
    def change(file):
        attributes = dict(file["tensors/blocks.0.norm1"].attrs)
        del file["tensors/blocks.0.norm1"]
        file.create_dataset("tensors/blocks.0.norm1", **options).attrs.update(attributes)

    return change


def linked(file):
    del file["tensors/blocks.0.norm1"]
    file["tensors/blocks.0.norm1"] = h5py.ExternalLink("other.h5", "/x")


CHANGES = {
    "value": change_value, "swapped": swap, "no scale": lambda file: file["tensors/blocks.0.norm1"].attrs.clear(),
    "scale": attribute("scale", 123.0), "site": attribute("site", "norm"), "op": attribute("op", "gelu"),
    "dtype": attribute("dtype", "s9"), "encoding": attribute("encoding", "log2"),
    "sha256": attribute("sha256", "0" * 64), "type of sha256": attribute("sha256", 1),
    "digest": attribute("digest", "0" * 64),
    "graph": attribute("graph_hash", "0" * 64, "/"), "version": attribute("version", 1, "/"),
    "kind": attribute("format", "intvit.recording", "/"), "type of kind": attribute("format", 3, "/"), "link": linked,
    "floats": replaced(data=np.zeros((2, 50, 192))), "texts": replaced(data=["a", "b"]),
    "external storage": replaced(shape=(2, 50, 192), dtype="i4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]),
    "terabyte": replaced(shape=(10**12,), dtype="i4", chunks=(1000,)),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_trace_that_was_changed_is_refused(whole, tmp_path, change):
    path = tmp_path / "t.h5"
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        CHANGES[change](file)
    with pytest.raises(IntvitError, match=r"t\.h5: ") as caught:
        read_tensor(path, "blocks.0.norm1")
    assert "\n" not in str(caught.value)


def test_an_unchanged_trace_is_read(whole, tensors, tmp_path):
    path = tmp_path / "t.h5"
    path.write_bytes(whole)
    for name in NAMES:
        assert np.array_equal(read_tensor(path, name), tensors[name])
    for name in ("missing", "..", "", "blocks.0.norm1/x", "A" * 1000):
        with pytest.raises(IntvitError, match="no tensor"):
            read_tensor(path, name)


ODD = [
    "/a/b",
    "../../x",
    ".",
    "..",
    "A",
    "a",
    "nul\0",
    "index.json",
    "%2e",
    " ",
    "x" * 300,
    "\u00e4\u4e2d",
    "a/",
    "a//b",
]


def renamed(graph):
    """The same graph with odd names for the first tensors and nodes."""
    new = dict(zip([node.output for node in graph.nodes], ODD, strict=False))
    site = dict(zip([node.name for node in graph.nodes], ODD, strict=False))

    def change(node):
        inputs = tuple(new.get(name, name) for name in node.inputs)
        output = new.get(node.output, node.output)
        return dataclasses.replace(node, name=site.get(node.name, node.name), inputs=inputs, output=output)

    tensors = {new.get(name, name): tensor for name, tensor in graph.tensors.items()}
    tensors = {name: dataclasses.replace(tensor, name=name) for name, tensor in tensors.items()}
    return dataclasses.replace(graph, nodes=tuple(map(change, graph.nodes)), tensors=tensors), new


def test_names_of_any_kind_are_kept_in_traces_and_graphs(mixed, tensors, tmp_path):
    graph, new = renamed(mixed)
    odd = {new.get(name, name): tensor for name, tensor in tensors.items()}
    write(tmp_path / "t.h5", graph, odd, ODD)
    for name in ODD:
        assert np.array_equal(read_tensor(tmp_path / "t.h5", name), odd[name]), name
    save(graph, tmp_path / "g.h5")
    assert load(tmp_path / "g.h5").content_hash == graph.content_hash
    with h5py.File(tmp_path / "g.h5") as file:
        assert set(file["arrays"]) == {safe_key(node.name) for node in graph.nodes if node.arrays}


def test_graphs_of_version_1_are_read(mixed, tmp_path):
    save(mixed, tmp_path / "g.h5")
    with h5py.File(tmp_path / "g.h5", "a") as file:
        file.attrs["version"] = 1
    assert load(tmp_path / "g.h5").content_hash == mixed.content_hash
    with h5py.File(tmp_path / "g.h5", "a") as file:
        file.attrs["version"] = 5
    with pytest.raises(IntvitError, match="version 4"):
        load(tmp_path / "g.h5")


@pytest.mark.parametrize("storage", ["link", "external"])
def test_a_graph_that_is_not_in_its_file_is_refused(mixed_path, tmp_path, cli, storage):
    path, key = tmp_path / "g.h5", "arrays/blocks.0.attn.qkv/weight"
    path.write_bytes(mixed_path.read_bytes())
    with h5py.File(path, "a") as file:
        data = file[key][()]
        del file[key]
        (tmp_path / "raw").write_bytes(data.tobytes())
        with h5py.File(tmp_path / "other.h5", "w") as other:
            other["x"] = data
        if storage == "link":
            file[key] = h5py.ExternalLink("other.h5", "/x")
        else:
            file.create_dataset(key, data.shape, data.dtype, external=[(str(tmp_path / "raw"), 0, data.nbytes)])
    status, _, err = cli("run", path, "fashion-mnist:test", "-o", tmp_path / "l.npz", "--limit", "1")
    assert (status, err.count("\n")) == (2, 1), err
    assert "must be stored in this file" in err


def test_images_in_flight_are_bounded_by_bytes(mixed, tensors, monkeypatch):
    image_bytes = sum(tensor[:1].nbytes for tensor in tensors.values())
    for n_images, expected in ((1, (1, 1)), (2, (1, 1)), (9, (3, 3)), (300, (8, 4))):
        monkeypatch.setattr("intvit.files.memory.ACTIVATION_BYTES", n_images * image_bytes)
        assert in_flight(mixed, 8, 4) == expected
