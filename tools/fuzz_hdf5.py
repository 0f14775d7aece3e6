"""Changes of HDF5 files through h5py: objects, attributes, types, filters, links, storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
from fuzz_arrays import other_array
from fuzz_text import FLOATS, NUMBERS, STRINGS, mutate_json, number

from intvit.files.hdf5 import check_heaps

OUTSIDE = "../outside/secret.h5"
"""Seen from the folder of the inputs: an HDF5 file of images that no input file may lead to."""


def objects(file: h5py.File) -> list[str]:
    """Paths of all objects, parents first; links that lead nowhere are left out."""
    found: list[str] = []
    file.visit(found.append)
    return found


def mutate_hdf5(rng: Random, path: Path) -> str:
    """One change made through the library, in place. It would walk for ever in damaged texts, or crash on a stack."""
    name = rng.choice(sorted(_CHANGES))
    with h5py.File(path, "r+") as file:
        check_heaps(file)
        names = objects(file)
        place = rng.choice(names) if names else "/"
        return f"hdf5 {name} {place}: {_CHANGES[name](rng, file, place) or ''}"


def _delete(rng: Random, file: h5py.File, place: str) -> None:
    del file[place]


def _rename(rng: Random, file: h5py.File, place: str) -> str:
    goal = rng.choice([place + "x", place.upper(), rng.choice(STRINGS[1:40]), f"{place}/../y", "images", "a/b/c"])
    goal = goal.replace("\0", "") or "x"
    if goal in file:
        del file[goal]
    file.move(place, goal)
    return repr(goal[:40])


def _link(rng: Random, file: h5py.File, place: str) -> str:
    """The object becomes a link: to another, to itself, to nothing, to another file."""
    target = rng.choice(objects(file))
    kind = rng.choice(["soft", "hard", "loop", "nothing", "outside", "outside", "missing file", "itself", "parent"])
    parent = file[place].parent.name
    kept = file[target]
    del file[place]
    if kind == "soft":
        file[place] = h5py.SoftLink("/" + target)
    elif kind == "hard":
        file[place] = kept
    elif kind == "loop":
        file[place] = h5py.SoftLink("/" + place)
    elif kind == "nothing":
        file[place] = h5py.SoftLink("/not/there")
    elif kind == "parent":
        file[place] = file[parent]
    elif kind == "itself":
        file[place] = h5py.ExternalLink(Path(file.filename).name, "/" + target)
    else:
        name = OUTSIDE if kind == "outside" else "not_there.h5"
        file[place] = h5py.ExternalLink(name, rng.choice(["/images", "/" + place]))
    return kind


def _dataset(file: h5py.File, place: str, rng: Random) -> str:
    """A dataset of its own: `place` if it is one, else any. HDF5 crashes on reading a virtual one made of itself."""

    def real(name: str) -> bool:
        return isinstance(file[name], h5py.Dataset) and not file[name].is_virtual

    if real(place):
        return place
    found = [name for name in objects(file) if real(name)]
    return rng.choice(found) if found else file.create_dataset("x", data=[1]).name


def _replace(file: h5py.File, place: str, make: Callable[[], Any]) -> None:
    """Another dataset under the same name with the same attributes."""
    attrs = {key: file[place].attrs[key] for key in file[place].attrs}
    del file[place]
    make()
    for key, value in attrs.items():
        file[place].attrs[key] = value


def _values(rng: Random, file: h5py.File, place: str) -> str:
    """Other values, shape or type."""
    place = _dataset(file, place, rng)
    data = file[place]
    if data.dtype.kind in "OS" or data.size == 0 or data.size > 1_000_000:
        text, what = mutate_json(rng, data[()] if data.shape == () and isinstance(data[()], bytes) else b"{}")
        _replace(file, place, lambda: file.create_dataset(place, data=_text(text)))
        return f"{place} {what}"
    array = other_array(rng, np.asarray(data))
    if array.dtype.kind in "US":
        array = array.astype("S8") if array.dtype.kind == "U" and array.dtype.itemsize < 100 else np.zeros(2, "S3")
    compression = rng.choice([None, "gzip"]) if array.ndim and array.size else None
    _replace(file, place, lambda: file.create_dataset(place, data=array, compression=compression))
    return f"{place} {array.dtype} {array.shape}"


def _text(text: bytes) -> Any:
    """As this package writes it; without a zero byte, which ends it."""
    return np.bytes_(text.replace(b"\0", b" ") or b" ")


def _one_value(rng: Random, file: h5py.File, place: str) -> str:
    """One element by a little: damage that only a digest can tell."""
    place = _dataset(file, place, rng)
    data = file[place]
    if data.dtype.kind not in "iuf" or not data.size or data.size > 1_000_000:
        return _values(rng, file, place)
    index = tuple(rng.randrange(n) for n in data.shape)
    old = data[index]
    with np.errstate(all="ignore"):
        data[index] = np.bitwise_xor(old, data.dtype.type(1)) if data.dtype.kind in "iu" else old * 1.5 + 1
    return f"{place}{list(index)}"


def _layout(rng: Random, file: h5py.File, place: str) -> str:
    """A dataset of the same or a huge shape, stored otherwise: filters, external files, virtual, unallocated."""
    place = _dataset(file, place, rng)
    data = np.asarray(file[place]) if file[place].size and file[place].size < 1_000_000 else np.zeros(3, np.float32)
    shape, kind = data.shape, rng.choice(["external", "virtual", "virtual self", "huge", "huge", "lzf", "fletcher",
                                          "scale", "unknown filter",
                                          "compact", "resizable", "big chunk", "fill", "no chunk",
                                          "garbage chunk"])  # fmt: skip
    plain = data if data.dtype.kind in "iuf" and data.ndim else np.zeros((2, *shape), np.float32)
    here = Path(file.filename)

    def make() -> None:
        if kind == "external":
            file.create_dataset(
                place,
                shape or (1,),
                plain.dtype,
                external=[(rng.choice([OUTSIDE, "/proc/self/environ", "x.raw"]), 0, h5py.h5f.UNLIMITED)],
            )
        elif kind.startswith("virtual"):
            layout = h5py.VirtualLayout(plain.shape, plain.dtype)
            source = "." if kind == "virtual self" else rng.choice([OUTSIDE, here.name, "missing.h5"])
            layout[...] = h5py.VirtualSource(source, rng.choice(["images", place]), plain.shape)
            file.create_virtual_dataset(place, layout, fillvalue=0)
        elif kind == "huge":
            rest = plain.shape[1:]
            n = rng.choice([10**6, 10**9, 2**40, 5 * 10**8 // max(1, int(np.prod(rest)))])
            file.create_dataset(
                place,
                (n, *rest),
                plain.dtype,
                chunks=(1, *rest) if rest else (1000,),
                compression=rng.choice([None, "gzip"]),
            )
        elif kind == "lzf":
            file.create_dataset(place, data=plain, compression="lzf")
        elif kind == "fletcher":
            file.create_dataset(place, data=plain, fletcher32=True)
        elif kind == "scale":
            file.create_dataset(place, data=plain, scaleoffset=rng.choice([0, 2]))
        elif kind == "compact":
            creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            creation.set_layout(h5py.h5d.COMPACT)
            space = h5py.h5s.create_simple((4,))
            h5py.h5d.create(file.id, place.encode(), h5py.h5t.NATIVE_INT16, space, creation)
        elif kind == "resizable":
            file.create_dataset(place, data=plain, maxshape=(None,) * plain.ndim)
        elif kind == "big chunk":
            file.create_dataset(
                place,
                plain.shape,
                plain.dtype,
                chunks=tuple(max(1, n) for n in plain.shape),
                compression="gzip",
                shuffle=True,
            )
        elif kind == "fill":
            file.create_dataset(place, plain.shape, plain.dtype, fillvalue=rng.choice([0, 1, 7]), chunks=plain.shape)
        elif kind == "unknown filter":
            creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            creation.set_chunk(tuple(max(1, n) for n in plain.shape))
            creation.set_filter(1, h5py.h5z.FLAG_OPTIONAL)
            space = h5py.h5s.create_simple(plain.shape)
            h5py.h5d.create(file.id, place.encode(), h5py.h5t.py_create(plain.dtype), space, creation)
        else:
            file.create_dataset(
                place, plain.shape, plain.dtype, chunks=tuple(max(1, n) for n in plain.shape), compression="gzip"
            )
            if kind == "garbage chunk" and plain.size:
                mask = rng.choice([0, 1, 2, 0xFFFFFFFF])
                file[place].id.write_direct_chunk(
                    (0,) * plain.ndim, rng.randbytes(rng.choice([0, 3, 100, plain.nbytes])), mask
                )

    _replace(file, place, make)
    return f"{place} {kind}"


def _type(rng: Random, file: h5py.File, place: str) -> str:
    """A dataset of a type that NumPy has no or another word for."""
    place = _dataset(file, place, rng)
    kind = rng.choice(["vlen", "strings", "bytes", "enum", "compound", "reference", "opaque", "empty", "array", "bool",
                       "half", "long double", "named type",
                       "group", "null string", "time"])  # fmt: skip
    ref = file["/"].ref

    def make() -> None:
        if kind == "vlen":
            file.create_dataset(place, (2,), h5py.vlen_dtype(np.int32))
        elif kind == "strings":
            file.create_dataset(place, data=["a", "\u00e9", ""], dtype=h5py.string_dtype())
        elif kind == "bytes":
            file.create_dataset(place, data=np.array([b"abc", b"\xff"], "S3"))
        elif kind == "enum":
            file.create_dataset(place, (2, 3), h5py.enum_dtype({"a": 0, "b": 1}, "i1"))
        elif kind == "compound":
            file.create_dataset(place, (2, 3, 8, 8), np.dtype([("a", "<f4"), ("b", "<i8", (2,))]))
        elif kind == "reference":
            file.create_dataset(place, (2,), h5py.ref_dtype)[0] = ref
        elif kind == "opaque":
            file.create_dataset(place, data=np.void(b"\0abc"))
        elif kind == "empty":
            file.create_dataset(place, data=h5py.Empty(rng.choice(["f4", "S10"])))
        elif kind == "array":
            file.create_dataset(place, (2,), np.dtype(("<f4", (3, 8, 8))))
        elif kind == "bool":
            file.create_dataset(place, data=np.ones((2, 3), bool))
        elif kind == "half":
            file.create_dataset(place, data=np.ones((4, 3, 8, 8), np.float16))
        elif kind == "long double":
            file.create_dataset(place, data=np.ones((4, 3, 8, 8), np.longdouble))
        elif kind == "named type":
            file[place] = np.dtype("<f4")
        elif kind == "group":
            file.create_group(place)
        elif kind == "null string":
            file.create_dataset(place, data=b"a\x00b".ljust(5), dtype="S5")
        else:
            file.create_dataset(place, data=np.zeros(2, h5py.opaque_dtype(np.dtype("<M8[s]"))))

    attrs = dict(file[place].attrs)
    del file[place]
    make()
    if kind != "named type":
        for key, value in attrs.items():
            file[place].attrs[key] = value
    return f"{place} {kind}"


def _attribute(rng: Random, file: h5py.File, place: str) -> str:
    """An attribute of the file or of an object: gone, of another value or type, or one more."""
    with_attrs = [file, *(file[name] for name in objects(file) if len(file[name].attrs))]
    at = file if rng.random() < 0.5 else rng.choice(with_attrs)
    keys = list(at.attrs)
    key = rng.choice(keys) if keys and rng.random() < 0.95 else "extra"
    old = at.attrs.get(key)
    if key in at.attrs:
        del at.attrs[key]
    kind = rng.choice(
        [
            "gone",
            "number",
            "number",
            "text",
            "text",
            "array",
            "empty",
            "bytes",
            "floats",
            "reference",
            "json",
            "near",
            "near",
        ]
    )
    value: Any = None
    if kind == "number":
        value = rng.choice([n for n in NUMBERS if -(2**63) <= n < 2**64])
    elif kind == "text":
        value = rng.choice([s for s in STRINGS if "\0" not in s])
    elif kind == "array":
        value = (
            other_array(rng, np.asarray(old))
            if old is not None and np.asarray(old).dtype.kind in "iuf"
            else np.arange(6).reshape(2, 3)
        )
        value = value if value.dtype.kind in "iufb" and value.size < 5000 else np.zeros(2)
    elif kind == "empty":
        value = h5py.Empty(rng.choice(["f4", "S10"]))
    elif kind == "bytes":
        value = np.bytes_(rng.choice([b"\xff\xfe", b"intvit.graph", b"1", b"a\xe9"]))
    elif kind == "floats":
        value = [rng.choice(FLOATS) for _ in range(rng.choice([1, 3]))]
    elif kind == "reference":
        value = file["/"].ref
    elif kind == "json" and isinstance(old, str):
        value = mutate_json(rng, old.encode())[0].decode("utf-8", "replace").replace("\0", "")[:60_000]
    elif kind == "near" and old is not None:
        value = number(rng, old.item()) if isinstance(old, (np.integer, np.floating)) else old
        if isinstance(old, str):
            value = old[:-1] + rng.choice("0123456789abcdefA ")
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            value = 0
    if value is not None:
        at.attrs[key] = value
    return f"{at.name}.{key} {kind} {str(value)[:40]}"


def _extra(rng: Random, file: h5py.File, place: str) -> str:
    """Something that nobody asked for."""
    name = rng.choice(["extra", "activations/extra", "arrays/extra/x", "tensors/extra", "images2", place + "_"])
    if name not in file:
        file.create_dataset(name, data=np.arange(5, dtype=rng.choice(["f4", "i8", "u1"])))
    return name


def _deep(rng: Random, file: h5py.File, place: str) -> None:
    """Groups in groups, or a group that holds itself."""
    group = file.create_group("deep") if "deep" not in file else file["deep"]
    if rng.random() < 0.5:
        group["deep"] = group
    else:
        for _ in range(200):
            group = group.create_group("d")


def _text_dataset(rng: Random, file: h5py.File, place: str) -> str:
    """The JSON that a dataset holds."""
    names = [
        name
        for name in objects(file)
        if isinstance(file[name], h5py.Dataset)
        and file[name].dtype.kind in "OS"
        and file[name].shape == ()
        and not file[name].is_virtual
    ]
    if not names:
        return _attribute(rng, file, place)
    name = rng.choice(names)
    text, what = mutate_json(rng, bytes(file[name][()]))
    _replace(file, name, lambda: file.create_dataset(name, data=_text(text)))
    return what


_CHANGES: dict[str, Callable[[Random, h5py.File, str], str | None]] = {
    "attribute": _attribute,
    "attribute again": _attribute,
    "deep": _deep,
    "delete": _delete,
    "extra": _extra,
    "layout": _layout,
    "link": _link,
    "one value": _one_value,
    "rename": _rename,
    "text": _text_dataset,
    "text again": _text_dataset,
    "type": _type,
    "values": _values,
}
