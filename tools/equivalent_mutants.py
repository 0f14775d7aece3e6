"""Mutants of `tools/mutate.py` that cannot change a result, each with the reason why and the search that tried.

An entry stands while no test kills it, its search (in `mutant_searches.py`) tells it from the original by no input, and
its reason holds for every input of every public function and every graph that `graph.check` accepts.
`python tools/mutate.py --verify-equivalents` runs the searches.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Equivalent:
    """Changes of one function, or of a constant of the module, none of which matters for the same reason."""

    file: str
    place: str
    """The function, with those around it, or the constant."""
    changes: dict[str, tuple[str, ...]]
    """Expression -> its changes. The expression is the least around them that has a name in it, as `ast.unparse` writes
    it; its names may be others in the file by now. Where a change occurs more than once in such expressions of the
    function, "(n)" says which is meant."""
    search: str
    reason: str


GENERAL = "another way through the kernels, which gives the same: "

EQUIVALENT = (
    # ------------------------------------------------------------------------------------------ spec
    Equivalent(
        "spec/arith.py",
        "rhe_shift",
        {"shift < 0": ("0 -> 1", "Lt -> LtE")},
        "spec_shifts",
        "a shift of 0 takes the other side, where 2**0 is 1 as well",
    ),
    Equivalent(
        "spec/arith.py",
        "floor_shift",
        {"shift < 0": ("0 -> 1", "Lt -> LtE")},
        "spec_shifts",
        "a shift of 0 takes the other side, where 2**0 is 1 as well",
    ),
    Equivalent(
        "spec/gelu.py",
        "ibert",
        {
            "x > 0": ("Gt -> GtE",),
            "x < 0": ("Lt -> LtE",),
        },
        "gelu_rows",
        "only the sign of x = 0 changes, and everything it meets is multiplied by x",
    ),
    Equivalent(
        "spec/softmax.py",
        "shift_exp_tvm",
        {"n - k < 32": ("32 -> 33", "Lt -> LtE")},
        "deployed_exponents",
        "only shift = 32 takes the other side, and an integer times 2**32 wraps to 0",
    ),
    # ------------------------------------------------------------------------------- kernels: primitives
    Equivalent(
        "kernels/arith.py",
        "shift_left",
        {"shift > 62": ("62 -> 63",)},
        "int64_shifts",
        "at shift = 63 the other two conditions hold for all but 0 (returned above) and -1, and -1 << 63 is the limit",
    ),
    Equivalent(
        "kernels/arith.py",
        "shift_left",
        {"value < INT64_MIN >> shift": ("Lt -> LtE",)},
        "int64_shifts",
        "at equality the value shifted is INT64_MIN, the limit that is returned",
    ),
    Equivalent(
        "kernels/arith.py",
        "rhe_shift",
        {"shift > 62": ("62 -> 63",)},
        "int64_shifts",
        "|value| <= 2**62 is at most half of 2**63, and half rounds to 0: the general lines find that at shift = 63",
    ),
    Equivalent(
        "kernels/arith.py",
        "rhe_product",
        {"s > 62": ("62 -> 63",)},
        "two_word_products",
        "|x * m| <= 2**94 is at most half of 2**(63 + 32), and half rounds to 0: the general lines find that at s = 63",
    ),
    Equivalent(
        "kernels/arith.py",
        "isqrt",
        {
            "11 * ((scaled >> 35) + 67108864)": ("11 -> 10", "11 -> 12"),
            "(scaled >> 35) + 67108864": ("67108864 -> 67108863", "67108864 -> 67108865"),
        },
        "square_roots",
        "a start d off leaves d**2 / (2 - 2 * d) per step: 1/8 becomes 2**-7, 2**-15 and 2**-31 of a root below 2**31, "
        "so that the last step still ends at the floor or one more",
    ),
    Equivalent(
        "kernels/arith.py",
        "isqrt",
        {"range(3)": ("3 -> 4",)},
        "square_roots",
        "a step from the floor of the root, or one more, ends at the floor or one more",
    ),
    Equivalent(
        "kernels/arith.py",
        "wrap32",
        {"value + 2147483648": ("Add -> Sub",)},
        "int64_shifts",
        "2**31 more or less are the same modulo 2**32",
    ),
    # ---------------------------------------------------------------------------- kernels: requantization
    Equivalent(
        "kernels/requantize.py",
        "WIDE_LIMIT",
        {"WIDE_LIMIT = 2 ** 61": ("61 -> 60", "2 -> 1")},
        "requantized",
        GENERAL + "inputs beyond the limit go to `_any_term`",
    ),
    Equivalent(
        "kernels/requantize.py",
        "_below",
        {
            "int(rows.min()) > -limit": ("Gt -> GtE",),
            "int(rows.max()) < limit": ("Lt -> LtE",),
        },
        "requantized",
        "for |x| = 2**61 the words of `doubled_high` stay below 2**62 as well",
    ),
    Equivalent(
        "kernels/requantize.py",
        "Requantize._one",
        {
            "term.last_shift <= 62 - self.bits": ("LtE -> Lt",),
            "62 - self.bits": ("62 -> 61",),
        },
        "requantized",
        GENERAL + "a shift of 62 - bits goes to `_wide_term` or `_any_term`",
    ),
    Equivalent(
        "kernels/requantize.py",
        "Requantize._one",
        {"rows.itemsize < 8": ("8 -> 7",)},
        "requantized",
        "integers have 1, 2, 4 or 8 bytes",
    ),
    Equivalent(
        "kernels/requantize.py",
        "Requantize._two",
        {
            "rows.itemsize < 8": ("8 -> 7 (1)",),
            "residual.itemsize < 8": ("8 -> 7 (2)",),
        },
        "residuals",
        "integers have 1, 2, 4 or 8 bytes",
    ),
    Equivalent(
        "kernels/requantize.py",
        "Requantize._two",
        {"first.shape[1] == second.shape[1] == 1": ("1 -> 0",)},
        "residuals",
        GENERAL + "two terms of one constant each go to `_any_two_terms`",
    ),
    Equivalent(
        "kernels/rounding.py",
        "regular",
        {"np.maximum(np.abs(m), 1)": ("1 -> 2",)},
        "requantized",
        "only m = 0 and |m| = 1 get another limit, 2**61: over 2**(62 - bits) that is 2**(bits - 1), which saturates",
    ),
    Equivalent(
        "kernels/requantize.py",
        "rounded",
        {"x.itemsize < 8": ("8 -> 7",)},
        "residuals",
        "integers have 1, 2, 4 or 8 bytes",
    ),
    Equivalent(
        "kernels/requantize.py",
        "Term.wide",
        {"found[E].min() < 2": ("2 -> 3", "Lt -> LtE")},
        "requantized",
        GENERAL + "a shift of 33 goes to `_any_term`",
    ),
    Equivalent(
        "kernels/requantize.py",
        "add_saturating",
        {"b > 0": ("0 -> -1", "Gt -> GtE")},
        "saturating_sums",
        "only b = 0 takes the other side: a + 0 fits on both",
    ),
    Equivalent(
        "kernels/requantize.py",
        "add_saturating",
        {"a <= INT64_MAX - b": ("LtE -> Lt",)},
        "saturating_sums",
        "at equality the sum is INT64_MAX itself",
    ),
    Equivalent(
        "kernels/requantize.py",
        "add_saturating",
        {"a >= INT64_MIN - b": ("GtE -> Gt",)},
        "saturating_sums",
        "at equality the sum is INT64_MIN itself",
    ),
    # --------------------------------------------------------------------------- kernels: matrix products
    Equivalent(
        "kernels/matmul.py",
        "matmul",
        {"FLOAT64_EXACT - 1": ("1 -> 0", "1 -> 2")},
        "wide_products",
        "parts are one longer or shorter where 2**53 or 2**53 - 1 is a multiple of the largest product: a sum of 2**53 "
        "is a float64 as well",
    ),
    Equivalent(
        "kernels/matmul.py",
        "matmul",
        {"part < 1": ("1 -> 2", "Lt -> LtE")},
        "wide_products",
        GENERAL + "parts of one product each go to `_slow`",
    ),
    Equivalent(
        "kernels/gemm/layout.py",
        "ROW_BLOCK",
        {"8 * MR": ("8 -> 7", "8 -> 9")},
        "tiles",
        "how many rows are packed at a time",
    ),
    Equivalent(
        "kernels/gemm/intrinsics.py",
        "finish_panel.codegen.constants",
        {"NR // 8": ("8 -> 7",)},
        "tiles",
        "32 // 7 is 4, as 32 // 8 is",
    ),
    Equivalent(
        "kernels/gemm/intrinsics.py",
        "finish_panel.codegen",
        {"NR // 8": ("8 -> 7",)},
        "tiles",
        "32 // 7 is 4, as 32 // 8 is",
    ),
    Equivalent(
        "kernels/gemm/pack.py",
        "pack_columns",
        {"packed.itemsize == 2": ("2 -> 3",)},
        "packing",
        GENERAL + "elements are packed one by one instead of in pairs",
    ),
    Equivalent(
        "kernels/gemm/pack.py",
        "pack_columns",
        {
            "2 * s + 1": ("1 -> 2",),
            "2 * s": ("2 -> 3",),
        },
        "packing",
        GENERAL + "pairs that are inside all the same go element by element",
    ),
    Equivalent(
        "kernels/gemm/pack.py",
        "pack_columns",
        {
            "wide < NR": ("Lt -> LtE (1)",),
            "whole < steps": ("Lt -> LtE (2)",),
        },
        "packing",
        "a panel is cleared that is then written whole",
    ),
    Equivalent(
        "kernels/gemm/layout.py",
        "operands",
        {"stride < 0": ("0 -> 1", "Lt -> LtE")},
        "operands",
        "an axis of stride 0 is copied instead of viewed",
    ),
    # -------------------------------------------------------------------------- kernels: softmax and GELU
    Equivalent(
        "kernels/softmax.py",
        "CODED_SUM_MAX",
        {"EXP_MAX // 4": ("4 -> 5",)},
        "narrow_softmax",
        GENERAL + "longer rows go to `_fqvit`",
    ),
    Equivalent(
        "kernels/softmax.py",
        "_fqvit_narrow_kernel",
        {"n_channels * (p.c << last) >= CODED_SUM_MAX": ("GtE -> Gt",)},
        "narrow_softmax",
        "a sum of 2**60 keeps every word of `code_of` below 2**63: the largest, third << k, is below 4 * total + 2 * e",
    ),
    Equivalent(
        "kernels/softmax.py",
        "_fqvit_narrow_kernel",
        {"p.bits > 5": ("5 -> 4", "5 -> 6", "Gt -> GtE")},
        "narrow_softmax",
        GENERAL
        + "codes of 5 bits go to `_fqvit`, or those of 6 bits to `_fqvit_narrow`, whose `code_of` knows no width",
    ),
    Equivalent(
        "kernels/softmax.py",
        "_ivit_narrow_kernel",
        {"int(table.max()) * n_channels >= EXP_MAX": ("GtE -> Gt",)},
        "narrow_softmax",
        "a sum of 2**62 fits int64 as well",
    ),
    Equivalent(
        "kernels/softmax.py",
        "_fqvit",
        {"last = 0": ("0 -> 1 (1)", "0 -> -1 (1)")},
        "softmax_rows",
        "quotients are at least 0; a 1 doubles every exponent and their sum, which the border keeps below 2**62, and "
        "leaves the ratio as it is",
    ),
    Equivalent(
        "kernels/softmax.py",
        "shift_exp",
        {"min(n - q, 31)": ("31 -> 30", "31 -> 32")},
        "gelu_rows",
        "such shifts occur for the maximum's own exponent in ShiftGELU alone: from 2**30 on the sum leaves F = 1, and "
        "2**31 << 32 still fits, as |x0| < 2**30",
    ),
    Equivalent(
        "kernels/softmax.py",
        "shift_exp_tvm",
        {"shift > 31": ("31 -> 32",)},
        "deployed_exponents",
        "an integer below 2**31 times 2**32 fits int64 and wraps to 0 in 32 bits",
    ),
    Equivalent(
        "kernels/gelu.py",
        "_ivit",
        {"limit = 2147483647": ("2147483647 -> 2147483646",)},
        "gelu_rows",
        "2**31 - 1 is prime: limit // sum is another only for a sum of 1, and two exponents of at least 1 are 2",
    ),
    Equivalent(
        "kernels/gelu.py",
        "_ibert",
        {"x < 0": ("0 -> 1", "Lt -> LtE")},
        "gelu_rows",
        "only the sign of x = 0 changes, and everything it meets is multiplied by x",
    ),
    # ------------------------------------------------------------------------------- kernels: LayerNorm
    Equivalent(
        "kernels/layernorm.py",
        "inverse_sqrt",
        {"2305843009213693952 // root": ("2305843009213693952 -> 2305843009213693953",)},
        "inverse_roots",
        "2**61 + 1 is 3 times a prime of 60 bits: no root, of 31 bits, divides it",
    ),
    Equivalent(
        "kernels/layernorm.py",
        "_fqvit_row",
        {"min(max(product_exp - power, 0), 62)": ("62 -> 61", "62 -> 63")},
        "fqvit_layernorm",
        "of a product below 2**61 nothing is left by any of these shifts",
    ),
    Equivalent(
        "kernels/layernorm.py",
        "_fqvit_leading_row",
        {"np.int64(0)": ("0 -> 1 (1)", "0 -> 1 (2)")},
        "fqvit_layernorm",
        "the lowest bit is shifted out where the doubts are looked at",
    ),
    Equivalent(
        "kernels/layernorm.py",
        "_fqvit",
        {
            "least + exponent >= 2": ("2 -> 3", "GtE -> Gt"),
            "most + exponent <= 31": ("31 -> 30", "LtE -> Lt"),
            "room - exponent >= 33": ("33 -> 34", "GtE -> Gt"),
        },
        "fqvit_layernorm",
        GENERAL + "rows go to `_fqvit_row`",
    ),
    Equivalent(
        "kernels/layernorm.py",
        "_fqvit",
        {"room - exponent >= 33": ("33 -> 32",)},
        "fqvit_layernorm",
        "a bias below 2**29, beside a multiplier times input and one times mean below 2**28 each, stays below 2**30",
    ),
    Equivalent(
        "kernels/layernorm.py",
        "LEADING_INPUT",
        {"LEADING_INPUT = 2 ** 20": ("20 -> 19", "2 -> 1")},
        "fqvit_layernorm",
        GENERAL + "rows go to `_fqvit_row`",
    ),
    Equivalent(
        "kernels/layernorm.py",
        "NO_ROOM",
        {"NO_ROOM = 0": ("0 -> 1", "0 -> -1")},
        "fqvit_layernorm",
        "exponents are at least 61: 1 and -1 leave no room either",
    ),
    Equivalent(
        "kernels/layernorm.py",
        "MOST_ROOM",
        {"MOST_ROOM = 144": ("144 -> 143", "144 -> 145")},
        "fqvit_layernorm",
        "two floors by powers of two are one: how a bias is cut in two shifts does not matter, while the second is "
        "below 64",
    ),
    Equivalent(
        "kernels/layernorm.py",
        "_leading",
        {"np.maximum(room - MOST_ROOM, 0)": ("0 -> 1",)},
        "fqvit_layernorm",
        "two floors by powers of two are one: a bit more in the first shift is one less in the second",
    ),
    Equivalent(
        "kernels/layernorm.py",
        "_ivit_tvm",
        {"2147483647 // k": ("2147483647 -> 2147483646",)},
        "deployed_layernorm",
        "2**31 - 1 is prime, and ten steps from 2**16 leave k between 64 and 2**16 for a variance of 32 bits",
    ),
    # ------------------------------------------------------------------------------------- elsewhere
    Equivalent(
        "files/hdf5.py",
        "_heap_fault",
        {"left >= 0": ("0 -> -1 (2)",)},
        "damaged_texts",
        "a step more, after which what is left is below 0 as it was before, and that is the fault",
    ),
    Equivalent(
        "files/hdf5.py",
        "_heap_fault",
        {"at + 1": ("1 -> 2",)},
        "damaged_texts",
        "no mark begins at the second byte of another",
    ),
    Equivalent(
        "spec/taps.py",
        "listing",
        {"max(map(len, taps), default=0)": ("0 -> 1", "0 -> -1")},
        "listings",
        "the default is that of a listing without lines",
    ),
    Equivalent(
        "spec/taps.py",
        "listing",
        {"max(map(len, types.values()), default=0)": ("0 -> 1", "0 -> -1")},
        "listings",
        "the default is that of a listing without lines",
    ),
)
