"""Damaged image files, seeded: each is read whole, or refused in one line; nothing else, and in bounded memory."""

import io
import json
import os
import struct
import sys
import warnings
import zipfile
import zlib

import h5py
import numpy as np
import pytest
from PIL import Image

from intvit.errors import IntvitError
from intvit.floats.images import open_images

OPTIONS = {"size": (8, 8), "channels": 1, "mean": [0.5], "std": [0.25]}
HEADERS = (
    "{'descr': '%s', 'fortran_order': False, 'shape': %s, }",
    "{'descr': '%s', 'fortran_order': True, 'shape': %s}",
    "{'descr': [('a', '%s')], 'fortran_order': False, 'shape': %s}",
    "{'descr': '%s', 'shape': %s}",
    "{'descr': '%s', 'fortran_order': 2, 'shape': %s}",
    "{'descr': '%s', 'fortran_order': False, 'shape': %s" + "(" * 300,
    "[" * 400 + "'%s', %s",
    "__import__('os').abort()  # %s %s",
)
TYPES = (
    "|u1",
    "<f4",
    ">f4",
    "<f8",
    "<f2",
    "<i4",
    "|b1",
    "<c8",
    "|O",
    "<U3",
    "|S0",
    "<M8[s]",
    "|V5",
    "<f16",
    "()f4",
    "x",
)
SHAPES = (
    "(5, 1, 8, 8)", "(5,)", "()", "(0, 1, 8, 8)", "(-1, 1, 8, 8)", "(10**9, 1, 8, 8)", "(1000000000000, 1, 8, 8)",
    "(5, 1, 8, 8L)", "(True, 1, 8, 8)", "(2.5, 1, 8, 8)", "[5, 1, 8, 8]", "(5, 1, 1000000000, 1000000000)",
)  # fmt: skip


def pick(rng, items):
    return items[int(rng.integers(len(items)))]


def raw_images(rng):
    return rng.integers(0, 256, (5, 1, 8, 8)).astype(np.uint8)


def npy(rng):
    stream = io.BytesIO()
    array = raw_images(rng)
    np.save(stream, array if rng.random() < 0.5 else array.astype(pick(rng, ["<f4", ">f8", "<f2"])))
    return stream.getvalue()


def crafted_npy(rng):
    text = pick(rng, HEADERS) % (pick(rng, TYPES), pick(rng, SHAPES))
    head, version = text.encode() + b"\n", pick(rng, [1, 1, 2, 3, 9])
    size = struct.pack("<H" if version == 1 else "<I", pick(rng, [len(head), len(head), 60000, 0]))
    return b"\x93NUMPY" + bytes([version, 0]) + size + head + bytes(pick(rng, [320, 1280, 0, 7]))


def npz(rng):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", pick(rng, [0, 8, 8, 12, 14])) as file:
        for name in ("images.npy", pick(rng, ["labels.npy", "images.npy", "other.npy"])):
            content = npy(rng) if rng.random() < 0.7 else crafted_npy(rng)
            if name == "labels.npy":
                labels = io.BytesIO()
                np.save(labels, np.arange(pick(rng, [5, 5, 4])).astype(pick(rng, ["i8", "u1", "f4", "S2"])))
                content = labels.getvalue()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the duplicate name
                file.writestr(str(name), content)
    return stream.getvalue()


def hdf5(rng):
    stream = io.BytesIO()
    options = pick(
        rng, [{}, {"chunks": (2, 1, 8, 8)}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True}]
    )
    with h5py.File(stream, "w", libver=pick(rng, ["earliest", "v110"])) as file:
        if rng.random() < 0.8:
            file.create_dataset("images", data=raw_images(rng), **options)
        else:
            dtype = pick(rng, ["i4", "S3", "f8", "c8", h5py.string_dtype(), h5py.vlen_dtype(np.uint8), [("a", "f4")]])
            file.create_dataset("images", (pick(rng, [5, 1, 10**12]), 1, 8, 8), dtype, chunks=(1, 1, 8, 8))
        if rng.random() < 0.5:
            file["labels"] = np.arange(pick(rng, [5, 5, 4])).astype(pick(rng, ["i8", "u1", "f4"]))
        if rng.random() < 0.3:
            file.attrs["mean"] = pick(rng, [0.5, np.nan, "x", [[0.5]], [0.5, 0.5]])
    return stream.getvalue()


def picture(rng, suffix):
    mode = str(pick(rng, ["L", "RGB", "P", "LA", "RGBA", "1", "CMYK", "I;16", "F", "I"]))
    pixels = rng.integers(0, 256, (int(rng.integers(1, 40)), int(rng.integers(1, 40)), 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    image = image.convert(mode) if mode != "I;16" else Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    stream = io.BytesIO()
    options = {"save_all": True, "append_images": [image]} if suffix in ("gif", "tiff", "webp") else {}
    if suffix == "tiff" and rng.random() < 0.5:
        options["compression"] = str(pick(rng, ["tiff_lzw", "tiff_adobe_deflate", "packbits"]))
    try:
        image.save(stream, {"jpg": "JPEG", "pgm": "PPM"}.get(suffix, suffix.upper()), **options)
    except (OSError, ValueError):  # not every format has every mode
        return picture(rng, suffix)
    content = stream.getvalue()
    if suffix == "png" and rng.random() < 0.3:  # another size, with a checksum that fits
        size = struct.pack(">II", *(pick(rng, [0, 1, 8, 60000, 2**20, 2**31 - 1]) for _ in "wh"))
        head = content[12:16] + size + content[24:29]
        content = content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:]
    return content


def damage(rng, content):
    """Bits flipped, bytes set, cut, doubled, put in or taken out, numbers made large; some files stay as they are."""
    data = bytearray(content)
    for _ in range(pick(rng, [0, 1, 1, 2, 8, 40])):
        if not data:
            break
        at, kind = int(rng.integers(len(data))), int(rng.integers(7))
        if rng.random() < 0.5:
            at = int(rng.integers(min(len(data), 600)))  # where headers are
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = pick(rng, [0, 1, 127, 128, 255])
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = data[at : at + int(rng.integers(64))]
        elif kind == 4:
            del data[at : at + int(rng.integers(16))]
        elif kind == 5:
            data[at : at + 8] = struct.pack("<Q", pick(rng, [0, 2**31, 2**32 - 1, 2**63 - 1]))
        else:
            data += rng.bytes(int(rng.integers(64)))
    return bytes(data)


SUFFIXES = ("npy", "npy", "npz", "npz", "h5", "h5", "png", "jpg", "gif", "bmp", "tiff", "webp", "ppm", "pgm")


def one(folder, seed):
    """What becomes of one damaged source: None, or what is wrong with how it was treated."""
    rng = np.random.default_rng(seed)
    suffix = pick(rng, SUFFIXES)
    makers = {"npy": npy if rng.random() < 0.5 else crafted_npy, "npz": npz, "h5": hdf5}
    content = damage(rng, makers[suffix](rng) if suffix in makers else picture(rng, suffix))
    lies = pick(rng, SUFFIXES) if rng.random() < 0.05 else suffix
    source = folder / f"{seed}.{lies}"
    if lies not in makers:
        (folder / f"{seed}").mkdir()
        source = folder / f"{seed}" / f"x.{lies}"
    source.write_bytes(content)
    try:
        images = open_images(str(source if lies in makers else source.parent), **OPTIONS)
        if len(images) < 10**6:
            images.sha256()
        found = images.read(0, 1)
        assert found.dtype == np.float32
        assert found.shape == (1, 1, 8, 8)
        assert np.isfinite(found).all()
    except IntvitError as error:
        if len(str(error).splitlines()) != 1 or len(str(error)) > 1000:
            return f"{seed} {suffix}: not one line: {error}"
    except Exception as error:
        return f"{seed} {suffix}: {type(error).__name__}: {error}"
    finally:
        source.unlink()
    return None


@pytest.mark.parametrize("part", range(4))
def test_damaged_images_are_read_or_refused(tmp_path, part):
    findings = [found for seed in range(100 * part, 100 * part + 100) if (found := one(tmp_path, seed))]
    assert findings == []


if __name__ == "__main__":  # the campaign: python tests/test_damaged_images.py FOLDER FIRST LAST
    import resource
    import time
    from pathlib import Path

    warnings.simplefilter("error")
    for number in range(int(sys.argv[2]), int(sys.argv[3])):
        start, most = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"seed": number}), file=sys.stderr)
        if wrong := one(Path(sys.argv[1]), number):
            print(wrong)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most
        if time.monotonic() - start > 5 or grown > 2**19:
            print(f"{number}: {time.monotonic() - start:.1f} s, {grown} KiB more")
    print(f"{os.getpid()}: seeds {sys.argv[2]}..{sys.argv[3]} done, {most} KiB")
