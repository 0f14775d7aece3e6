"""The engine on the embedded model: backends agree at every site; batch and threads never change a bit."""

import dataclasses

import numpy as np
import pytest
from small_graph import ROWS, graph_of_a_wide_softmax, small_graph, small_images

from intvit.engine import Engine, Program, quantize_images
from intvit.errors import IntvitError
from intvit.graph.ir import tensor_hash
from intvit.graph.store import load, save
from intvit.lowering.recipe import build_recipe

METHODS = ("ibert", "fqvit", "ivit")


def all_tensors(graph, images, backend):
    return Engine(graph, backend).evaluate(quantize_images(graph, images), list(graph.tensors))


def assert_equal_everywhere(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert np.array_equal(a[name], b[name]), name


def test_spec_and_kernel_agree_at_every_site(vit, mixed, mixed_by_spec):
    assert_equal_everywhere(all_tensors(mixed, vit.test.read(0, 2), "kernel"), mixed_by_spec)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("method", METHODS)
def test_uniform_models_agree_at_every_site(vit, method, bits):
    graph = vit.lower(build_recipe({"bits": bits}).with_method(method))
    images = vit.test.read(2, 3)
    assert_equal_everywhere(all_tensors(graph, images, "kernel"), all_tensors(graph, images, "spec"))


def test_batch_and_threads_change_nothing(vit, mixed):
    images = vit.test.read(0, 40)
    engine, names = Engine(mixed), list(mixed.tensors)
    expected = {k: tensor_hash(v) for k, v in engine.run(images, batch=32, threads=1, wanted=names).items()}
    for batch, threads in ((1, 1), (7, 1), (1, 2), (7, 2), (32, 2)):
        found = engine.run(images, batch=batch, threads=threads, wanted=names)
        assert {k: tensor_hash(v) for k, v in found.items()} == expected, (batch, threads)


def test_every_stored_tensor_lies_within_its_type_and_bound(vit, mixed):
    for name, array in all_tensors(mixed, vit.test.read(0, 8), "kernel").items():
        tensor = mixed.tensors[name]
        low, high = int(array.min()), int(array.max())
        assert tensor.dtype.min <= low <= high <= tensor.dtype.max, name
        assert max(-low, high) <= tensor.max_abs, name


def test_logits_share_one_scale_and_keep_the_order_of_the_accumulators(vit, mixed):
    out = Engine(mixed).run(vit.test.read(0, 64))
    real = out["head"] * mixed.tensors["head"].scale
    assert mixed.tensors["logits"].scale.ndim == 0
    assert np.array_equal(out["logits"].argmax(1), real.argmax(1))


def test_integer_images_give_the_same_result(vit, mixed):
    images = vit.test.read(0, 3)
    engine = Engine(mixed)
    assert np.array_equal(engine.run(images)["logits"], engine.run(quantize_images(mixed, images))["logits"])


def test_wrong_image_size_names_both(mixed):
    with pytest.raises(IntvitError, match=r"image size must be \(1, 28, 28\), not \(1, 32, 32\)"):
        Engine(mixed).run(np.zeros((1, 1, 32, 32), np.float32))


def test_nan_image_is_refused(mixed):
    with pytest.raises(IntvitError, match="finite"):
        Engine(mixed).run(np.full((1, 1, 28, 28), np.nan, np.float32))


def test_what_a_kernel_refuses_of_its_values_names_the_site(tmp_path, cli):
    graph = graph_of_a_wide_softmax()
    near, far = np.full((1, 1, ROWS, 2), 5, np.int8), np.array([[[[127, -128]] * ROWS]], np.int8)
    assert np.array_equal(Engine(graph).run(near)["weights"], Engine(graph, "spec").run(near)["weights"])
    with pytest.raises(IntvitError, match=r"^weights: softmax fqvit: scale, row length and spread must") as caught:
        Engine(graph).run(np.concatenate([near, far]))
    assert "2 columns of spread 1044480 do not" in str(caught.value)
    save(graph, tmp_path / "g.h5")
    np.save(tmp_path / "far.npy", far.astype(np.float32) / 8)  # floats are fed as they are
    status, _, err = cli("run", tmp_path / "g.h5", tmp_path / "far.npy", "-o", tmp_path / "y.npz")
    assert (status, err.count("weights: softmax fqvit: ")) == (2, 1), err
    assert not (tmp_path / "y.npz").exists()


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_whatever_a_step_refuses_names_its_sites(backend):
    engine, q = Engine(small_graph(), backend), small_images()
    steps = engine.program(engine.graph.outputs).steps
    assert {node.name for step in steps for node in step.nodes} == {node.name for node in engine.graph.nodes}

    def refuse(values):
        raise IntvitError("x must fit")

    for i, step in enumerate(steps):
        changed = [*steps[:i], dataclasses.replace(step, run=refuse), *steps[i + 1 :]]
        engine._programs[frozenset(engine.graph.outputs)] = Program.of(changed)
        with pytest.raises(IntvitError) as caught:
            engine.run(q)
        assert str(caught.value) == f"{', '.join(node.name for node in step.nodes)}: x must fit"


@pytest.mark.parametrize("backend", ["kernel", "spec"])
def test_what_is_refused_when_a_node_is_prepared_names_it_once(backend):
    graph = small_graph()
    nodes = tuple(dataclasses.replace(n, op="sigmoid") if n.name == "act" else n for n in graph.nodes)
    with pytest.raises(IntvitError, match=r"^act: must be an integer operator, not"):
        Engine(dataclasses.replace(graph, nodes=nodes), backend).run(small_images())


def test_store_and_load_keep_hash_and_bits(vit, mixed, tmp_path):
    save(mixed, tmp_path / "g.h5")
    again = load(tmp_path / "g.h5")
    images = vit.test.read(0, 3)
    assert again.content_hash == mixed.content_hash
    assert np.array_equal(Engine(again).run(images)["logits"], Engine(mixed).run(images)["logits"])


def test_accuracy_of_the_uniform_8_bit_models(vit):
    labels, images = vit.test.labels[:300], vit.test.read(0, 300)
    from intvit.floats.model import FloatModel

    (logits,) = FloatModel(vit.onnx_path, threads=1).run(images).values()
    hits = int((logits.argmax(1) == labels).sum())
    for method in METHODS:
        graph = vit.lower(build_recipe({}).with_method(method))
        found = int((Engine(graph).run(images, batch=32)["logits"].argmax(1) == labels).sum())
        assert abs(found - hits) <= 6, (method, found, hits)


def test_the_public_way_to_run_a_graph_file(vit, mixed, mixed_path):
    import intvit

    images = vit.test.read(0, 3)
    assert np.array_equal(intvit.load(mixed_path).run(images)["logits"], Engine(mixed).run(images)["logits"])
    assert all(getattr(intvit, name) is not None for name in intvit.__all__)
