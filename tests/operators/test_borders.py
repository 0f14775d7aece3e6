"""No compiled kernel can be reached with arrays that do not fit one another: every one of them, every way to misfit."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher
from numba.core.types import Array as ArrayType
from numba.core.types import BaseTuple
from test_integer_only import signature

import intvit
from intvit.analysis import sqnr
from intvit.errors import IntvitError
from intvit.graph.inttypes import IntType
from intvit.graph.ir import Tensor
from intvit.kernels import gemm, layernorm, matmul, pool, registry, requantize, rounding, tables
from intvit.kernels.arith import KERNELS, as_rows
from intvit.kernels.border import BORDERS, border, constants
from intvit.kernels.gemm import layout, product
from intvit.spec.numerics import HAWQ, Numerics

for found in pkgutil.walk_packages(intvit.__path__, "intvit."):  # whatever else was imported before
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
DESCRIBED = [b for b in BORDERS if b.arrays]
CHECKED = [b for b in BORDERS if not b.arrays]
SIZES = {"S": 2, "X": 1, "R": 4, "C": 6, "M": 6, "N": 3, "K": 5, "A": 2, "B": 3, "L": 4, "T": 7, "*": 2}
SCALARS = {
    "x0": -3, "n": 2, "b": 5, "c": 7, "m": 2**30, "e": 33, "bits": 8, "out_bits": 8, "half": 2**32 - 1, "low": -128,
    "high": 127, "masked": 1, "limit": 2**31 - 1, "shift": 3, "n_codes": 16, "weigh": False, "last": 2, "gap": 0,
    "least": 0, "most": 0, "room": 0, "mask": 1, "plus": 0, "zero_point": 0, "back": True, "two": True, "lift": 0,
    "part": 3, "wraps": False,
}  # fmt: skip
EVERY_KIND = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")


def described(name):
    return f"{name.__module__.rpartition('.')[2]}.{name.__name__}"


def shape_of(text, sizes):
    """An accepted shape for "int8 R C": the first of several choices, which a name that stands before them takes."""
    shape = []
    for size in text.split()[1:]:
        label, _, choices = size.rpartition("=")
        choice = choices.split("|")[0]
        shape.append(int(choice) if choice.isdecimal() else sizes[choice])
        sizes[label] = shape[-1]
    return tuple(shape)


def valid(call, sizes=SIZES):
    """Arguments that fit, by name."""
    rng, sizes = np.random.default_rng(0), dict(sizes)
    names = call.compiled.py_func.__code__.co_varnames[: call.compiled.py_func.__code__.co_argcount]
    arguments = {name: SCALARS.get(name) for name in names}
    for name, text in call.arrays.items():
        kind = text.split()[0].split("|")[0]
        arguments[name] = rng.integers(0, 2, shape_of(text, sizes)).astype(kind) + (name == "scale")
    assert all(value is not None for value in arguments.values()), arguments
    return arguments


def misfits(call):
    """(what is wrong, arguments): each array in turn too long, too short, of other rank, other type, with gaps."""
    good = valid(call)
    counted = [size.partition("=")[0] for text in call.arrays.values() for size in text.split()[1:]]
    for name, text in call.arrays.items():
        array, (kinds, *sizes) = good[name], text.split()
        changed = {"one axis more": array[None], "one axis less": array[0], "a list": array.tolist(), "nothing": None}
        changed["gaps"] = np.repeat(array, 2, axis=-1)[..., ::2]
        changed |= {kind: array.astype(kind) for kind in EVERY_KIND if kind not in kinds.split("|")}
        changed["other byte order"] = array.astype(array.dtype.newbyteorder("S"))
        if array.itemsize == 1:
            del changed["other byte order"]
        for axis, size in enumerate(sizes):
            if size != "*" and (counted.count(size.partition("=")[0]) > 1 or "=" in size):
                changed[f"axis {axis} longer"] = np.concatenate([array, array.take([0], axis)], axis)
                changed[f"axis {axis} shorter"] = array.take(range(array.shape[axis] - 1), axis)
            if size != "*" and "0" not in size.split("|") and name != "out":
                changed[f"axis {axis} empty"] = array.take([], axis)
        for what, other in changed.items():
            yield f"{name}: {what}", {**good, name: other}


@pytest.mark.parametrize("call", DESCRIBED, ids=described)
def test_what_fits_passes(call):
    call(*valid(call).values())
    optional = [name for name, text in call.arrays.items() if "R|0" in text or " * " in text]
    for name in optional:  # no mask
        good = valid(call)
        call(*{**good, name: np.zeros((0, *good[name].shape[1:]), good[name].dtype)}.values())


@pytest.mark.parametrize("call", DESCRIBED, ids=described)
def test_what_does_not_fit_is_refused(call):
    seen = list(misfits(call))
    assert len(seen) >= 15 * len(call.arrays)
    for what, arguments in seen:
        before = {k: v.copy() for k, v in arguments.items() if isinstance(v, np.ndarray)}
        with pytest.raises(IntvitError) as caught:
            call(*arguments.values())
        assert "\n" not in str(caught.value), what
        assert all(np.array_equal(arguments[k], v) for k, v in before.items()), what


@pytest.mark.parametrize("call", [b for b in DESCRIBED if "out" in b.arrays], ids=described)
def test_without_anything_to_write_nothing_is_done(call):
    """Rows without columns among them, of which a kernel would read the first one."""
    for empty in ({"R": 0}, {"C": 0, "M": 0}):
        sizes = {**SIZES, **empty}
        if 0 in shape_of(call.arrays["out"], sizes):
            assert call(*valid(call, sizes).values()) is None


def test_a_message_names_the_kernel_the_rule_and_the_arrays():
    rows, bias, out = np.zeros((2, 3), np.int64), np.zeros(4, np.int64), np.zeros((2, 3), np.int64)
    with pytest.raises(IntvitError) as caught:
        layernorm._ivit(rows, bias, out)
    kinds = "int8|int16|int32|int64"
    rule = f"arrays must be rows {kinds} R C, bias int64 C, out {kinds} R C"
    found = "not rows int64 2 3, bias int64 4, out int64 2 3"
    assert str(caught.value) == f"intvit.kernels.layernorm._ivit: {rule}, {found}"


# ------------------------------------------------- the integer dot products, whose sizes come with the arrays


def product_arguments(rows=13, depth=9, columns=35, kind=np.int16, batch=None):
    """A call of multiply_packed, or of multiply_batch with `batch` products; what its tuples hold, by name."""
    steps, padded = -(-depth // 2), -(-columns // layout.NR) * layout.NR
    m, e = np.full(padded, 2**30, np.int32), np.full(padded, 33, np.int64)
    rounding = np.array([e, e * 0 + 2**32 - 1, e])
    right = layout.aligned(padded * steps * 2, np.int16)
    right[:] = 0
    count = batch or 1
    places = np.arange(count) if batch else 0
    found = {
        "flat": np.ones(count * rows * depth, np.int16),
        "starts": places * rows * depth,
        "row": depth,
        "column": 1,
    }
    if batch:
        found |= {"b": np.ones(count * depth * columns, np.int8), "b_starts": places * depth * columns}
        found |= {"b_row": columns, "b_column": 1}
    found |= {"out": np.zeros(count * rows * columns, kind), "out_starts": places * rows * columns}
    found |= {"out_row": columns, "out_column": 1}
    found |= {"rows": rows, "depth": depth, "columns": columns, "steps": steps, "right": right}
    found |= {"correction": 0} if batch else {"offset": np.zeros(padded, np.int32)}
    found |= {"m": m, "rounding": rounding, "mask": 1, "low": -128, "high": 127, "plus": 0}
    return found | layout.Scratch.of(np.int16, steps, kind)._asdict()


def bounded_arguments(rows=13, columns=35):
    """A call of multiply_bounded, in three parts of two words."""
    found = product_arguments(rows=rows, columns=columns, kind=np.int32)
    for name in ("offset", "m", "rounding", "mask", "low", "high", "plus"):
        del found[name]
    scratch = {name: found.pop(name) for name in layout.Scratch._fields}
    padded = -(-columns // layout.NR) * layout.NR
    found |= {"offset": np.zeros((3, padded), np.int32), "bias": np.zeros(padded, np.int32)}
    found |= {"of_rows": np.ones((3, rows), np.int32), "of_columns": np.ones((3, padded), np.int32)}
    found |= {"part_steps": 2, "open": np.zeros((rows, 1), np.uint8), "low": -(2**14), "high": 2**14 - 1}
    return found | scratch


def packing_arguments(name):
    flat = np.ones(9 * 35, np.int8)
    places = {"flat": flat, "start": 0, "depth_stride": 35, "column_stride": 1, "depth": 9, "columns": 35}
    if name == "column_sums":
        return {**places, "sums": np.zeros(64, np.int32)}
    return {**places, "steps": 5, "packed": np.zeros(64 * 10, np.int16)}


GEMM = {
    "enter_multiply_packed": lambda: product_arguments(),
    "enter_multiply_batch": lambda: product_arguments(batch=3),
    "enter_multiply_bounded": lambda: bounded_arguments(),
    "pack_columns": lambda: packing_arguments("pack_columns"),
    "column_sums": lambda: packing_arguments("column_sums"),
}


def enter(call, values):
    """Call a border with the values in the order of the kernel's arguments, put into the tuples that it takes."""
    left, arguments = list(values), []
    for name in inspect.signature(call).parameters:
        kind = get_type_hints(call.check)[name]
        fields = getattr(kind, "_fields", None)
        arguments.append(kind(*(left.pop(0) for _ in fields)) if fields else left.pop(0))
    assert not left
    return call(*arguments)


NEEDS_A_PATH = pytest.mark.skipif(gemm.available_paths()[0] == "blas", reason="no integer dot products here")


def test_every_other_border_is_tested_below():
    assert {call.__name__ for call in CHECKED} == set(GEMM)


@NEEDS_A_PATH
@pytest.mark.parametrize("call", CHECKED, ids=described)
def test_sizes_that_fit_pass(call):
    enter(call, GEMM[call.__name__]().values())


@NEEDS_A_PATH
@pytest.mark.parametrize("call", CHECKED, ids=described)
def test_sizes_that_do_not_fit_are_refused(call):
    good = GEMM[call.__name__]()
    free = {"mask", "low", "plus", "correction"}  # values, not sizes
    changes = []
    for name, value in good.items():
        if isinstance(value, np.ndarray):
            short = value[: value.size // 2 - 1] if value.ndim == 1 else value[:-1]
            others = [short, value[None], value[::-1], value.astype(np.float32), value.astype(np.uint64)]
            others += [value.astype(value.dtype.newbyteorder("S"))] * (value.itemsize > 1)
            others += [value.astype(np.int8 if value.dtype == np.int64 else np.int64), value[:0]]
            if value.dtype == np.int64 and name in ("starts", "b_starts", "out_starts"):
                others += [value - 1, value + 1, value * 0 + 2**62, value * 0 - 2**62]
            changes += [(name, other) for other in others]
        elif name == "high":
            changes += [(name, 2**30), (name, 2**62)] if "open" in good else [(name, 2**15), (name, 2**62)]
        elif name not in free:
            changes += [(name, value * 2 + 33), (name, -1), (name, 2**62)]
            changes += [(name, 0)] if name in ("rows", "depth", "steps", "columns") else []
    assert len(changes) > 20
    for name, other in changes:
        arguments = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in {**good, name: other}.items()}
        if isinstance(other, np.ndarray):
            arguments[name] = other  # a copy would have no gaps
        with pytest.raises((IntvitError, IndexError)):
            enter(call, arguments.values())


@NEEDS_A_PATH
def test_accumulators_as_they_are_need_32_bits():
    good = product_arguments(kind=np.int8)
    with pytest.raises(IntvitError):
        enter(product.enter_multiply_packed, {**good, "m": good["m"][:0], "rounding": good["rounding"][:, :0]}.values())


# ----------------------------------------------------------------- there is no other way from Python


def takes_arrays(dispatcher):
    kinds = [part for kind in signature(dispatcher) for part in (kind if isinstance(kind, BaseTuple) else [kind])]
    return dispatcher.targetoptions.get("nopython") and any(isinstance(kind, ArrayType) for kind in kinds)


def python_names(module, tree):
    """(name as written, value) of everything that the Python functions of a module read; compiled ones are left out."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            continue
        marks = {ast.unparse(d).partition("(")[0] for d in getattr(node, "decorator_list", [])}
        if marks & {"kernel", "inlined", "numba.njit", "intrinsic"}:
            continue
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                yield part.id, getattr(module, part.id, None)
            elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                yield ast.unparse(part), getattr(getattr(module, part.value.id, None), part.attr, None)


def test_python_calls_kernels_of_arrays_through_their_borders_only():
    package = Path(intvit.__file__).parent
    entered, reached = {b.compiled for b in BORDERS}, 0
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text())
        parts = path.relative_to(package.parent).with_suffix("").parts
        if parts[-1] == "__main__" or not re.search("kernels|njit", path.read_text()):
            continue
        module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
        for name, value in python_names(module, tree):
            reached += isinstance(value, Dispatcher)
            assert not (isinstance(value, Dispatcher) and value not in entered and value in KERNELS
                        and takes_arrays(value)), f"{path}: {name}"  # fmt: skip
            assert not (isinstance(value, Dispatcher) and value in entered), f"{path}: {name}"
    assert reached > 5  # kernels of numbers alone may be called as they are


def test_every_compiled_function_has_a_border_or_is_called_by_kernels_only():
    """Outside `kernels` Numba compiles in one module, and what it compiles there has borders."""
    package = Path(intvit.__file__).parent
    modules = [
        p for p in package.rglob("*.py") if re.search(r"@numba|\bnjit\(|@jit|vectorize\b.*target", p.read_text())
    ]
    assert sorted(p.name for p in modules) == ["cache.py"]
    entered = {b.compiled for b in BORDERS}
    assert {sqnr._powers, sqnr._fractions} <= set(BORDERS)
    text = {p: p.read_text() for p in (package / "kernels").rglob("*.py")}
    for dispatcher in KERNELS:
        if takes_arrays(dispatcher) and dispatcher not in entered:
            name = dispatcher.py_func.__name__
            home = dispatcher.py_func.__module__
            knows = [t for p, t in text.items() if p.stem == home.rpartition(".")[2] or f"from {home} import" in t]
            assert any(re.search(rf"(?<!def )\b{name}\(", t) for t in knows) or name == "hidden", name


# ------------------------------------------------------------- what a user of the kernels meets first


def rejects(call, *words):
    with pytest.raises(IntvitError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


X8 = np.zeros((2, 3, 6), np.int8)


@pytest.mark.parametrize("x", [X8.astype(np.int16), X8[..., :5], X8[..., 0], X8.astype(float)])
def test_a_prepared_linear_takes_what_it_was_prepared_for(x):
    if PATH == "blas":
        run = matmul.prepare_linear(np.ones((4, 6), np.int64), None, 128)
        rejects(lambda: run(x[..., :5]), "linear")
        return
    prepared = gemm.prepare_linear(np.ones((4, 6)), None, 128, np.int8, gemm.Epilogue.raw(), PATH)
    rejects(lambda: prepared.run(x, np.int32), "linear")


PATH = gemm.available_paths()[0]


@NEEDS_A_PATH
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3, 5), (2, 4, 7)),
        ((2, 3, 5), (3, 5, 7)),
        ((2, 3, 5), (5, 7)),
        ((5,), (5, 7)),
        ((1, 3, 5), (2, 5, 7)),
        ((2, 3, 0), (2, 1, 7)),
    ],
)
def test_a_prepared_product_takes_matrices_that_fit(a, b):
    product = gemm.Product(PATH, gemm.Epilogue.raw(), 0)
    rejects(lambda: product.run(np.ones(a, np.int8), np.ones(b, np.int8), np.int32), "matmul", str(a), str(b))


@NEEDS_A_PATH
def test_a_prepared_product_takes_its_types_and_the_sum_of_nothing_is_0():
    a, b = np.ones((2, 3, 5), np.int8), np.ones((2, 5, 7), np.int8)
    product = gemm.Product(PATH, gemm.Epilogue.raw(), 0)
    for x, y in ((a.astype(np.int32), b), (a, b.astype(np.int16)), (a.astype(np.float32), b), (a, b.astype(bool))):
        rejects(lambda x=x, y=y: product.run(x, y, np.int32), "matmul")
    rejects(lambda: gemm.Product(PATH, gemm.Epilogue.raw(), 16384).run(a, b, np.int32), "int16")
    assert not product.run(a[..., :0], b[:, :0], np.int32).any()
    assert product.run(a[:0], b[:0], np.int32).shape == (0, 3, 7)
    assert product.run(a, b[..., :0], np.int32).shape == (2, 3, 0)
    short = gemm.Epilogue.dyadic(np.array([2**30]), np.array([31]), 8, 7)
    rejects(lambda: gemm.Product(PATH, short, 0).run(a, np.ones((2, 5, 40), np.int8), np.int8), "multiply_batch")
    rejects(lambda: gemm.Product(PATH, short, 0).run(a, b, np.int64))


def test_plain_products_fit():
    ones = np.ones((2, 3, 5), np.int64)
    for shape in ((2, 4, 7), (3, 5, 7), (7,)):
        rejects(lambda shape=shape: matmul.matmul(ones, np.ones(shape, np.int64)), "matmul")
        wide = np.full(shape, 2**40)
        rejects(lambda wide=wide: matmul.matmul(ones, wide), "matmul")
    run = matmul.prepare_linear(np.ones((4, 6), np.int64), np.zeros(4, np.int64), 128)
    rejects(lambda: run(np.ones((2, 5), np.int64)), "linear")
    rejects(lambda: matmul.prepare_linear(np.ones((4, 6), np.int64), np.zeros(1, np.int64), 128), "linear")


M1, E1 = np.array([2**30]), np.array([33])


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64])
@pytest.mark.parametrize("n", [0, 2, 5, 7])
def test_requantization_takes_one_constant_or_one_per_channel(kind, n):
    x = np.ones((4, 6), kind)
    for m, e in ((np.repeat(M1, n), np.repeat(E1, n)), (np.repeat(M1, 6), np.repeat(E1, n)), (M1, np.repeat(E1, n))):
        rejects(lambda m=m, e=e: requantize.apply_requantize(x, m, e, 8), "requantize")
        call = lambda m=m, e=e: requantize.apply_requantize(x, M1, E1, 8, residual=x, residual_m=m, residual_e=e)  # noqa: E731
        rejects(call, "requantize")


def test_requantization_takes_signed_integers_and_a_type_that_holds_its_bits():
    for kind in (np.uint8, np.uint32, np.uint64, np.float64, np.bool_):
        rejects(lambda kind=kind: requantize.apply_requantize(np.ones((4, 6), kind), M1, E1, 8), "signed")
    x = np.ones((4, 6), np.int32)
    rejects(lambda: requantize.apply_requantize(x, M1, E1, 16, out_dtype=np.int8), "16 bits")
    rejects(lambda: requantize.apply_requantize(x, M1.astype(float), E1, 16), "int64")
    for m in (2**31 + 1, -(2**31) - 1, 2**62, -(2**63)):
        rejects(lambda m=m: requantize.apply_requantize(x, np.array([m]), E1, 16), "2**31", str(m))
    with pytest.raises(ValueError, match="broadcast"):
        requantize.apply_requantize(x, M1, E1, 8, residual=x[:, :5], residual_m=M1, residual_e=E1)


def test_a_constant_residual_has_the_last_axes_of_its_input():
    constant = {"constant": np.ones((3, 6), np.int64), "residual_m": M1, "residual_e": E1}
    run = requantize.prepare_requantize(M1, E1, 8, **constant, out_dtype=np.int8).run
    for kind in (np.int8, np.int64):
        assert run(np.full((2, 3, 6), 80, kind)).tolist() == np.full((2, 3, 6), 10).tolist()
    for shape in ((2, 2, 6), (6,), (3, 5), (2, 3, 12)):
        rejects(lambda shape=shape: run(np.ones(shape, np.int8)), "residual")


def test_a_residual_comes_with_its_constants():
    x = np.ones((2, 6), np.int8)
    rejects(lambda: requantize.apply_requantize(x, M1, E1, 8, residual=x), "residual")
    rejects(lambda: requantize.apply_requantize(x, M1, E1, 8, residual_m=M1, residual_e=E1), "residual")


@pytest.mark.parametrize("mode", sorted(set(rounding.ROUNDINGS) - {"half_even"}))
def test_terms_round_as_their_numerics_say(mode):
    """What a term holds and what the numerics say are one fact; half a change of it is refused."""
    even, other = (requantize.Term(M1, E1, rounding.ROUNDINGS[name]) for name in ("half_even", mode))
    how = Numerics(rounding=mode)
    for terms, numerics in [((other, None), HAWQ), ((even, other), HAWQ), ((other, even), how), ((even, None), how)]:
        rejects(lambda terms=terms, numerics=numerics: requantize.Requantize(*terms, 8, np.int8, numerics=numerics),
                "terms must round")  # fmt: skip
    assert requantize.Requantize(other, other, 8, np.int8, numerics=how).run(*[np.full((2, 6), 40, np.int8)] * 2).any()


METHODS = [(m.operator, m.name) for m in registry.methods()]


@pytest.mark.parametrize(("operator", "name"), METHODS)
def test_a_method_takes_rows_as_wide_as_its_constants(operator, name):
    method = registry.get(operator, name)
    facts = {"out_bits": 8, "gamma": np.ones(6), "beta": np.ones(6), "out_scale": 0.1}
    scale = np.full(6, 0.1) if (operator, name) == ("gelu", "ibert") else 0.1
    run = method.kernel(method.constants(scale, facts, {})[0])
    rows = np.ones((4, 6), np.int64)
    assert run(rows).shape == (4, 6)
    per_channel = operator == "layernorm" or np.ndim(scale)
    for other in (rows[:, :5], np.ones((4, 7), np.int64)) if per_channel else ():
        rejects(lambda other=other: run(np.ascontiguousarray(other)), "kernels")
    for other in (rows.astype(float), rows.astype(bool), rows[None]):
        with pytest.raises((IntvitError, TypeError, ValueError, IndexError)):
            run(other)
    mask = np.zeros((4, 6), bool)
    if operator != "softmax":
        rejects(lambda: run(rows, mask), "mask")
        return
    assert run(rows, mask).shape == (4, 6)
    for other in (mask[:3], mask[:, :5], mask.astype(np.int8), mask[0]):
        rejects(lambda other=other: run(rows, np.ascontiguousarray(other)), "mask")


@pytest.mark.parametrize("name", ["ivit", "ibert", "fqvit"])
def test_a_narrow_softmax_takes_masks_that_repeat(name):
    method = registry.get("softmax", name)
    run = method.fast.narrow(method.lower(0.1, out_bits=4)[0], 6, True)
    rows, mask, out = np.zeros((4, 6), np.int8), np.zeros((2, 6), bool), np.zeros((4, 6), np.int16)
    run(rows, mask, out)
    for other in (np.zeros((3, 6), bool), np.zeros((0, 6), bool), np.zeros((2, 5), bool), np.zeros((2, 7), bool)):
        rejects(lambda other=other: run(rows, other, out), "mask")
    for x, y in ((rows.astype(np.int16), out), (rows, out[:, :5].copy()), (rows[:3], out), (rows, out.astype(float))):
        rejects(lambda x=x, y=y: run(x, mask[:1], y), "out")


def test_a_table_takes_8_bit_inputs():
    run = tables.prepare("element", lambda rows: rows, -128, 127)
    for kind in (np.int16, np.uint8, np.int64, np.float32):
        rejects(lambda kind=kind: run(np.zeros((2, 3), kind)), "rows int8")


def test_constants_must_be_integers_of_64_bits():
    for value in (2**63, -(2**63) - 1, 1.5, None, "3"):
        rejects(lambda value=value: constants("k", value), "k: constant")
    assert constants("k", 2**63 - 1, -(2**63), np.int64(3), np.zeros(3))[:3] == (2**63 - 1, -(2**63), 3)


def test_a_mean_is_of_something_and_its_sum_fits():
    rejects(lambda: pool.mean(np.zeros((3, 0, 2), np.int64), 1), "mean")
    rejects(lambda: pool.mean(np.full((1, 4), 2**61), 1), "mean")
    assert pool.mean(np.zeros((0, 3, 2), np.int64), 1).shape == (0, 2)


def test_sqnr_compares_equal_shapes():
    tensor = Tensor("t", (5, 3), IntType(8), np.array(0.5))
    q = np.zeros((2, 5, 3), np.int8)
    for shape in ((2, 5, 2), (2, 15), (3, 5, 3), (2, 1, 3), (2, 5, 3, 1)):
        rejects(lambda shape=shape: sqnr.errors(np.zeros(shape, np.float32), q, tensor), "t: float values")
    scaled = Tensor("t", (5, 3), IntType(8), np.array([0.5, 0.25]))
    rejects(lambda: sqnr.errors(np.zeros((2, 5, 3)), q, scaled), "scale")
    assert sqnr.errors(np.zeros((2, 0, 3)), q[:, :0], tensor)["ratio"].tolist() == [np.inf] * 2


def test_rows_of_an_axis_without_elements():
    assert as_rows(np.zeros((0, 3), np.int64)).shape == (0, 3)


def test_a_border_names_sizes_once():
    import numba

    @border(a="int8|int16 N", b="int64 M=N|1", c="int64 M", d="bool * N")
    @numba.njit
    def count(a, b, c, d):
        return a.shape[0] + b.shape[0]

    line, one, flags = np.zeros(3, np.int8), np.zeros(1, np.int64), np.zeros((5, 3), bool)
    assert count(line, one, one, flags) == 4
    assert count(line, np.zeros(3, np.int64), np.zeros(3, np.int64), flags) == 6
    for b, c in ((2, 2), (1, 3), (3, 1)):
        rejects(lambda b=b, c=c: count(line, np.zeros(b, np.int64), np.zeros(c, np.int64), flags), "M=N|1")
    BORDERS.remove(count)
