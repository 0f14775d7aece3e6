"""Named intermediates of the spec: every method has them, they are what a hand computes, and they change nothing."""

import ast
import importlib
import inspect
import pkgutil
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from intvit import spec
from intvit.graph import operators
from intvit.kernels import registry
from intvit.spec import gelu, layernorm, matmul, pool, requantize, rmsnorm, silu, softmax
from intvit.spec.taps import OUTPUT, integer_type, intermediates, listening, listing, names, tap

SOFTMAX_ROWS = [[12, -3, 40], [0], [-128, 127, 5, 5]]
ROWS = [[12, -3, 40], [-90, -128, -5], [0, 127, 1], [7, 7, 7]]
WIDE_ROW = [-32768, 32767, 5]
FACTS = {"out_bits": 8, "gamma": [1.0, -0.5, 2.0], "beta": [0.1, 0.0, -3.0], "shift": 2, "out_scale": 0.05}


def calls(method):
    """(row, parameters, mask ...) on which a method is tried."""
    params, _ = method.constants(0.05, FACTS, method.uniform)
    if not operators.get(method.operator).masked:
        wide = [WIDE_ROW] if operators.get(method.operator).statistic else []
        yield from ((row, params) for row in ROWS + wide)
        return
    for row in SOFTMAX_ROWS:
        for mask in (None, [True] * len(row), [j % 2 == 1 for j in range(len(row))]):
            yield row, params, mask


def names_of(function, *args):
    """Names that a call taps; fails where there is none, or one that is not documented."""
    found = list(intermediates(function, *args))
    assert found[-1] == OUTPUT
    assert len(found) > 1, f"{function.__module__}.{function.__qualname__} names none of its intermediates"
    return set(found[:-1])


@pytest.mark.parametrize("method", registry.methods(), ids=lambda m: m.id)
def test_every_method_names_its_intermediates(method):
    for arguments in calls(method):
        assert names_of(method.spec, *arguments) <= set(names()[method.operator])


@pytest.mark.parametrize("operator", operators.with_methods())
def test_every_documented_name_is_tapped(operator):
    found = set()
    for method in registry.methods(operator):
        found |= set().union(*(names_of(method.spec, *arguments) for arguments in calls(method)))
    assert found == set(names()[operator])


def test_a_method_without_taps_is_found():
    with pytest.raises(AssertionError, match="names none of its intermediates"):
        names_of(lambda row, params: [x + 1 for x in row], [1, 2], None)


@pytest.mark.parametrize("method", registry.methods(), ids=lambda m: m.id)
def test_listening_changes_no_output(method):
    for arguments in calls(method):
        alone = method.spec(*arguments)
        assert intermediates(method.spec, *arguments)[OUTPUT] == alone == method.spec(*arguments)


def test_elements_stand_in_the_order_of_the_row():
    """One more than the row in ShiftGELU: the last belongs to 0 - x_max. Two for each in I-BERT's SiLU: x and 0."""
    for method in registry.methods():
        for row, *rest in calls(method):
            for name, values in intermediates(method.spec, row, *rest).items():
                lengths = {1, 10 if name == "step" else len(row)}
                if operators.get(method.operator).pointwise:
                    lengths |= {len(row) + 1, 2 * len(row)}
                assert len(values) in lengths, (method.id, name)
    params, _ = registry.get("softmax", "ivit").lower(0.05, out_bits=8)
    taps = intermediates(softmax.ivit, [12, -3, 40, 7], params, [False, False, False, True])
    assert (taps["x_max"], taps["delta"]) == ([40], [-28, -43, 0, None])
    assert taps["argument"] == [-40, -62, 0, -300]


# One row of every function, worked out by hand from the formulas of docs/quantization.md

POLYNOMIAL = (-10, 18, 100, 4)  # x0, b, c, n: at 0, -3, -4 it is 100, 55, 44
FQVIT_LAYERNORM = registry.get("layernorm", "fqvit").lower(0.1, gamma=[1, 1], beta=[0, 0], out_scale=2.0**-5)[0]
WORKED = [
    (
        softmax.ivit, ([0, -1, -4], softmax.IvitSoftmax(-1, 15, 8)),
        {
            "x_max": [0], "delta": [0, -1, -4],
            "argument": [0, -1, -5],  # -1 - 1 + 1; -4 - 2 + 1
            "quotient": [0, 1, 5], "remainder": [0, 0, 0],
            "exp": [2**15, 2**14, 2**10],  # (2 << 15 - q) >> 1
            "sum": [50176], "factor": [42799], "product": [1402437632, 701218816, 43826176], "y": [83, 41, 2],
        },
    ),
    (
        softmax.ibert, ([5, 2, -9], softmax.IbertSoftmax(*POLYNOMIAL, 2**30, 30, 8)),
        {
            "x_max": [5], "delta": [0, -3, -14], "argument": [0, -3, -14],
            "quotient": [0, 0, 1], "remainder": [0, -3, -4],
            "polynomial": [100, 55, 44],  # r * (r + 18) + 100
            "exp": [1600, 880, 352],  # << 4 - q
            "exp16": [1600, 880, 352], "sum": [2832], "factor": [1516584],
            "product": [2426534400, 1334593920, 533837568], "y": [144, 79, 31],
        },
    ),
    (
        softmax.fqvit, ([5, 2, -9], softmax.FqvitSoftmax(*POLYNOMIAL, 4)),
        {
            "x_max": [5], "delta": [0, -3, -14], "argument": [0, -3, -14],
            "quotient": [0, 0, 1], "remainder": [0, -3, -4], "polynomial": [100, 55, 44], "exp": [1600, 880, 352],
            "sum": [2832],
            "ratio": [2, 3, 8],  # 1.77, 3.22, 8.05
            "y": [1, 2, 3],  # 3 is 1.5 * 2: up
        },
    ),
    (
        softmax.ivit_tvm, ([0, -1, -4], softmax.IvitTvmSoftmax(-1, 16)),
        {
            "x_max": [0], "delta": [0, -1, -4], "argument": [0, -1, -5],
            "quotient": [0, 1, 5], "remainder": [0, 0, 0],
            "exp": [2**16, 2**15, 2**11],  # 1 << 16 - q
            "sum": [100352], "factor": [21399], "product": [1402404864, 701202432, 43825152], "y": [83, 41, 2],
        },
    ),
    (
        gelu.ivit, ([1, 0], gelu.IvitGelu(-1, 23, 8)),
        {
            "x_max": [1], "delta": [0, -1, -1], "argument": [0, -1, -1],
            "quotient": [0, 1, 1], "remainder": [0, 0, 0], "exp": [2**23, 2**22, 2**22],
            "sum": [12582912, 2**23], "factor": [170, 255], "product": [1426063360, 1069547520],
            "sigmoid": [85, 63], "y": [85, 0],
        },
    ),
    (
        gelu.ibert, ([3, -20, 0], gelu.IbertGelu((-10,), (-120,), (-30,), 1)),
        {
            "clipped": [3, 10, 0],
            "polynomial": [-71, -120, -20],  # 49 - 120, 0 - 120, 100 - 120
            "erf": [-36, 60, 0],  # -71 >> 1, 120 >> 1
            "gate": [-66, 30, -30], "y": [-198, -600, 0],
        },
    ),
    (
        gelu.ivit_tvm, ([1, 0], gelu.IvitTvmGelu(-1, 23)),
        {
            "x_max": [1], "delta": [0, -1, -1], "argument": [0, -1, -1],
            "quotient": [0, 1, 1], "remainder": [0, 0, 0], "exp": [2**23, 2**22, 2**22],
            "sum": [12582912, 2**23], "factor": [170, 255], "product": [1426063360, 1069547520],
            "sigmoid": [85, 63], "y": [85, 0],
        },
    ),
    (
        layernorm.ivit, ([1, -1], layernorm.IvitLayerNorm((5, -5))),
        {
            "sum": [0], "mean": [0], "delta": [1, -1], "variance": [2],
            "step": [32768, 16384, 8192, 4096, 2048, 1024, 512, 256, 128, 64], "root": [64], "factor": [33554431],
            "product": [33554431, -33554431], "normalized": [16777215, -16777216], "y": [16777220, -16777221],
        },
    ),
    (
        layernorm.ibert, ([7, -1, 3, 3], layernorm.IbertLayerNorm((0, 0, 9, -9), 1)),
        {
            "sum": [12], "mean": [3], "delta": [4, -4, 0, 0], "shifted": [2, -2, 0, 0], "variance": [8],
            "root": [4],  # isqrt(8) << 1
            "factor": [2**29], "product": [2**31, -(2**31), 0, 0], "normalized": [2**30, -(2**30), 0, 0],
            "y": [2**30, -(2**30), 9, -9],
        },
    ),
    (
        # A = 2 / (sqrt(1) / 32) = 64 = 2**59 / 2**53: N = 7 - 6, M = 64 * 2; the mean takes 1 / (1 / 32) * 2 = 64
        layernorm.fqvit, ([1, 0], FQVIT_LAYERNORM),
        {
            "scaled": [1, 0], "sum": [1], "square_sum": [1], "variance": [1],
            "aligned": [2**60], "root": [2**30], "fraction": [0], "reciprocal": [2**31], "correction": [0],
            "inverse": [2**61], "inverse_exp": [61],
            "slope": [2**59, 2**59], "shift": [1, 1], "multiplier": [128, 128],
            "beta_term": [0, 0], "mean_term": [2**30, 2**30], "offset": [-64, -64],  # 24 guard bits
            "product": [128, 0], "total": [64, -64], "y": [32, -32],
        },
    ),
    (
        layernorm.ivit_tvm, ([1, -1], layernorm.IvitTvmLayerNorm((5, -5))),
        {
            "sum": [0], "mean": [0], "delta": [1, -1], "variance": [2],
            "step": [32768, 16384, 8192, 4096, 2048, 1024, 512, 256, 128, 64], "root": [64], "factor": [33554431],
            "product": [33554431, -33554431], "normalized": [16777215, -16777215], "y": [16777220, -16777220],
        },
    ),
    (
        silu.ibert, ([3], softmax.IbertSoftmax(*POLYNOMIAL, 2**30, 30, 8)),
        {
            "x_max": [3], "delta": [0, -3], "argument": [0, -3], "quotient": [0, 0], "remainder": [0, -3],
            "polynomial": [100, 55], "exp": [1600, 880], "exp16": [1600, 880], "sum": [2480], "factor": [1731841],
            "product": [2770945600, 1524020080],
            "sigmoid": [165],  # of 256: the real one of 3 steps is 1600 / 2480
            "y": [495],
        },
    ),
    (
        rmsnorm.ivit, ([1, -1], rmsnorm.IvitRmsNorm()),
        {
            "square_sum": [2], "step": [32768, 16384, 8192, 4096, 2048, 1024, 512, 256, 128, 64], "root": [64],
            "factor": [33554431], "product": [33554431, -33554431], "y": [16777215, -16777216],
        },
    ),
    (
        rmsnorm.ibert, ([7, -1, 3, 3], rmsnorm.IbertRmsNorm(1)),
        {
            "shifted": [3, -1, 1, 1], "square_sum": [12],
            "root": [6],  # isqrt(12) << 1
            "factor": [357913941], "product": [2505397587, -357913941, 1073741823, 1073741823],
            "y": [1252698793, -178956971, 536870911, 536870911],
        },
    ),
    (
        requantize.requantize, ([3, -5], [3 * 2**29] * 2, [30] * 2, 4),  # 4.5 and -7.5, to even
        {"product": [9 * 2**29, -15 * 2**29], "rounded": [4, -8], "y": [4, -8]},
    ),
    (matmul.linear, ([[1, 2]], [[3, 4], [5, 6]], [1, -1]), {"sum": [11, 17], "y": [12, 16]}),
    (matmul.matmul, ([[1, 2], [3, 4]], [[5], [6]]), {"sum": [17, 39], "y": [17, 39]}),
    (
        matmul.log2_matmul, ([[0, 3, -1]], [[8], [8], [8]]),
        {"weight": [32768, 4096, 0], "sum": [294912], "y": [294912]},
    ),
    (pool.mean, ([3, 4, 4],), {"sum": [11], "y": [4]}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "arguments", "expected"), WORKED, ids=[f"{w[0].__module__}.{w[0].__name__}" for w in WORKED]
)
def test_intermediates_of_a_worked_row(function, arguments, expected):
    found = intermediates(function, *arguments)
    assert found == expected
    assert list(found) == list(expected)  # in the order of computing


def test_every_method_has_a_worked_row():
    assert {m.spec for m in registry.methods()} <= {function for function, _, _ in WORKED}


def test_requantize_with_a_residual():
    """1.5 * 10 + 0.75 * 3: 15 + 2.25, the sum saturated at 5 bits."""
    found = intermediates(
        requantize.requantize, [10], [3 * 2**29], [30], 5, residual=[3], residual_m=[3 * 2**29], residual_e=[31]
    )
    assert found == {
        "product": [15 * 2**30], "rounded": [15], "residual_product": [9 * 2**29], "residual_rounded": [2],
        "total": [17], "y": [15],
    }  # fmt: skip


def test_every_tap_of_the_source_has_a_documented_name():
    """Each `tap` names its signal with a literal of its module's list, and its value is used."""
    for found in pkgutil.iter_modules(spec.__path__):
        module = importlib.import_module(f"intvit.spec.{found.name}")
        if found.name == "taps" or not hasattr(module, "tap"):
            continue
        tree = ast.parse(inspect.getsource(module))
        taps = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "tap"]
        allowed = set().union(*module.TAPS.values())
        assert taps
        assert {t.args[0].value for t in taps} <= allowed
        unused = [n for n in ast.walk(tree) if isinstance(n, ast.Expr) and n.value in taps]
        assert not unused, "what only a tap computes is no part of the arithmetic"


# ----------------------------------------------------------------------------------------- listening


def test_tap_gives_back_the_very_value():
    values = [1, [2, None]]
    assert tap("sum", values) is values
    with listening() as taps:
        assert tap("sum", values) is values
        values.append(9)
    assert taps == {"sum": [1, 2, None]}


def test_nobody_listens_before_and_after():
    params = softmax.IvitSoftmax(-20, 15, 8)
    with listening() as taps:
        pass
    softmax.ivit([1, 2], params)
    assert taps == {}
    with pytest.raises(ValueError, match="max"), listening() as taps:
        softmax.ivit([], params)
    softmax.ivit([1, 2], params)
    assert taps == {}


def test_an_inner_listener_takes_what_it_hears():
    with listening() as outer:
        tap("sum", 1)
        with listening() as inner:
            tap("sum", 2)
        tap("sum", 3)
    assert (outer, inner) == ({"sum": [1, 3]}, {"sum": [2]})


def test_threads_listen_for_themselves():
    params, together = softmax.IvitSoftmax(-20, 15, 8), threading.Barrier(4)

    def listen(top):
        row = [top, top - 7]
        with listening() as taps:
            together.wait(30)
            for _ in range(200):
                softmax.ivit(row, params)
        return taps["x_max"] == [top] * 200 and taps["delta"] == [0, -7] * 200

    with ThreadPoolExecutor(4) as pool_:
        assert all(pool_.map(listen, range(4)))


def test_a_thread_that_does_not_listen_is_not_heard():
    with listening() as taps:
        thread = threading.Thread(target=softmax.ivit, args=([1, 2], softmax.IvitSoftmax(-20, 15, 8)))
        thread.start()
        thread.join()
    assert taps == {}


def test_integer_type_is_the_narrowest():
    ends = ([0, 255], [0], [1], [-1, 255], [-1], [-1, 0], [-128], [-128, 127], [-129], [None], [])
    assert [integer_type(values) for values in ends] == ["u8", "u1", "u1", "s9", "s1", "s1", "s8", "s8", "s9", "-", "-"]
    rng = random.Random(1)
    for _ in range(300):
        values = [rng.randrange(-(2 ** rng.randrange(70)), 2 ** rng.randrange(1, 70)) for _ in range(3)]
        kind, bits = integer_type(values)[0], int(integer_type(values)[1:])
        assert kind == ("s" if min(values) < 0 else "u")

        def fits(n, kind=kind, values=values):
            low, high = (-(2 ** (n - 1)), 2 ** (n - 1) - 1) if kind == "s" else (0, 2**n - 1)
            return low <= min(values) and max(values) <= high

        assert fits(bits)
        assert bits == 1 or not fits(bits - 1)


def test_a_listing_has_a_line_for_each_name():
    taps = {"delta": [-28, None, 0], "sum": [11]}
    assert listing(taps).splitlines() == ["delta  s6  -28 - 0", "sum    u4  11"]
    assert listing({"sum": [11], "y": [-2000]}).splitlines() == ["sum  u4   11", "y    s12  -2000"]
    assert listing({}) == ""
