"""HDF5 files of others: nothing outside the file is read, nothing absurd is allocated; and failures to write one."""

import os
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest

from intvit.errors import IntvitError
from intvit.files import hdf5


def virtual(file, name):
    layout = h5py.VirtualLayout((10,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (10,))
    file.create_virtual_dataset(name, layout)


def linked(link):
    def make(file, name):
        file[name] = link

    return make


def stored(**options):
    return lambda file, name: file.create_dataset(name, **options)


CHAIN = "must not be a chain of links"
OUTSIDE = "must be stored in this file"
KIND = "must hold plain values of kind b/i/u/f"
WHOLE = "must be stored whole"
REFUSED = {
    "external link": (linked(h5py.ExternalLink("/etc/other.h5", "/x")), OUTSIDE),
    "soft link to an external link": (linked(h5py.SoftLink("/outside/x")), OUTSIDE),
    "external storage": (stored(shape=(100,), dtype="u1", external=[("/etc/passwd", 0, 100)]), OUTSIDE),
    "virtual dataset": (virtual, OUTSIDE),
    "soft link to itself": (linked(h5py.SoftLink("bad")), CHAIN),
    "soft link to nothing": (linked(h5py.SoftLink("/nothing/there")), "must be there"),
    "texts": (stored(data=["a", "b"]), KIND),
    "fixed text": (stored(data=np.bytes_("abc")), KIND),
    "lists": (stored(shape=(3,), dtype=h5py.vlen_dtype(np.int32)), KIND),
    "references": (stored(shape=(3,), dtype=h5py.ref_dtype), KIND),
    "compound": (stored(data=np.zeros(3, [("a", "i4")])), KIND),
    "complex": (stored(data=np.zeros(3, complex)), KIND),
    "enum": (stored(data=np.zeros(3, "i1"), dtype=h5py.enum_dtype({"A": 0, "B": 1}, "i1")), KIND),
    "opaque": (stored(data=np.zeros(3, "V5")), KIND),
    "arrays of arrays": (stored(shape=(3,), dtype=np.dtype(("i4", (2,)))), KIND),
    "nothing at all": (stored(data=h5py.Empty("f4")), "must be a dataset of numbers"),
    "a terabyte, deflated": (stored(shape=(10**12,), dtype="u1", chunks=(1000,), compression="gzip"), WHOLE),
    "a gigabyte, plain": (stored(shape=(10**9,), dtype="u1"), WHOLE),
    "one chunk of a gigabyte": (
        stored(shape=(1,), dtype="u1", maxshape=(None,), chunks=(2**30,), compression="gzip"),
        WHOLE,
    ),
    "another filter": (stored(data=np.arange(5000), compression="lzf"), "with filters"),
    "a type": (linked(np.dtype("i4")), "must be a group or a dataset"),
    "a group": (lambda file, name: file.create_group(name), "must be a dataset"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_stored_plainly_in_the_file_is_refused(tmp_path, case):
    make, rule = REFUSED[case]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["outside"] = h5py.ExternalLink("/etc/other.h5", "/")
        make(file, "bad")
    with hdf5.opened(tmp_path / "x.h5") as file, pytest.raises(IntvitError, match=rule) as caught:
        hdf5.array(file, "bad")
    assert str(caught.value).startswith(f"{tmp_path / 'x.h5'}: ")
    assert "\n" not in str(caught.value)


def test_what_is_stored_plainly_is_read(tmp_path):
    arrays = {
        "floats": np.linspace(0, 1, 7), "halves": np.ones(3, np.float16), "bytes": np.arange(5, dtype=np.uint8),
        "bools": np.array([True, False]), "scalar": np.array(3), "empty": np.zeros((0, 3)),
        "deflated": np.zeros((1000, 1000)),
    }  # fmt: skip
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, array in arrays.items():
            options = {"compression": "gzip", "shuffle": True, "fletcher32": True} if name == "deflated" else {}
            file.create_dataset(f"g/{name}", data=array, **options)
        file["g/soft"] = h5py.SoftLink("floats")
        file["soft"] = h5py.SoftLink("/g")
        file["hard"] = file["g/floats"]
    with hdf5.opened(tmp_path / "x.h5") as file:
        for name, array in arrays.items():
            found = hdf5.array(file, f"g/{name}")
            assert np.array_equal(found, array)
            assert found.dtype == array.dtype
        for name in ("soft/soft", "hard", "soft/floats"):
            assert np.array_equal(hdf5.array(file, name), arrays["floats"])
        for name in ("missing", "g/floats/x", "../g", "g\0/floats", ""):
            with pytest.raises(IntvitError, match="must be"):
                hdf5.array(file, name)
        assert hdf5.members(hdf5.group(file, "soft")) == sorted([*arrays, "soft"])


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (h5py.Empty("f4"), float), ([1, 2], int), ("text", int), (3, str), (1.5, int), ([["a"]], list),
        (np.zeros((2, 2)), list), (np.zeros(2, [("a", "i4")]), list), (None, str),
    ],
)  # fmt: skip
def test_attributes_of_another_type_are_refused(tmp_path, value, kind):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        if value is not None:
            file.attrs["a"] = value
        file.attrs["reference"] = file.ref
    with hdf5.opened(tmp_path / "x.h5") as file:
        for name in ("a", "reference"):
            with pytest.raises(IntvitError, match=rf"attribute {name}: must be"):
                hdf5.attribute(file, name, kind)


def test_attributes_are_read(tmp_path):
    values = {
        "s": ("text", str),
        "b": (np.bytes_("text"), str),
        "i": (3, int),
        "f": (0.5, float),
        "l": ([1.5, 2.0], list),
    }
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, (value, _) in values.items():
            file.attrs[name] = value
    with hdf5.opened(tmp_path / "x.h5") as file:
        found = {name: hdf5.attribute(file, name, kind) for name, (_, kind) in values.items()}
    assert found == {"s": "text", "b": "text", "i": 3, "f": 0.5, "l": [1.5, 2.0]}


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "fifo.h5")
    (tmp_path / "text.h5").write_text("x" * 5000)
    with h5py.File(tmp_path / "block.h5", "w", userblock_size=512):
        pass
    for name in ("fifo.h5", "missing.h5", "text.h5", "block.h5", "", "nul\0.h5"):
        with pytest.raises(IntvitError) as caught, hdf5.opened(tmp_path / name):
            pass
        assert "\n" not in str(caught.value)


def write_many(path, n_datasets, create=hdf5.create):
    with create(path, "k", 1) as (file, _):
        for i in range(n_datasets):
            file.create_dataset(f"group {i % 7}/{i}", data=np.arange(1000.0))


@pytest.mark.parametrize("n_datasets", [0, 1, 300])
def test_the_library_survives_a_full_disk(tmp_path, n_datasets):
    with pytest.raises(OSError, match="No space left"):
        write_many(Path("/dev/full"), n_datasets, hdf5.written)
    write_many(tmp_path / "x.h5", 20)
    with hdf5.read(tmp_path / "x.h5", "k", 1) as file:
        assert np.array_equal(hdf5.array(file, "group 0/7"), np.arange(1000.0))


def test_a_file_too_large_for_its_disk_leaves_the_old_one(tmp_path):
    (tmp_path / "x.h5").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(IntvitError, match=r"x\.h5: cannot be written: File too large"):
            write_many(tmp_path / "x.h5", 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.h5", "old")]


def test_equal_writes_give_equal_bytes(tmp_path):
    for name in ("a.h5", "b.h5"):
        with hdf5.create(tmp_path / name, "k", 1) as (file, _):
            for i in range(50):
                file.create_dataset(f"g/{i}", data=np.arange(100 * i), compression="gzip").attrs["site"] = "s"
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def collection(*entries, size=None):
    """A heap of `entries`, (index, length) and what follows them: of a text its content, padded to 8 bytes."""
    found = b""
    for index, length in entries:
        found += index.to_bytes(2, "little") + bytes(6) + length.to_bytes(8, "little")
        found += b"x" * (-(-length // 8) * 8 if index else max(length - 16, 0))
    size = 16 + len(found) if size is None else size
    return hdf5.HEAP + size.to_bytes(8, "little") + found


def walked_twice(before, after):
    """A heap of texts, one of which begins a second heap that ends with it: what is `after` it belongs to both."""
    whole = collection(*[(1, 0)] * before, (1, 16), *[(1, 0)] * after)
    at = 16 + 16 * before + 16
    return whole[:at] + hdf5.HEAP + (16 + 16 * after).to_bytes(8, "little") + whole[at + 16 :]


FREE = (0, 16)
HEAPS = {
    "none": (bytes(100), None),
    "a mark alone": (b"GCOL", None),
    "texts of every length": (bytes(48) + collection(*((1, n) for n in range(20)), FREE), None),
    "two": (bytes(8) + collection((1, 5), FREE) + bytes(24) + collection((2, 16), FREE) + bytes(40), None),
    "texts and no room": (collection((1, 8), (1, 9)), None),
    "much free": (collection((1, 8), (0, 400)) + b"y", None),
    "as many as a file can hold": (collection(*[(1, 0)] * 99), None),
    "fewer than 16 bytes left": (collection((1, 3)) + bytes(15), None),
    "15 bytes that are no entry": (collection((1, 3), size=16 + 24 + 15) + bytes(15), None),
    "empty": (collection(), None),
    "a size of 0": (collection((1, 8), size=0), 0),
    "a size of 15": (bytes(32) + collection(size=15) + bytes(32), 32),
    "a size one beyond the file": (collection((1, 8), size=41), 0),
    "behind a whole one": (collection((1, 8), FREE) + collection((1, 8), (0, 0)) + bytes(64), 56),
    "at once behind one": (collection() + collection((1, 1), size=2**40), 16),
    "the last 16 bytes": (collection((1, 8), (0, 0)), 0),
    "15 bytes free": (collection((1, 8), (0, 15)), 0),
    "free beyond the end": (collection((1, 8), (0, 17), size=56), 0),
    "two steps more than entries": (walked_twice(100, 2), None),
    "three steps more than entries": (walked_twice(100, 3), 16 + 1600 + 16),
    "a text beyond the end": (collection((1, 9), size=39) + bytes(9), 0),
}


@pytest.mark.parametrize("case", HEAPS)
def test_every_step_through_texts_lies_in_their_collection(tmp_path, case):
    data, at = HEAPS[case]
    found = heap_fault(tmp_path, data)
    assert found == ("" if at is None else f"the collection of texts at byte {at} is damaged")


def heap_fault(folder, data):
    (folder / "heaps").write_bytes(data)
    return hdf5._heap_fault(str(folder / "heaps"), 0, len(data), hash(data))


@pytest.mark.parametrize("field", ["size of the first text", "size of what is free", "size of the collection"])
def test_texts_through_which_the_library_would_walk_for_ever(tmp_path, field):
    """A size of 0 hangs it, and what stands beyond the end is read from elsewhere.

    Behind the tests of the walk itself, which would fail and not hang.
    """
    path = tmp_path / "f.h5"
    with hdf5.create(path, "kind", 1) as (file, _):
        file.attrs["a"] = "text"
    with hdf5.read(path, "kind", 1) as file:
        assert hdf5.attribute(file, "a", str) == "text"
    data = bytearray(path.read_bytes())
    heap = data.index(hdf5.HEAP)
    if field == "size of the collection":
        data[heap + 8 : heap + 16] = (1 << 40).to_bytes(8, "little")
    else:
        at = heap + 16
        while field == "size of what is free" and int.from_bytes(data[at : at + 2], "little"):
            at += 16 + -(-int.from_bytes(data[at + 8 : at + 16], "little") // 8) * 8
        data[at : at + 2] = bytes(2)
        data[at + 8 : at + 16] = bytes(8)
    path.write_bytes(data)
    with pytest.raises(IntvitError, match=f"must be a whole HDF5 file, not: the collection of texts at byte {heap}"):
        hdf5.read(path, "kind", 1).__enter__()
