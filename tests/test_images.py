"""Image sources: every kind is read, normalised the same way, and refused in one line when it is not what it says."""

import os
import socket
import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from intvit.analysis.outputs import outcomes
from intvit.engine.batches import batch_of
from intvit.errors import IntvitError
from intvit.floats.images import open_images

RNG = np.random.default_rng(0)
RAW = RNG.integers(0, 256, (5, 1, 8, 8)).astype(np.uint8)
EXPECTED = ((RAW.astype(np.float32) / np.float32(255)) - np.float32(0.5)) / np.float32(0.25)
OPTIONS = {"size": (8, 8), "channels": 1}


def write(folder, kind):
    if kind == "h5":
        with h5py.File(folder / "i.h5", "w") as file:
            file["images"], file["labels"] = RAW, np.arange(5)
            file.attrs["mean"], file.attrs["std"] = [0.5], [0.25]
        return str(folder / "i.h5")
    if kind == "h5:group":
        with h5py.File(folder / "i.h5", "w") as file:
            file["a/images"] = RAW
        return f"{folder / 'i.h5'}:a"
    if kind == "npy":
        np.save(folder / "i.npy", RAW)
        return str(folder / "i.npy")
    if kind == "npz":
        np.savez(folder / "i.npz", images=RAW, labels=np.arange(5))
        return str(folder / "i.npz")
    for i, image in enumerate(RAW):
        (folder / "f" / f"class{i}").mkdir(parents=True)
        Image.fromarray(image[0]).save(folder / "f" / f"class{i}" / "x.png")
    return str(folder / "f")


@pytest.mark.parametrize("kind", ["h5", "h5:group", "npy", "npz", "folder"])
def test_every_kind_gives_the_same_images(tmp_path, kind):
    source = open_images(write(tmp_path, kind), mean=[0.5], std=[0.25], **OPTIONS)
    assert len(source) == 5
    assert np.array_equal(source.read(0, 5), EXPECTED)
    assert np.array_equal(source.read(3, 5), EXPECTED[3:])
    if kind in ("h5", "npz", "folder"):
        assert source.labels.tolist() == [0, 1, 2, 3, 4]


def test_attributes_of_the_file_are_the_default(tmp_path):
    assert np.array_equal(open_images(write(tmp_path, "h5"), **OPTIONS).read(0, 5), EXPECTED)


def test_folder_resizes_and_crops(tmp_path):
    Image.fromarray(np.full((40, 20, 3), 100, np.uint8)).save(tmp_path / "a.png")
    source = open_images(str(tmp_path), size=(8, 8), channels=3, resize=10)
    assert source.read(0, 1).shape == (1, 3, 8, 8)
    assert source.labels is None


def test_hash_depends_on_pixels_and_normalisation(tmp_path):
    path = write(tmp_path, "npy")
    a = open_images(path, **OPTIONS).sha256()
    assert a == open_images(path, **OPTIONS).sha256()
    assert a != open_images(path, mean=[0.1], **OPTIONS).sha256()
    assert a != open_images(path, **OPTIONS).sha256(4)


def test_embedded_images():
    test = open_images("fashion-mnist:test", size=(28, 28), channels=1)
    calibration = open_images("fashion-mnist:calibration", size=(28, 28), channels=1)
    assert (len(test), len(calibration)) == (1000, 512)
    assert sorted(set(test.labels.tolist())) == list(range(10))
    assert abs(float(test.read(0, 1000).mean())) < 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: "nothere.h5", "no such file"),
        (lambda p: "", "must be .h5, .npy, .npz, a folder"),
        (lambda p: "what.tar", "must be .h5, .npy, .npz, a folder"),
        (lambda p: str(p), "must hold image files"),
        (lambda p: write(p, "h5") + ":b", "group must be one of"),
    ],
)
def test_what_is_not_there(tmp_path, make, message):
    with pytest.raises(IntvitError, match=message):
        open_images(make(tmp_path), **OPTIONS)


def test_truncated_hdf5(tmp_path):
    path = Path(write(tmp_path, "h5"))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(IntvitError, match="whole HDF5"):
        open_images(str(path), **OPTIONS)


def test_a_file_that_is_no_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(IntvitError, match="readable image"):
        open_images(str(tmp_path), **OPTIONS)


@pytest.mark.parametrize(("mean", "std"), [([0.1, 0.2], [1.0]), ([0.1], [0.0]), ([float("nan")], [1.0])])
def test_bad_normalisation(tmp_path, mean, std):
    with pytest.raises(IntvitError, match=r"mean|std"):
        open_images(write(tmp_path, "npy"), mean=mean, std=std, **OPTIONS)


def refused(source, *parts, **options):
    """One line with every part."""
    with pytest.raises(IntvitError) as caught:
        open_images(str(source), **{**OPTIONS, **options}).sha256()
    assert len(str(caught.value).splitlines()) == 1
    for part in parts:
        assert part in str(caught.value)


# ------------------------------------------------------------------------------------------------- image files


def png(width, height, rows=b""):
    """A PNG of one channel by its bytes, without whoever would hold its pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "size", "parts"),
    [
        (60000, 1, 224, ["a.png", "resized image must have at most", "13440000 x 224"]),
        (1, 60000, 224, ["a.png", "224 x 13440000"]),
        (12000, 12000, 8, ["a.png", "image must have at most", "12000 x 12000"]),
        (60000, 60000, 8, ["a.png", "limit"]),
        (2**31 - 1, 2**31 - 1, 8, ["a.png"]),
    ],
)
def test_images_of_too_many_pixels(tmp_path, width, height, size, parts):
    (tmp_path / "a.png").write_bytes(png(width, height, bytes((width + 1) * height) if width * height < 10**6 else b""))
    refused(tmp_path, *parts, size=(size, size))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("width", "height", "resize"), [(8, 8, None), (9, 8, None), (40, 23, None), (5, 7, None), (40, 23, 10), (3, 300, 9)]
)
def test_the_crop_of_the_resized_image(tmp_path, width, height, resize, channels):
    pixels = RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image, shorter = Image.fromarray(pixels), resize or 8
    scale = shorter / min(width, height)
    image = image.convert("L" if channels == 1 else "RGB")
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 8) // 2, (image.height - 8) // 2
    expected = np.asarray(image.crop((left, top, left + 8, top + 8))).reshape(8, 8, channels).transpose(2, 0, 1)
    found = open_images(str(tmp_path), size=(8, 8), channels=channels, resize=resize)
    assert np.array_equal(found.raw(0, 1)[0], expected)


def test_a_resize_that_does_not_cover_the_crop(tmp_path):
    Image.fromarray(np.zeros((40, 20), np.uint8)).save(tmp_path / "a.png")
    refused(tmp_path, "a.png", "cover the crop 8 x 8", "5 x 10", resize=5)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_8_bits_are_not_clipped(tmp_path, mode):
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    Image.fromarray(np.full((8, 8), 300, dtype)).save(tmp_path / "a.tiff")
    refused(tmp_path, "a.tiff", "8 bits per channel", mode)


def test_pillows_warnings_are_not_passed_on(tmp_path):
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8)).quantize(4)
    image.save(tmp_path / "a.png", transparency=b"\x00\x80\xff\xff")
    assert not open_images(str(tmp_path), **OPTIONS).raw(0, 1).any()


def test_first_frame_as_it_is_stored(tmp_path):
    first, second = (Image.fromarray(np.full((8, 8), v, np.uint8)) for v in (10, 200))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    turned = Image.fromarray(np.repeat(np.arange(0, 160, 20, dtype=np.uint8)[:, None], 8, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "b.png", exif=exif)
    found = open_images(str(tmp_path), **OPTIONS).raw(0, 2)
    assert np.array_equal(found[0, 0], np.full((8, 8), 10))
    assert np.array_equal(found[1, 0], np.asarray(turned))


def test_content_counts_and_not_the_suffix(tmp_path):
    image = Image.fromarray(RAW[0, 0])
    image.save(tmp_path / "a.JPG", "PNG")
    assert np.array_equal(open_images(str(tmp_path), **OPTIONS).raw(0, 1), RAW[:1])
    image.convert("RGB").save(tmp_path / "b.png", "PCX")
    refused(tmp_path, "b.png", "readable image file")


def device(path):
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
    except (AttributeError, PermissionError):
        pytest.skip("devices cannot be made here")


def listening(path):
    socket.socket(socket.AF_UNIX).bind(str(path))


@pytest.mark.filterwarnings("ignore:unclosed")
@pytest.mark.parametrize(
    "make", [os.mkfifo, listening, device, lambda p: p.write_bytes(b""), lambda p: p.symlink_to("x")]
)
def test_what_is_no_file_with_content(tmp_path, monkeypatch, make):
    (tmp_path / "f").mkdir()
    monkeypatch.chdir(tmp_path / "f")  # names of sockets are short
    make(Path("a.png"))
    refused(tmp_path / "f", "a.png")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.h5"])
def test_a_fifo_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    refused(tmp_path / name, name, "regular file")


@pytest.mark.parametrize("link", ["f/a.png", "f/class", "f/g/h"])
def test_links_in_a_folder(tmp_path, link):
    (tmp_path / "f" / "g").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    for path in ("f/g/b.png", "out/c.png"):
        Image.fromarray(RAW[0, 0]).save(tmp_path / path)
    (tmp_path / link).symlink_to(tmp_path / ("out/c.png" if link.endswith(".png") else "out"))
    refused(tmp_path / "f", str(tmp_path / link), "without links out of it")


def test_order_is_that_of_code_points_and_hidden_files_are_left_out(tmp_path):
    names = ["B.PNG", "a-/z.png", "a/x.png", "a.png", "b/é.png", "b/z.png", "d.png/e.png", "é.png"]
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / name, "PNG")
    for hidden in (".b.png", ".h/a.png", "a/.c.png"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"no image")
    (tmp_path / "a" / "readme.txt").write_text("")
    found = open_images(str(tmp_path), **OPTIONS).raw(0, 99)[:, 0, 0, 0].tolist()
    assert [names[i] for i in found] == sorted(names, key=lambda name: name.split("/"))


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    Image.fromarray(RAW[0, 0]).save(tmp_path / "b.png")
    scandir = os.scandir

    def fail(path):
        if str(path).endswith("a"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    refused(tmp_path, str(tmp_path), "Permission denied")


# ------------------------------------------------------------------------------------------------- NumPy files


def header(shape, descr="|u1", fortran=False, version=1, size=None):
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text) if size is None else size)
    return b"\x93NUMPY" + bytes([version, 0]) + length + text


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (header((10**12, 1, 8, 8)), "must be whole, 64000000000000 bytes"),
        (header((-5, 1, 8, 8)) + bytes(320), "shape (-5, 1, 8, 8)"),
        (header((2**70, 1, 8, 8)), "must be whole"),
        (header((5, 1, 8, 8)) + bytes(319), "320 bytes for uint8 of shape (5, 1, 8, 8), not 319"),
        (header((5, 1, 8, 8)) + bytes(321), "not 321"),
        (header((5, 1, 8, 8), version=2, size=2**32 - 1) + bytes(320), "reading array header"),
        (header((0, 1, 8, 8)), "at least one image"),
        (header((5, 1, 8, 8), "|O") + bytes(2560), "object"),
        (header((5, 1, 8, 8), "|b1") + bytes(320), "uint8 or float, not bool"),
        (header((5, 1, 8, 8), "<c8") + bytes(2560), "not complex64"),
        (header((5, 1, 8, 8), "<i2") + bytes(640), "not int16"),
        (header((5, 1, 8, 8), "|i1") + bytes(320), "not int8"),
        (header((5, 1, 8, 8), [("a", "|u1")]) + bytes(320), "uint8 or float"),
        (b"", "magic string"),
        (b"PK\x03\x04" + bytes(500), "magic string"),
        (b"\x80\x04N.", "magic string"),
    ],
)
def test_npy_that_is_not_what_it_says(tmp_path, content, part):
    (tmp_path / "a.npy").write_bytes(content)
    refused(tmp_path / "a.npy", "a.npy", part)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("images.npy", content)
    refused(tmp_path / "a.npz", "a.npz")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", ">f4", "<f8", "f2"])
def test_every_order_of_numbers(tmp_path, dtype, order):
    images = np.asarray(RAW, dtype, order=order)
    np.save(tmp_path / "a.npy", images)
    np.savez_compressed(tmp_path / "a.npz", images)
    expected = RAW.astype(np.float32) / np.float32(255 if dtype == "u1" else 1)
    for name in ("a.npy", "a.npz"):
        assert np.array_equal(open_images(str(tmp_path / name), **OPTIONS).read(1, 4), expected[1:4]), name


def test_a_zip_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr("intvit.floats.images.NPZ_BYTES", 2**20)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images.npy", header((2**14, 1, 8, 8), "<f8") + bytes(2**23))
    assert (tmp_path / "a.npz").stat().st_size < 2**14
    refused(tmp_path / "a.npz", "must hold at most 1048576 bytes, not 8388608")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "method", "part"),
    [
        (["images.npy", "images.npy"], 0, "name each array once"),
        (["images.npy", "images"], 0, "name each array once"),
        (["a.npy", "b.npy"], 0, "must hold an array `images`, not a, b"),
        ([], 0, "must hold an array `images`"),
        (["images.npy"], zipfile.ZIP_LZMA, "stored or deflated"),
        (["images.npy"], zipfile.ZIP_BZIP2, "stored or deflated"),
    ],
)
def test_npz_of_other_makers(tmp_path, names, method, part):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as file:
        for name in names:
            file.writestr(name, header((5, 1, 8, 8)) + RAW.tobytes())
    refused(tmp_path / "a.npz", part)


def test_a_changed_byte_in_a_zip(tmp_path):
    np.savez(tmp_path / "a.npz", images=RAW)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(RAW.tobytes()) + 300] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    refused(tmp_path / "a.npz", "CRC")


@pytest.mark.parametrize(
    "labels", [np.arange(4), np.arange(5.0), np.arange(5)[:, None], np.array(["a"] * 5), np.array(5), np.arange(5) > 2]
)
@pytest.mark.parametrize("name", ["a.npz", "a.h5"])
def test_labels_that_are_none(tmp_path, labels, name):
    if name == "a.npz":
        np.savez(tmp_path / name, images=RAW, labels=labels)
    else:
        with h5py.File(tmp_path / name, "w") as file:
            file["images"], file["labels"] = RAW, labels.astype("S1") if labels.dtype.kind == "U" else labels
    refused(tmp_path / name, "labels", "must")


# ------------------------------------------------------------------------------------------------- HDF5


def test_hdf5_that_leads_out_of_its_file(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(RAW.tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = RAW
    virtual = h5py.VirtualLayout(RAW.shape, np.uint8)
    virtual[:] = h5py.VirtualSource(tmp_path / "other.h5", "images", RAW.shape)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["link/images"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "images")
        file.create_dataset("stored/images", RAW.shape, np.uint8, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        file.create_virtual_dataset("virtual/images", virtual)
        file["labels/images"] = RAW
        file["labels/labels"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "images")
        file["group"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
        file["soft"] = h5py.SoftLink("/group")
    for group in ("link", "stored", "virtual", "labels", "group", "soft", "link/images"):
        refused(f"{tmp_path / 'a.h5'}:{group}", str(tmp_path / "a.h5"))


@pytest.mark.parametrize(
    ("shape", "dtype", "chunks", "part"),
    [
        ((10**12, 1, 8, 8), "u1", (1, 1, 8, 8), "cannot hold"),
        ((10**12, 1, 8, 8), "f8", None, "cannot hold"),
        ((5, 1, 8, 8), "u1", (1, 1, 8, 8), "stored whole"),
        ((10**12, 1, 8, 8), "u1", (2**25, 1, 8, 8), "must"),
        ((5, 1, 8, 8), "i4", None, "kind u/f"),
        ((5, 1, 8, 8), h5py.string_dtype(), None, "kind u/f"),
        ((5, 1, 8, 8), h5py.vlen_dtype(np.uint8), None, "kind u/f"),
        ((5, 1, 8, 8), h5py.ref_dtype, None, "kind u/f"),
        ((5, 1, 8, 8), np.dtype([("a", "f4")]), None, "kind u/f"),
        ((5, 1, 8, 8), np.dtype(("f4", (2,))), None, "must"),
        ((5, 1, 8, 8), "c8", None, "kind u/f"),
        ((5, 1, 8, 8), "u2", None, "uint8 or float, not uint16"),
        ((5, 8), "u1", None, "(N, C, H, W)"),
        ((), "u1", None, "(N, C, H, W)"),
        ((0, 1, 8, 8), "u1", None, "at least one image"),
        ((5, 0, 8, 8), "u1", None, "image size must be (1, 8, 8)"),
    ],
)
def test_hdf5_of_other_types_and_sizes(tmp_path, shape, dtype, chunks, part):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", shape, dtype, chunks=chunks)
    refused(tmp_path / "a.h5", "a.h5", part)


def test_a_group_or_dataset_by_its_name(tmp_path):
    names = ["a b", "é", "x:y", "deep/er", ".h5", "images"]
    with h5py.File(tmp_path / "a.H5", "w") as file:
        for i, name in enumerate(names):
            file[f"{name}/images"] = RAW + np.uint8(i)
    for i, name in enumerate(names):
        for group in (name, f"/{name}/", f"{name}/images"):
            found = open_images(f"{tmp_path / 'a.H5'}:{group}", **OPTIONS)
            assert np.array_equal(found.raw(0, 5), RAW + np.uint8(i)), group
    for group in ("..", "../a", "a b/..", "deep", "nothing"):
        refused(f"{tmp_path / 'a.H5'}:{group}", "a.H5")


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
def test_compressed_hdf5_is_read(tmp_path, compression):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=RAW, compression=compression, shuffle=compression is not None)
    assert np.array_equal(open_images(str(tmp_path / "a.h5"), **OPTIONS).raw(0, 5), RAW)


# ------------------------------------------------------------------------------------------------- reading in parts


def test_memory_holds_a_part(tmp_path):
    """The hash reads no more at once than a bound in bytes, whatever an image takes."""
    with (tmp_path / "a.npy").open("wb") as stream:
        stream.write(header((12, 3, 2048, 2048)))
        stream.truncate(stream.tell() + 12 * 3 * 2048 * 2048)
    source = open_images(str(tmp_path / "a.npy"), size=(2048, 2048), channels=3)
    asked = []
    source.__dict__["raw"] = lambda start, stop: asked.append(stop - start) or np.zeros((1, 3, 2048, 2048), np.uint8)
    source.sha256()
    assert asked == [1] * 12


def test_numbers_that_float32_does_not_hold(tmp_path):
    np.save(tmp_path / "a.npy", np.full((2, 1, 8, 8), 1e300))
    refused(tmp_path / "a.npy", "image 0 must be finite")


def test_tokens_are_fed_as_they_are(tmp_path):
    """Of a network that was cut out of one for images of three channels, which the metadata still speak of."""
    tokens = RNG.normal(size=(3, 5, 6)).astype(np.float32)
    np.save(tmp_path / "a.npy", tokens)
    metadata = {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}
    assert np.array_equal(
        open_images(str(tmp_path / "a.npy"), size=(6,), channels=5, metadata=metadata).read(0, 3), tokens
    )


def test_a_limit_above_what_there_is(tmp_path):
    source = open_images(write(tmp_path, "npy"), **OPTIONS)
    assert source.sha256(10**9) == source.sha256()


def test_accuracy_needs_classes(vit, mixed):
    images = np.zeros((2, 1, 28, 28), np.uint8)
    for labels in ([0, 10], [-1, 0]):
        source = open_images("fashion-mnist:test", size=(28, 28), channels=1)
        source.__dict__.update(n_images=2, raw=lambda a, b: images[a:b], labels=np.array(labels))
        with pytest.raises(IntvitError, match=r"labels must lie in 0\.\.9, not"):
            outcomes(mixed, source)


def test_a_batch_is_bounded_by_bytes(mixed):
    assert batch_of(mixed, 8) == 8
    assert 8 < batch_of(mixed, 10**9) < 10**5


def test_a_name_of_two_lines_is_said_in_one(cli, mixed_path, tmp_path):
    status, _, err = cli("run", mixed_path, tmp_path / "a\nb\x1b[31m.npy", "-o", tmp_path / "l.npz")
    assert (status, err.count("\n")) == (2, 1)
    assert "a\\nb\\x1b[31m.npy: no such file" in err
