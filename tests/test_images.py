"""Image sources: every kind is read, normalised the same way, and refused in one line when it is not what it says."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from intvit.errors import IntvitError
from intvit.images import open_images

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
