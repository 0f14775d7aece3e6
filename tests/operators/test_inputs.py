"""Every public function takes integers of every type and layout, gives the spec's integers, and refuses the rest."""

import math

import numpy as np
import pytest

from intvit import ops
from intvit.errors import IntvitError
from intvit.kernels import registry

BACKENDS = ("kernel", "spec")
METHODS = {op: [m.name for m in registry.methods(op)] for op in ("softmax", "gelu", "layernorm")}
KINDS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
KINDS += [">" + kind for kind in KINDS[1:4] + KINDS[5:]]
SOFTMAX_BITS = {"fqvit": 4}


def columns(x):
    """Of an input; 3 for what has none."""
    while isinstance(x, list) and x and isinstance(x[0], list):
        x = x[0]
    return len(x) if isinstance(x, list) else x.shape[-1] if isinstance(x, np.ndarray) and x.ndim else 3


def softmax(method, **options):
    bits = SOFTMAX_BITS.get(method, 8)
    return lambda x, backend: ops.softmax(x, 0.05, method=method, out_bits=bits, backend=backend, **options)[0]


def layernorm(method, **options):
    def run(x, backend):
        c = columns(x)
        gamma, beta = np.linspace(-1, 2, c), np.linspace(0.3, -0.2, c)
        return ops.layernorm(x, 0.05, gamma, beta, method=method, out_scale=0.03, backend=backend, **options)[0]

    return run


def requantize(in_scale, out_scale, bits, residual=False):
    def run(x, backend):
        extra = {"residual": x, "residual_scale": 0.31} if residual else {}
        scale = np.resize(in_scale, columns(x)) if np.ndim(in_scale) else in_scale
        return ops.requantize(x, scale, out_scale, bits, backend=backend, **extra)

    return run


FUNCTIONS = {
    **{f"softmax {m}": softmax(m) for m in METHODS["softmax"]},
    **{f"gelu {m}": lambda x, b, m=m: ops.gelu(x, 0.05, method=m, backend=b)[0] for m in METHODS["gelu"]},
    **{f"layernorm {m}": layernorm(m) for m in METHODS["layernorm"]},
    "requantize": requantize(0.7, 1.3, 8),
    "requantize channels": requantize([0.7, -0.2, 1e-3], 0.3, 16),
    "requantize residual": requantize(0.7, 1.3, 8, residual=True),
    "requantize channels and residual": requantize([0.7, -0.2], 1.3, 32, residual=True),
    "requantize far": requantize(2.0**-31 * 0.9999, 1.0, 8),
    "requantize up": requantize(2.0**33, 1.0, 6),
    "log2_matmul": lambda x, b: ops.log2_matmul([[3], [-1], [15]], np.expand_dims(x, -2), 0.5, backend=b)[0],
}


def layouts(x):
    """(name, the same (2, 4, 3) values in another layout)."""
    yield "as it is", x
    yield "reversed twice", x[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1]
    yield "Fortran order", np.asfortranarray(x)
    yield "every second of an array", np.repeat(np.repeat(x, 2, 0), 2, 2)[::2, :, ::2]
    yield "transposed", np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 2, 0)), 0, 2)
    frozen = x.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen
    room = np.zeros(x.nbytes + 1, np.uint8)[1:]
    odd = room.view(x.dtype).reshape(x.shape) if x.itemsize == 1 else np.ndarray(x.shape, x.dtype, room)
    odd[...] = x
    yield "not aligned", odd
    yield "a list", x.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_type_and_layout_gives_the_integers_of_the_spec(name, kind):
    rng = np.random.default_rng(KINDS.index(kind))
    dtype = np.dtype(kind)
    x = rng.integers(0 if dtype.kind == "u" else -128, 128, (2, 4, 3)).astype(dtype)
    expected = FUNCTIONS[name](x.tolist(), "spec")
    for layout, y in layouts(x):
        before = np.array(y)
        for backend in BACKENDS:
            found = FUNCTIONS[name](y, backend)
            assert found.dtype == np.int64
            assert np.array_equal(found, expected), (layout, backend)
        assert np.array_equal(before, y)
    repeated = np.broadcast_to(x[:, :1], x.shape)  # strides of 0
    assert np.array_equal(FUNCTIONS[name](repeated, "kernel"), FUNCTIONS[name](repeated.tolist(), "spec"))


def outside(name, values):
    """Whether a documented limit of the kernel lies below these values, in a row of three columns."""
    top, low, spread = max(values), min(values), max(values) - min(values)
    largest = max(top, -low)
    if name.startswith("softmax fqvit"):  # scale 0.05: x0 = -14, c = 1116
        return low < -(2**31) or top >= 2**31 or 3 * (1116 << min(30, spread // 14 + 1)) >= 2**62
    if name.startswith(("softmax", "gelu", "layernorm ivit_tvm")):
        return low < -(2**31) or top >= 2**31
    if name == "layernorm fqvit":
        return 9 * largest**2 >= 2**62 or 3 * largest >= 2**31
    if name.startswith("layernorm"):
        return low < -(2**40) or top >= 2**40 or 3 * spread**2 >= 2**62
    if name == "log2_matmul":
        return largest * 2**15 >= 2**63
    return False


@pytest.mark.parametrize("kind", KINDS[:8])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_ends_of_every_type(name, kind):
    """Kernel and spec agree, or the kernel refuses, and that just where its documented limit is."""
    limits = np.iinfo(kind)
    n_kept = 0
    for power in (0, 1, 2, 8, 24, 31, 32, 33, 40, 47, 62):
        top, low = max(limits.max >> power, 3), limits.min >> power
        top = min(top, 2**63 - 1)
        for row in ([low, top, 0], [top, top - 1, top - 2], [low, low + 1, low], [top, top, top], [low + 2, low, 1]):
            x = np.array([row] * 3, kind)
            if outside(name, row):
                with pytest.raises(IntvitError) as caught:
                    FUNCTIONS[name](x, "kernel")
                assert "\n" not in str(caught.value)
                continue
            n_kept += 1
            assert np.array_equal(FUNCTIONS[name](x, "kernel"), FUNCTIONS[name](x, "spec")), row
    assert n_kept >= 10


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_uint64_must_fit_int64_and_bools_are_no_integers(name, backend):
    for x in (
        np.full((3, 3), 2**63, np.uint64),
        np.full((3, 3), 2**64 - 1, np.uint64),
        np.ones((3, 3), bool),
        np.ones((3, 3)),
        np.ones((3, 3), np.complex64),
        np.array([["1"] * 3] * 3),
        np.array([[1, None, 3]] * 3),
        np.zeros((3, 3), "M8[s]"),
        [[2**64] * 3] * 3,
        [[True] * 3] * 3,
        [[1, 2, 3], [4, 5]],
        "abc",
        None,
    ):
        if name == "log2_matmul" and not isinstance(x, np.ndarray):
            continue
        with pytest.raises(IntvitError) as caught:
            FUNCTIONS[name](x, backend)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [n for n in FUNCTIONS if not n.startswith("log2")])
def test_empty_inputs_and_single_numbers(name, backend):
    for shape in ((0, 3), (0,), (2, 0, 3), (0, 0, 2)):
        if 0 in shape[-1:] and (name.startswith("layernorm") or "channels" in name):
            continue
        found = FUNCTIONS[name](np.zeros(shape, np.int16), backend)
        assert found.shape == shape
        assert found.dtype == np.int64
    one = FUNCTIONS[name](np.array([5], np.int8), backend)
    assert one.shape == (1,)
    assert np.array_equal(one, FUNCTIONS[name]([[5]], "spec")[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_number_is_a_row_for_requantize_alone(backend):
    for value in (7, np.int8(7), np.array(7, ">i4"), np.uint64(7)):
        assert ops.requantize(value, 2.0, 1.0, 8, backend=backend) == 14
        for call in (
            lambda v=value: ops.softmax(v, 0.1, method="ivit", out_bits=8, backend=backend),
            lambda v=value: ops.gelu(v, 0.1, method="ivit", backend=backend),
            lambda v=value: ops.layernorm(v, 0.1, [1.0], [0.0], method="ivit", backend=backend),
            lambda v=value: ops.layernorm_shift(v),
            lambda v=value: ops.log2_matmul([[1]], v, 1.0, backend=backend),
        ):
            with pytest.raises(IntvitError):
                call()


# ------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("method", METHODS["softmax"])
def test_masks_of_every_layout(method):
    rng = np.random.default_rng(1)
    x, mask = rng.integers(-128, 128, (2, 4, 5)), rng.random((2, 4, 5)) < 0.4
    shapes = [mask, mask[:1], mask[0], mask[0, 0], np.array(True), mask[:, :, :1], mask.astype(int), mask.tolist()]
    shapes += [np.asfortranarray(mask), mask[::-1, ::-1], np.broadcast_to(mask[:, :1], mask.shape)]
    for hidden in shapes:
        run = softmax(method, mask=hidden)
        every = np.broadcast_to(np.array(hidden, bool), x.shape)
        assert np.array_equal(run(x, "kernel"), run(x, "spec"))
        assert np.array_equal(run(x, "kernel"), softmax(method, mask=every.tolist())(x, "spec"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "mask",
    [[True, False], np.ones((3, 2, 4, 5), bool), np.ones((2, 3, 5), bool), np.full((2, 4, 5), 0.5), [[2]], "yes",
     [[None]], [[True], [True, False]], np.full((2, 4, 5), np.nan)],
    ids=lambda m: str(np.shape(m)) if isinstance(m, np.ndarray) else repr(m),
)  # fmt: skip
def test_a_mask_that_does_not_fit(mask, backend):
    with pytest.raises(IntvitError, match=r"softmax: mask"):
        softmax("ivit", mask=mask)(np.zeros((2, 4, 5), np.int8), backend)


# ------------------------------------------------------------------------------------- log2_matmul


@pytest.mark.parametrize(
    ("q", "v"),
    [((3, 1, 1), (1, 1)), ((1, 1), (3, 1, 1)), ((2, 1, 4, 3), (5, 3, 2)), ((5, 4, 3), (2, 1, 3, 2)), ((4, 3), (3, 2)),
     ((2, 3, 4, 5), (2, 3, 5, 1)), ((1, 4, 3), (6, 3, 2)), ((0, 4, 3), (3, 2)), ((4, 0), (0, 2)), ((2, 0, 3), (3, 2)),
     ((2, 4, 3), (3, 0)), ((2, 0, 0), (0, 5)), ((0, 1, 2, 3), (7, 3, 2))],
)  # fmt: skip
@pytest.mark.parametrize("most", [100, 2**20, 2**37, 2**38, 2**41, 2**45])
def test_log2_matmul_broadcasts_its_leading_axes(q, v, most):
    rng = np.random.default_rng(most % 97)
    codes, values = rng.integers(-1, 16, q), rng.integers(-most, most, v)
    fast, scale = ops.log2_matmul(codes, values, 0.5)
    lead = np.broadcast_shapes(q[:-2], v[:-2])
    assert fast.shape == (*lead, q[-2], v[-1])
    assert scale == 2.0**-16
    assert np.array_equal(fast, ops.log2_matmul(codes, values, 0.5, backend="spec")[0])
    weights = np.where(codes < 0, 0, 1 << (15 - np.maximum(codes, 0))).astype(object)
    expected = np.matmul(weights, values.astype(object))
    assert fast.tolist() == np.broadcast_to(expected, fast.shape).tolist()


def test_log2_matmul_of_the_reported_operands():
    """q of three matrices, v of one that is too wide for any float: read beyond its end once."""
    q, v = [[[0]], [[1]], [[2]]], [[2**47]]
    for backend in BACKENDS:
        assert ops.log2_matmul(q, v, 1.0, backend=backend)[0].tolist() == [[[2**62]], [[2**61]], [[2**60]]]


def test_log2_matmul_at_the_limit_of_its_sums():
    inside, beyond = 2**48 // 3 - 1, 2**48 // 3 + 1
    codes = [[0, 0, 0]]
    for v in (inside, -inside):
        fast = ops.log2_matmul(codes, [[v]] * 3, 1.0)[0]
        assert fast.tolist() == [[3 * v * 2**15]] == ops.log2_matmul(codes, [[v]] * 3, 1.0, backend="spec")[0].tolist()
    for v, backend in ((beyond, "kernel"), (-(2**63), "kernel"), (2**62, "spec")):
        with pytest.raises(IntvitError, match=r"2\*\*63|int64"):
            ops.log2_matmul(codes, [[v]] * 3, 1.0, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("q", "v"),
    [([[1, 2]], [[1]]), ([[1]], [[1], [2]]), ([1], [[1]]), ([[1]], [1]), ([[[1]]] * 2, [[[1]]] * 3),
     ([[16]], [[1]]), ([[-2]], [[1]]), ([[2**40]], [[1]]), ([[0.5]], [[1]]), ([[0]], [[0.5]])],
)  # fmt: skip
def test_log2_matmul_of_operands_that_do_not_fit(q, v, backend):
    with pytest.raises(IntvitError, match="log2_matmul"):
        ops.log2_matmul(q, v, 1.0, backend=backend)


# -------------------------------------------------------------------------------------- requantize


@pytest.mark.parametrize(
    ("x", "ratio", "bits", "expected"),
    [
        (np.array([4 * 10**9], np.uint32), 0.9999 * 2.0**-31, 8, [2]),
        (np.array([2**32 - 1], np.uint32), (2**31 - 1) / 2**34, 8, [127]),
        (np.array([2**32 - 1], np.uint32), 1.0, 32, [2**31 - 1]),
        (np.array([255, 0], np.uint8), 0.5, 8, [127, 0]),
        (np.array([65535], np.uint16), 0.25, 16, [16384]),
        (np.array([2**63 - 1], np.uint64), 2.0**-60, 8, [8]),
        (np.array([4 * 10**9], np.uint32), 0.9999 * 2.0**-31, 6, [2]),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_requantize_of_unsigned_integers(x, ratio, bits, expected, backend):
    assert ops.requantize(x, ratio, 1.0, bits, backend=backend).tolist() == expected


def test_requantize_of_random_integers_of_every_type():
    """Ratios of every size, so that results of all magnitudes occur, with residuals of other types."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        kind, other = (np.dtype(k) for k in rng.choice(KINDS, 2))
        x, r = (
            (rng.integers(0, 2**63, (3, 2), np.uint64) >> int(rng.integers(0, 63))).astype(k.newbyteorder("="))
            for k in (kind, other)
        )
        x, r = (np.minimum(v, 2**63 - 1).astype(k) if k.itemsize == 8 else v.astype(k)
                for v, k in ((x, kind), (r, other)))  # fmt: skip
        scales = [rng.choice([-1, 1], n) * 2.0 ** rng.uniform(-70, 35, n) for n in rng.choice([1, 2], 2)]
        bits = int(rng.integers(2, 65))
        for extra in ({}, {"residual": r, "residual_scale": scales[1]}):
            for clamp in (True, False):
                found = [ops.requantize(x, scales[0], 1.0, bits, clamp=clamp, backend=b, **extra) for b in BACKENDS]
                assert np.array_equal(*found), (x, r, scales, bits)


@pytest.mark.parametrize("constant", [[[-(2**62)]], [[2**62]], [[-(2**31)]], [[2**31]], [[2**31 - 1]]])
def test_a_constant_residual_is_never_lost(constant):
    """An addend that is saturated at -2**63 has no absolute value in 64 bits."""
    from intvit.kernels.requantize import apply_requantize, prepare_requantize

    constant = np.array(constant)
    x = np.array([[[100]], [[-100]]], np.int8)
    for ratio in (2, 1):
        m, e = np.array([2**30]), np.array([33])
        n, f = np.array([2**30]), np.array([31 - ratio])
        run = prepare_requantize(m, e, 8, constant=constant, residual_m=n, residual_e=f, out_dtype=np.int8).run
        expected = apply_requantize(x, m, e, 8, residual=np.broadcast_to(constant, x.shape), residual_m=n, residual_e=f)
        assert np.array_equal(run(x), expected)
        assert expected.tolist() == [[[127 if constant[0, 0] > 0 else -128]]] * 2


# ---------------------------------------------------------------------------- scales and options

NOT_A_SCALE = [math.nan, math.inf, -math.inf, 0, 0.0, -1.0, -1e-300, "0.1", None, 1j, [], [[0.1, 0.2]], [0.1] * 4,
               [0.1, None, 0.2], np.array([0.1, math.nan, 0.1]), True, object(), 10**400, [0.1, [0.2]]]  # fmt: skip
EXTREME = [5e-324, 1e-310, 1e-200, 1e-100, 1e-30, 1e30, 1e100, 1e160, 1.7e308]
X = np.array([[5, -3, 100]])
ONES = np.ones(3)
SCALED = {
    **{
        f"softmax {m}": lambda s, b, m=m: ops.softmax(X, s, method=m, out_bits=8, backend=b) for m in METHODS["softmax"]
    },
    **{f"gelu {m}": lambda s, b, m=m: ops.gelu(X, s, method=m, backend=b) for m in METHODS["gelu"]},
    **{
        f"layernorm {m}": lambda s, b, m=m: ops.layernorm(X, s, ONES, ONES, method=m, out_scale=0.1, backend=b)
        for m in METHODS["layernorm"]
    },
    "layernorm fqvit out_scale": lambda s, b: ops.layernorm(X, 0.1, ONES, ONES, method="fqvit", out_scale=s, backend=b),
    "log2_matmul": lambda s, b: ops.log2_matmul([[0]], [[1]], s, backend=b),
}
MAY_BE_NEGATIVE = {
    "requantize": lambda s, b: ops.requantize(X, s, 1.0, 8, backend=b),
    "requantize to": lambda s, b: ops.requantize(X, 1.0, s, 8, backend=b),
    "requantize residual": lambda s, b: ops.requantize(X, 1.0, 1.0, 8, residual=X, residual_scale=s, backend=b),
}


def label(value):
    return type(value).__name__ if type(value) is object else repr(value)[:30]  # the same in every process


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", NOT_A_SCALE, ids=label)
@pytest.mark.parametrize("name", [*SCALED, *MAY_BE_NEGATIVE])
def test_a_scale_that_is_none_is_refused_by_one_line(name, scale, backend):
    allowed = () if name not in MAY_BE_NEGATIVE else (-1.0,) if name == "requantize to" else (0, -1.0, -1e-300)
    if type(scale) in (int, float) and scale in allowed:
        return  # a negative ratio, and 0, are in the definition
    if name == "requantize residual" and scale is None:
        return
    call = {**SCALED, **MAY_BE_NEGATIVE}[name]
    with pytest.raises(IntvitError) as caught:
        call(scale, backend)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("scale", EXTREME)
@pytest.mark.parametrize("name", [*SCALED, *MAY_BE_NEGATIVE])
def test_a_scale_far_out_gives_the_integers_of_the_spec_or_one_line(name, scale):
    call = {**SCALED, **MAY_BE_NEGATIVE}[name]
    found = []
    for backend in BACKENDS:
        try:
            found.append(call(scale, backend))
        except IntvitError as error:
            found.append(str(error))
    if isinstance(found[0], str):
        assert found[0] == found[1]
        assert "\n" not in found[0]
    else:
        values = [f[0] if isinstance(f, tuple) else f for f in found]
        assert np.array_equal(*values)
        if isinstance(found[0], tuple):
            assert found[0][1] == pytest.approx(found[1][1])
            assert np.isfinite(found[0][1]).all()
            assert np.all(np.asarray(found[0][1]) != 0)


NOT_BITS = [0, -1, 65, 100, 2**70, 8.0, 8.5, "8", None, math.nan, True, [8], np.array([8, 8])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", NOT_BITS, ids=label)
def test_options_out_of_range(value, backend):
    calls = [lambda m=m: ops.softmax(X, 0.1, method=m, out_bits=value, backend=backend) for m in METHODS["softmax"]]
    calls += [lambda: ops.requantize(X, 0.1, 1.0, value, backend=backend)]
    if (value is not None and type(value) is not int) or value in (-1, 65):
        calls += [lambda: ops.gelu(X, 0.1, method="ibert", n=value, backend=backend)]
    shifts = {"shift": value}
    if type(value) is not int or not 0 <= value <= 31:
        calls += [
            lambda m=m: ops.layernorm(X, 0.1, ONES, ONES, method=m, out_scale=0.1, backend=backend, **shifts)
            for m in METHODS["layernorm"]
        ]
        calls += [lambda: ops.layernorm_shift(X, value)]
    calls += [lambda: ops.quantize_weight([[1.0]], value), lambda: ops.quantize_bias([1.0], 1.0, [1.0], value)]
    calls += [lambda m=m: ops.quantize_activation([1.0], bits=value, method=m) for m in ("ivit", "ibert", "fqvit")]
    for call in calls:
        with pytest.raises(IntvitError) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, 0, -5.0, "1", 1e300, 1e-300, [1.0, 2.0], True])
def test_a_range_of_the_exponent_that_is_none(value, backend):
    with pytest.raises(IntvitError, match="exp_range_max"):
        ops.softmax(X, 0.1, method="ibert", out_bits=8, exp_range_max=value, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [None, 3, ["ivit"], "magic", b"ivit", ""])
def test_names_that_are_none(name, backend):
    for call in (
        lambda: ops.softmax(X, 0.1, method=name, out_bits=8, backend=backend),
        lambda: ops.gelu(X, 0.1, method=name, backend=backend),
        lambda: ops.layernorm(X, 0.1, ONES, ONES, method=name, backend=backend),
        lambda: ops.gelu(X, 0.1, method="ivit", backend=name),
        lambda: ops.requantize(X, 0.1, 1.0, 8, backend=name),
        lambda: ops.log2_matmul([[0]], [[1]], 1.0, backend=name),
        lambda: ops.quantize_weight([[1.0]], method=name),
        lambda: ops.quantize_bias([1.0], 1.0, 1.0, method=name),
        lambda: ops.quantize_activation([1.0], method=name),
    ):
        with pytest.raises(IntvitError) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_constants_of_the_wrong_size(backend):
    for call in (
        lambda: ops.gelu(np.zeros((2, 5), int), np.full(3, 0.1), method="ibert", backend=backend),
        lambda: ops.gelu(np.zeros((2, 5), int), np.full(6, 0.1), method="ibert", backend=backend),
        lambda: ops.gelu(np.zeros((2, 5), int), np.full((1, 5), 0.1), method="ibert", backend=backend),
        lambda: ops.layernorm(X, 0.1, ONES, np.ones(4), method="ivit", backend=backend),
        lambda: ops.layernorm(X, 0.1, np.ones(4), np.ones(4), method="ivit", backend=backend),
        lambda: ops.layernorm(X, 0.1, np.ones((1, 3)), np.ones((1, 3)), method="ivit", backend=backend),
        lambda: ops.layernorm(X, 0.1, 1.0, 1.0, method="ivit", backend=backend),
        lambda: ops.layernorm(X, [0.1, 0.2, 0.1], ONES, ONES, method="ivit", backend=backend),
        lambda: ops.layernorm(X, 0.1, ["1", "2", "3"], ONES, method="ivit", backend=backend),
        lambda: ops.layernorm(X, 0.1, ONES, ONES, method="fqvit", out_scale=1, factor=[1.0, 2.0, 4.0], backend=backend),
        lambda: ops.layernorm(X, 0.1, ONES, ONES, method="fqvit", out_scale=1, factor=[1, 2], backend=backend),
        lambda: ops.layernorm(X, [1, 1, 3], ONES, ONES, method="fqvit", out_scale=1, factor=[1, 1, 2], backend=backend),
        lambda: ops.requantize(X, [0.1, 0.2], 1.0, 8, backend=backend),
        lambda: ops.requantize(X, [[0.1, 0.2, 0.3]], 1.0, 8, backend=backend),
        lambda: ops.requantize(7, [0.1, 0.2, 0.3], 1.0, 8, backend=backend),
        lambda: ops.requantize(X, 0.1, [1.0, 1.0], 8, backend=backend),
        lambda: ops.requantize(X, [0.1, 0.1], [1.0, 1.0, 1.0], 8, backend=backend),
        lambda: ops.requantize(X, 0.1, [1.0, 0.0, 1.0], 8, backend=backend),
        lambda: ops.requantize(X, 0.1, 1.0, 8, residual=[1, 2], residual_scale=1.0, backend=backend),
        lambda: ops.requantize(
            X, 0.1, 1.0, 8, residual=[[[1, 2, 3]], [[1, 2, 3]]], residual_scale=1.0, backend=backend
        ),
        lambda: ops.requantize(X, 0.1, 1.0, 8, residual=X, residual_scale=[1.0, 2.0], backend=backend),
        lambda: ops.requantize(X, 0.1, 1.0, 8, residual=[1.5, 2, 3], residual_scale=1.0, backend=backend),
    ):
        with pytest.raises(IntvitError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_fqvit_takes_the_scales_of_its_factors():
    factor, x = np.array([4, 1, 2]), np.array([[5, -3, 100]])
    for backend in BACKENDS:
        y = [
            ops.layernorm(x, s, ONES, ONES, method="fqvit", out_scale=0.1, factor=factor, backend=backend)[0]
            for s in (0.1, 0.1 * factor)
        ]
        assert np.array_equal(*y)


def test_a_spec_result_beyond_int64_is_refused():
    with pytest.raises(IntvitError, match="int64"):
        ops.gelu([[2**62, 0]], 0.1, method="ivit", backend="spec")


@pytest.mark.parametrize("gamma", [0.0, 1.0, 5e-324, 1e-310, 1e300, -1e-30])
@pytest.mark.parametrize("beta", [0.0, 5e-324, 1e-320, -1e-310, 1e300, 1.7e308])
def test_affine_constants_far_out(gamma, beta):
    for method in METHODS["layernorm"]:
        found = []
        for backend in BACKENDS:
            try:
                found.append(ops.layernorm(X, 0.1, [gamma] * 3, [beta] * 3, method=method, out_scale=0.1,
                                           backend=backend)[0].tolist())  # fmt: skip
            except IntvitError as error:
                found.append(str(error))
        assert found[0] == found[1]


def test_fqvit_layernorm_at_every_output_scale():
    rng = np.random.default_rng(3)
    x = rng.integers(-128, 128, (3, 5))
    n_kept = 0
    for exponent in range(-320, 309, 9):
        gamma, beta = rng.normal(size=5) * 10.0 ** rng.integers(-9, 9), rng.normal(size=5)
        found = []
        for backend in BACKENDS:
            try:
                y, _ = ops.layernorm(x, 0.1, gamma, beta, method="fqvit", out_scale=10.0**exponent, backend=backend)
                found.append(y.tolist())
            except IntvitError as error:
                found.append(str(error))
        assert found[0] == found[1], exponent
        n_kept += isinstance(found[0], list)
    assert n_kept > 60


# -------------------------------------------------------------------------------------- quantizers


@pytest.mark.parametrize("method", ["ivit", "ibert", "fqvit"])
def test_quantizers_refuse_what_has_no_codes(method):
    bad = [math.nan, math.inf, 0.0, -1.0, "1", None, 5e-324, [], [1.0, 2.0], [[1.0]], 1j]
    calls = [lambda s=s: ops.quantize_bias([1.0, 2.0, 3.0], s, [1.0], method=method) for s in bad if s != [[1.0]]]
    calls += [lambda s=s: ops.quantize_bias([1.0, 2.0, 3.0], 1.0, s, method=method) for s in bad]
    calls += [
        lambda: ops.quantize_bias([1.0], 1e-200, [1e-200], method=method),
        lambda: ops.quantize_bias([1.0], 1e200, [1e200], method=method),
        lambda: ops.quantize_bias([[1.0]], 1.0, [1.0], method=method),
        lambda: ops.quantize_bias([1.0, 2.0], 1.0, [[1.0], [2.0]], method=method),
    ]
    for x in ([], [math.nan], [math.inf], ["1"], [None], [1j], [[1.0], [1.0, 2.0]], [[]], "x", [True]):
        calls += [
            lambda x=x: ops.quantize_weight(x, method=method),
            lambda x=x: ops.quantize_bias(x, 1, 1, method=method),
        ]
        calls += [lambda x=x: ops.quantize_activation(x, method=method)]
    calls += [lambda: ops.quantize_weight(1.0, method=method)]
    for low, high in (
        (math.nan, 1),
        (0, math.inf),
        (-math.inf, 0),
        (1, -1),
        ("0", 1),
        (0, [1.0, 2.0]),
        (-1.7e308, 1.7e308),
    ):
        calls += [lambda a=low, b=high: ops.quantize_activation([0.5], method=method, min_val=a, max_val=b)]
    calls += [lambda: ops.quantize_activation(0.5, method=method, ptf=True)]
    if method != "fqvit":
        calls += [lambda: ops.quantize_activation([0.5], method=method, ptf=True)]
    else:
        calls += [lambda: ops.quantize_activation([1e200, -1e200], method=method, ptf=True)]
    for call in calls:
        with pytest.raises(IntvitError) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["ivit", "ibert", "fqvit"])
def test_quantizers_take_every_layout(method):
    x = np.random.default_rng(2).normal(size=(4, 6))
    plain = ops.quantize_weight(x, method=method)
    for y in (
        np.asfortranarray(x),
        x[::-1, ::-1].copy()[::-1, ::-1],
        x.astype(">f8"),
        x.tolist(),
        np.repeat(x, 2, 1)[:, ::2],
    ):
        found = ops.quantize_weight(y, method=method)
        assert all(np.array_equal(a, b) for a, b in zip(found, plain, strict=True))
        assert found[0].dtype == np.int64
    for y in (np.full((2, 3), 1e300), np.full((2, 3), 5e-324), np.zeros((2, 3)), np.array([[1.7e308, -1.7e308]])):
        codes, scale = ops.quantize_weight(y, method=method)
        assert np.abs(codes).max() <= 128
        assert np.isfinite(scale).all()
    codes, _ = ops.quantize_bias([1.7e308, -1.7e308, 0.0], 1e-9, [1e-9], 8, method=method)
    low, high = {"ibert": (-127, 126)}.get(method, (-128, 127))
    assert codes.tolist() == [high, low, 0]


def test_shift_of_any_integers():
    x = np.array([[2**20, -(2**20), 5]] * 2)
    shift = ops.layernorm_shift(x)
    assert shift == 5
    for y in (
        x.astype(np.int32),
        np.asfortranarray(x),
        x[::-1],
        x.astype(">i8"),
        x.tolist(),
        np.broadcast_to(x[0], (4, 3)),
    ):
        assert ops.layernorm_shift(y) == shift
    assert ops.layernorm_shift(np.zeros((0, 3), int), 2) == 2
    assert ops.layernorm_shift(np.zeros((3, 0), int), 2) == 2
    assert ops.layernorm_shift(np.array([[2**64 - 1 - 2**63, 0]], np.uint64)) == 47


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.softmax([[1]], 0.0, method="ivit", out_bits=8),
        lambda: ops.softmax([[1]], -0.1, method="ibert", out_bits=8),
        lambda: ops.softmax([[1]], float("nan"), method="fqvit", out_bits=4),
        lambda: ops.softmax([[1]], 1e-30, method="ivit", out_bits=8),
        lambda: ops.softmax([[1.5]], 0.1, method="ivit", out_bits=8),
        lambda: ops.softmax([[1]], 0.1, method="magic", out_bits=8),
        lambda: ops.softmax([[1]], 0.1, method="ivit", out_bits=8, backend="gpu"),
        lambda: ops.softmax([[2**40]], 0.1, method="ivit", out_bits=8),
        lambda: ops.softmax([[-32768, 32767] * 600], 0.0008, method="fqvit", out_bits=4),
        lambda: ops.gelu([[1, 2]], [0.1, 0.2], method="ivit"),
        lambda: ops.layernorm([[1, 2]], 0.1, [1.0], [1.0], method="ivit"),
        lambda: ops.layernorm([[1, 2]], 0.1, [1.0, np.nan], [1.0, 1.0], method="ivit"),
        lambda: ops.layernorm([[1, 2]], 0.1, [1.0, 1.0], [1.0, 1.0], method="fqvit"),
        lambda: ops.layernorm([[2**35, -(2**35)]], 0.1, [1.0, 1.0], [1.0, 1.0], method="ivit"),
        lambda: ops.layernorm([[1, 2]], 0.1, [1.0, 1.0], [1.0, 1.0], method="ibert", shift=40),
        lambda: ops.requantize([1], 1.0, 0.0, 8),
        lambda: ops.requantize([1], np.inf, 1.0, 8),
        lambda: ops.requantize([1, 2, 3], [1.0, 2.0], 1.0, 8),
        lambda: ops.requantize([1], 1.0, 1.0, 8, residual=[1]),
        lambda: ops.log2_matmul([[16]], [[1]], 1.0),
        lambda: ops.quantize_weight(np.array([[np.nan]])),
        lambda: ops.quantize_weight(np.array([[1.0]]), method="magic"),
        lambda: ops.quantize_weight(np.array([[1.0]]), bits=1),
    ],
)
def test_bad_arguments_raise_one_clear_line(call):
    with pytest.raises(IntvitError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 20
