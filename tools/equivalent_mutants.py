"""Mutants of `tools/mutate.py` that cannot change a result, each with the reason why."""

SHIFT_EXP = "if shift > 31:  # the caller's sum clamps there already"
CLAMPED_EXP = "return 2147483647"
ADD_HIGH = "return a + b if a <= INT64_MAX - b else np.int64(INT64_MAX)"
ADD_LOW = "return a + b if a >= INT64_MIN - b else np.int64(INT64_MIN)"
UNIT_RATIO = "if residual is None and bool(np.all((m == 2**30) & (e == 30))):"
PADDING = "value = np.int64(flat[at + k * step_stride]) + shift if k < depth else 0"
NO_ROW = "store_word(packed, to + s * MR * WORD, np.int32(0))"
RHE_SHIFT = "return value * 2**-shift if shift < 0 else rhe(value, 2**shift)"
FLOOR_SHIFT = "return value * 2**-shift if shift < 0 else value // 2**shift"
PAIRS = "pairs = packed.itemsize == 2 and column_stride == 1"
CLEARED = "if wide < NR or whole < steps:"
GROUP = "g = i % mask.shape[0] if mask.shape[0] > 0 else 0"
FEW_BITS = "if plain is not None and plain[1].max() <= 62 - bits:"
WIDE_INPUT = "if x.dtype.itemsize > 4:"
RECIPROCAL = "reciprocal = 2305843009213693952 // root"
LIMIT = "limit = (2**62 - 1) // np.maximum(np.abs(plain[0]), 1)"
TVM_SHIFT = "return wrap(((r >> 1) - x0) << shift, 32) if shift < 32 else 0"
WRAP = "return ((value + 0x80000000) & 0xFFFFFFFF) - 0x80000000"
KNOWN = "doubt |= product ^ (product + 4294967296)"
LEADING = "leading = np.int32(min(inverse >> 30, 2147483647))"
LEADS = "leads = least + exponent >= 2 and most + exponent <= 31 and room - exponent >= 33"
GAIN_SHIFT = "gain = gain >> np.minimum(between - between.min(), 62)"
CODED_SUM = "if n_channels * (p.c << last) >= CODED_SUM_MAX:"
CODED_BITS = "if p.bits > 5 or (weigh and p.bits != 4):"
ROW_MAX = "if not hidden(mask, i, j) and (not seen or rows[i, j] > top):"
RESIDUAL_WIDTH = "if second is None or residual.dtype.itemsize > 4 or len(m) > 1 or len(residual_m) > 1:"
NO_SLOPE = "n = 31 if product == 0 else clamp(7 - (product.bit_length() - 1 - product_exp), 0, 31)"
BIAS_SHIFT = "longs = np.array([sign * bias >> np.minimum(beyond, 62), room - beyond - 22])"
POISON = "return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))"
NEGATIVE = "if x < 0:  # x = 0 gives 0 whatever p is"
STEP_PAIRS = "pairs = step_stride == 1 and flat.itemsize < packed.itemsize"
WHOLE = "whole = depth // unit if depth_stride == 1 and flat.itemsize == packed.itemsize else 0"
PAIR_FITS = "if pairs and 2 * s + 1 < depth:"
STRIDES = "if any(stride < 0 or stride % x.itemsize for stride in x.strides):"
SMALL = "small = rows.size == 0 or (int(rows.min()) > -WIDE_LIMIT and int(rows.max()) < WIDE_LIMIT)"
CONSTANT = "if first is None or len(m) > 1 or np.abs(addend).max(initial=0) >= 2**31:"
SHIFTS = "if e.min() < 1 or e.max() > 62:"
WIDE_ALONE = "if x.dtype.itemsize > 4 and residual is None:"
SHIFTED = "if shifted is None or shifted[1].min() < 2 or residual is not None or not small:"
CARRIER64 = "return np.float64 if bound < FLOAT64_EXACT else None"
ACCUMULATOR = "return np.int32 if bound <= INT32_MAX else np.int64"
PART = "part = (FLOAT64_EXACT - 1) // max(a_max * b_max, 1)"
NOTHING = "return max(-int(x.min()), int(x.max())) if x.size else 0"
LOG2_TABLE = "return matmul(table[q.astype(np.intp) + 1], v, a_max=1 << LOG2_FRACTION_BITS, b_max=_max_abs(v))"
FROM_SECOND = "for j in range(1, rows.shape[1]):"
NARROW_TOP = "top, seen = np.int64(0), False"
IVIT_BOUND = "if n_channels * top < 2**31:"
SPREAD = "spread = int(rows.max()) - int(rows.min()) if rows.size else 0"
LEFT_LIMIT = "if shift > 62 or value > (INT64_MAX >> shift) or value < (INT64_MIN >> shift):"
SLOPE_SHIFT = "m = min(product >> min(max(product_exp - power, 0), 62), 255)"
WORD = "word = (inverse >> 32) * total + (((inverse & 0xFFFFFFFF) * total) >> 32)"
HIGH_LOW = "high, low = np.int32(word >> 30), np.int32(word & 0x3FFFFFFF)"
WORDS = "words = np.array([sign, slope >> 30, power, gain >> 30, gain & (2**30 - 1)])"
DOUBTS = "doubt, offset_doubt = np.int64(0), np.int64(0)"
LEAST_ROOM = "least_room = int(room.min()) if sign.all() else 0"
ROOM_USED = "_fqvit(rows, factor, constants, *leading, room if largest < LEADING_INPUT else 0, out)"
LARGEST = "largest = max(-int(rows.min(initial=0)), int(rows.max(initial=0))) * max(p.factor)"
IVIT_NARROW = "return _narrow_runner(_ivit_narrow, table, -p.x0, 2**31 - 1, 32 - p.out_bits)"
SPEC_EXP = "return max(floor_shift(floor_shift(r - 2 * x0, q - n), 1), 0)"
SPEC_POLYNOMIAL = "return max((r * (r + b) + c) << (n - q), 0)"
SPEC_TOP = "top = max(seen) if seen else 0"
PRIME = "2**31 - 1 is prime: no sum divides it but itself, and sums from there on have F = 1 anyway"
AWAY = "m = np.where(scaled < 0, np.ceil(scaled - 0.5), np.floor(scaled + 0.5)).astype(np.int64)"
FQVIT_WEIGHTS = (
    '"fqvit": Convention(_fqvit_scale, lambda b: -(2 ** (b - 1)), lambda b: 2 ** (b - 1) - 1, by_reciprocal=False),'
)
ONE_BY_ONE = "elements are packed one by one instead"
ITEMS = "items have 1, 2, 4 or 8 bytes"
UNREAD = "one entry more, which no 8-bit input reaches"
SLOWER = "the general kernel gives the same"
OFFSET = "y = (longs[0, j] >> (longs[1, j] + top - exponent)) - (mean >> (gap + top)) + 2097144"
NEWTON = "root = 11 * ((scaled >> 35) + 67108864)"
WIDER = "what is known only has to lie inside, and does by far"
EQUIVALENT = {
    ("kernels/layernorm.py", RECIPROCAL, "2305843009213693952 -> 2305843009213693953"): "3 times a prime: no root is",
    ("kernels/gemm.py", "if correction != 0:", "0 -> 1"): "sums times 0, or a correction of 1 that none has",
    ("kernels/gemm.py", "if correction != 0:", "0 -> -1"): "sums times 0, or a correction of -1 that none has",
    ("spec/softmax.py", TVM_SHIFT, "32 -> 33 (1)"): "32-bit words: << 32 gives 0",
    ("spec/softmax.py", TVM_SHIFT, "Lt -> LtE"): "32-bit words: << 32 gives 0",
    ("kernels/arith.py", WRAP, "Add -> Sub"): "the same modulo 2**32",
    (
        "kernels/requantize.py",
        LIMIT,
        "1 -> 0 (1)",
    ): "beyond the limit all saturates, one product more is still one word",
    ("kernels/requantize.py", LIMIT, "Sub -> Add"): "beyond the limit all saturates, two products more still fit",
    ("kernels/layernorm.py", KNOWN, "4294967296 -> 4294967297"): WIDER,
    ("kernels/layernorm.py", KNOWN, "4294967296 -> 4294967295"): "what is cut from the two is at most that",
    ("kernels/layernorm.py", LEADING, "2147483647 -> 2147483646"): WIDER,
    ("kernels/layernorm.py", LEADS, "2 -> 3"): SLOWER,
    ("kernels/layernorm.py", LEADS, "31 -> 30"): SLOWER,
    ("kernels/layernorm.py", LEADS, "33 -> 34"): SLOWER,
    ("kernels/layernorm.py", LEADS, "33 -> 32"): "three words below 2**29, 2**28 and 2**28 still add up in 32 bits",
    ("kernels/layernorm.py", LEADS, "GtE -> Gt"): SLOWER,
    ("kernels/layernorm.py", LEADS, "LtE -> Lt"): SLOWER,
    ("kernels/layernorm.py", "LEADING_INPUT = 2**20", "20 -> 19"): SLOWER,
    ("kernels/layernorm.py", "LEADING_INPUT = 2**20", "2 -> 1"): SLOWER,
    ("kernels/layernorm.py", GAIN_SHIFT, "62 -> 63"): "a difference is 0 or 1 but for a gamma of 0",
    ("kernels/layernorm.py", GAIN_SHIFT, "62 -> 61"): "a difference is 0 or 1 but for a gamma of 0",
    ("kernels/layernorm.py", BIAS_SHIFT, "62 -> 63"): "of a bias of 61 bits 0 or -1 is left",
    ("kernels/layernorm.py", BIAS_SHIFT, "62 -> 61"): "of a bias of 61 bits 0 or -1 is left",
    ("kernels/arith.py", POISON, "0 -> 1"): "a flag to the compiler; what 0 gives is clamped by its callers",
    ("kernels/arith.py", POISON, "0 -> -1"): "a flag to the compiler; what 0 gives is clamped by its callers",
    ("kernels/gelu.py", NEGATIVE, "0 -> 1"): "x = 0 gives 0 whatever p is",
    ("kernels/gelu.py", NEGATIVE, "Lt -> LtE"): "x = 0 gives 0 whatever p is",
    ("kernels/softmax.py", "CODED_SUM_MAX = EXP_MAX // 4", "4 -> 5"): SLOWER,
    ("kernels/softmax.py", CODED_SUM, "GtE -> Gt"): "there is room for one more",
    ("kernels/softmax.py", CODED_BITS, "5 -> 4"): SLOWER,
    ("kernels/softmax.py", CODED_BITS, "5 -> 6"): "codes of 6 bits fit the formula and 8-bit storage too",
    ("kernels/softmax.py", CODED_BITS, "Gt -> GtE"): SLOWER,
    ("kernels/softmax.py", "if not mask[g, j] and (not seen or rows[i, j] > top):", "Gt -> GtE"): "the same maximum",
    ("kernels/softmax.py", ROW_MAX, "Gt -> GtE"): "the same maximum",
    ("kernels/requantize.py", RESIDUAL_WIDTH, "4 -> 3"): SLOWER,
    ("kernels/requantize.py", RESIDUAL_WIDTH, "Gt -> GtE"): SLOWER,
    ("spec/layernorm.py", NO_SLOPE, "0 -> -1 (1)"): "a product of 0 has an exponent above 60, which clamps to 31",
    ("kernels/layernorm.py", OFFSET, "2097144 -> 2097145"): WIDER,
    ("kernels/layernorm.py", OFFSET, "2097144 -> 2097143"): WIDER,
    ("kernels/layernorm.py", "offset_doubt |= y ^ (y + 16)", "16 -> 17"): WIDER,
    ("kernels/layernorm.py", "offset_doubt |= y ^ (y + 16)", "16 -> 15"): WIDER,
    ("kernels/layernorm.py", "MOST_ROOM = 144", "144 -> 143"): "a tiny bias is cut to 0 or -1 a bit earlier",
    ("kernels/layernorm.py", "MOST_ROOM = 144", "144 -> 145"): "a shift by 63 leaves 0 or -1 as well",
    ("kernels/arith.py", NEWTON, "11 -> 10"): "three steps make up for a start an eighth off",
    ("kernels/arith.py", NEWTON, "11 -> 12"): "three steps make up for a start an eighth off",
    ("kernels/requantize.py", AWAY, "0 -> 1"): "scaled is 0 or at least 2**30 in size",
    ("kernels/requantize.py", AWAY, "0 -> -1"): "scaled is 0 or at least 2**30 in size",
    ("kernels/requantize.py", AWAY, "Lt -> LtE"): "0 is 0 either way",
    ("kernels/arith.py", NEWTON, "67108864 -> 67108865"): "Newton forgets where it started",
    ("kernels/arith.py", NEWTON, "67108864 -> 67108863"): "Newton forgets where it started",
    ("kernels/arith.py", "for _ in range(3):", "3 -> 4"): "a step more changes nothing",
    ("spec/arith.py", RHE_SHIFT, "0 -> 1"): "2**0 either way",
    ("spec/arith.py", RHE_SHIFT, "Lt -> LtE"): "2**0 either way",
    ("spec/arith.py", FLOOR_SHIFT, "0 -> 1"): "2**0 either way",
    ("spec/arith.py", FLOOR_SHIFT, "Lt -> LtE"): "2**0 either way",
    ("kernels/gemm.py", PAIRS, "2 -> 3"): "elements are packed one by one instead",
    ("kernels/gemm.py", CLEARED, "Lt -> LtE"): "a panel is cleared that is written anyway",
    ("kernels/requantize.py", "if b > 0:", "Gt -> GtE"): "a + 0 fits either way",
    ("kernels/softmax.py", GROUP, "0 -> 1"): "without a mask nobody reads the group, and of one row there is one",
    ("kernels/requantize.py", FEW_BITS, "LtE -> Lt"): "the two-word kernel takes one shift more",
    ("kernels/requantize.py", WIDE_INPUT, "Gt -> GtE"): "the 64-bit kernels take narrower inputs too",
    ("kernels/arith.py", "if s > 62:", "62 -> 63"): "a shift by 63 gives 0 as well",
    ("kernels/gemm.py", PADDING, "0 -> 1"): "the right operand is 0 beyond the depth",
    ("kernels/gemm.py", PADDING, "0 -> -1"): "the right operand is 0 beyond the depth",
    ("kernels/gemm.py", NO_ROW, "0 -> 1"): "sums of rows that are not there are not stored",
    ("kernels/gemm.py", NO_ROW, "0 -> -1"): "sums of rows that are not there are not stored",
    ("kernels/gemm.py", "ROW_BLOCK = 8 * MR", "8 -> 9"): "rows packed at a time: only speed",
    ("kernels/gemm.py", "ROW_BLOCK = 8 * MR", "8 -> 7"): "rows packed at a time: only speed",
    ("kernels/requantize.py", UNIT_RATIO, "2 -> 3"): "the general kernel does what the special one did",
    ("kernels/requantize.py", UNIT_RATIO, "2 -> 1"): "the general kernel does what the special one did",
    ("spec/gelu.py", "sign = (x > 0) - (x < 0)", "Gt -> GtE"): "the sign of 0 multiplies 0",
    ("spec/gelu.py", "sign = (x > 0) - (x < 0)", "Lt -> LtE"): "the sign of 0 multiplies 0",
    ("kernels/arith.py", "return INT64_MAX if value > 0 else INT64_MIN", "Gt -> GtE"): "a value of 0 has returned",
    ("kernels/arith.py", "return INT64_MAX if high > 0 else INT64_MIN", "Gt -> GtE"): "high is far from 0 here",
    ("kernels/softmax.py", "if shift > 31:", "31 -> 32"): "32-bit words: << 32 gives 0",
    ("kernels/softmax.py", SHIFT_EXP, "31 -> 32"): "v << 31 is above the clamp of the sum, and fits int64",
    ("kernels/softmax.py", SHIFT_EXP, "31 -> 30"): "v >= 2: v << 30 is above the clamp of the sum",
    ("kernels/softmax.py", SHIFT_EXP, "Gt -> GtE"): "v >= 2: v << 30 is above the clamp of the sum",
    ("kernels/softmax.py", CLAMPED_EXP, "2147483647 -> 2147483648"): "the sum is clamped to 2147483647",
    ("kernels/softmax.py", CLAMPED_EXP, "2147483647 -> 2147483646"): "(2**31 - 1) // (2**31 - 2) is 1 as well",
    ("kernels/requantize.py", ADD_HIGH, "LtE -> Lt"): "at equality the sum is the limit itself",
    ("kernels/requantize.py", ADD_LOW, "GtE -> Gt"): "at equality the sum is the limit itself",
    # -- a slower or a more general path, which gives the same
    ("kernels/gemm.py", STEP_PAIRS, "1 -> 0"): ONE_BY_ONE,
    ("kernels/gemm.py", PAIRS, "1 -> 0"): ONE_BY_ONE,
    ("kernels/gemm.py", WHOLE, "1 -> 0"): ONE_BY_ONE,
    ("kernels/gemm.py", PAIR_FITS, "1 -> 2"): ONE_BY_ONE,
    ("kernels/gemm.py", PAIR_FITS, "2 -> 3"): ONE_BY_ONE,
    ("kernels/gemm.py", PAIR_FITS, "Mult -> Add"): ONE_BY_ONE,
    ("kernels/gemm.py", "if depth_stride == 1:", "1 -> 0"): "the loops below take every stride",
    ("kernels/gemm.py", "if column_stride == 1:", "1 -> 0"): "the loop below takes every stride",
    ("kernels/gemm.py", STRIDES, "Lt -> LtE"): "a copy instead of a view",
    ("kernels/gemm.py", STRIDES, "0 -> 1"): "a copy instead of a view",
    ("kernels/requantize.py", "WIDE_LIMIT = 2**61", "61 -> 60"): SLOWER,
    ("kernels/requantize.py", "WIDE_LIMIT = 2**61", "2 -> 1"): SLOWER,
    ("kernels/requantize.py", SMALL, "Gt -> GtE"): "2**61 itself still fits",
    ("kernels/requantize.py", SMALL, "Lt -> LtE"): "2**61 itself still fits",
    ("kernels/requantize.py", CONSTANT, "Gt -> GtE"): SLOWER,
    ("kernels/requantize.py", CONSTANT, "1 -> 0"): SLOWER,
    ("kernels/requantize.py", CONSTANT, "0 -> 1"): "only of an empty array",
    ("kernels/requantize.py", CONSTANT, "0 -> -1"): "only of an empty array",
    ("kernels/requantize.py", CONSTANT, "31 -> 30"): SLOWER,
    ("kernels/requantize.py", CONSTANT, "31 -> 32"): "64-bit sums have room for more",
    ("kernels/requantize.py", CONSTANT, "2 -> 1"): SLOWER,
    ("kernels/requantize.py", CONSTANT, "2 -> 3"): "64-bit sums have room for more",
    ("kernels/requantize.py", CONSTANT, "GtE -> Gt"): "64-bit sums have room for more",
    ("kernels/requantize.py", SHIFTS, "1 -> 2"): SLOWER,
    ("kernels/requantize.py", SHIFTS, "Lt -> LtE"): SLOWER,
    ("kernels/requantize.py", SHIFTS, "62 -> 61"): SLOWER,
    ("kernels/requantize.py", SHIFTS, "Gt -> GtE"): SLOWER,
    ("kernels/requantize.py", "if b > 0:", "0 -> -1"): "a + 0 fits either way",
    ("kernels/requantize.py", "width = 64 if bits is None else bits", "64 -> 65"): "from 64 bits on nothing saturates",
    ("kernels/requantize.py", "if bits > 63:", "63 -> 62"): SLOWER,
    ("kernels/requantize.py", "if bits > 63:", "Gt -> GtE"): SLOWER,
    ("kernels/requantize.py", UNIT_RATIO, "30 -> 29 (1)"): "with e = 30, m is 2**30 or more than that",
    ("kernels/requantize.py", WIDE_ALONE, "4 -> 3"): "the 64-bit kernels take narrower inputs too",
    ("kernels/requantize.py", WIDE_ALONE, "4 -> 5"): ITEMS,
    ("kernels/requantize.py", WIDE_ALONE, "Gt -> GtE"): "the 64-bit kernels take narrower inputs too",
    ("kernels/requantize.py", WIDE_INPUT, "4 -> 5"): ITEMS,
    ("kernels/requantize.py", WIDE_INPUT, "4 -> 3"): "the 64-bit kernels take narrower inputs too",
    ("kernels/requantize.py", RESIDUAL_WIDTH, "4 -> 5"): ITEMS,
    ("kernels/requantize.py", RESIDUAL_WIDTH, "1 -> 0"): SLOWER,
    ("kernels/requantize.py", FEW_BITS, "62 -> 61"): SLOWER,
    ("kernels/requantize.py", FEW_BITS, "62 -> 63"): "the limit still saturates at 2**(bits-1)",
    ("kernels/requantize.py", LIMIT, "62 -> 61"): "a limit of 2**61 saturates as well",
    ("kernels/requantize.py", LIMIT, "1 -> 2"): "beyond the limit all saturates; |m| is 0 or at least 2**30",
    ("kernels/requantize.py", SHIFTED, "2 -> 3"): SLOWER,
    ("kernels/requantize.py", SHIFTED, "Lt -> LtE"): SLOWER,
    ("kernels/matmul.py", "FLOAT32_EXACT = 2**24", "24 -> 23"): "a wider carrier",
    ("kernels/matmul.py", "FLOAT32_EXACT = 2**24", "2 -> 1"): "a wider carrier",
    ("kernels/matmul.py", "FLOAT64_EXACT = 2**53", "53 -> 52"): "a wider carrier, more parts",
    ("kernels/matmul.py", "FLOAT64_EXACT = 2**53", "2 -> 1"): "a wider carrier, more parts",
    ("kernels/matmul.py", "INT32_MAX = 2**31 - 1", "31 -> 30"): "a wider accumulator",
    ("kernels/matmul.py", "INT32_MAX = 2**31 - 1", "2 -> 1"): "a wider accumulator",
    ("kernels/matmul.py", "INT32_MAX = 2**31 - 1", "1 -> 2"): "a wider accumulator",
    ("kernels/matmul.py", "if bound < FLOAT32_EXACT:", "Lt -> LtE"): "2**24 itself is exact",
    ("kernels/matmul.py", CARRIER64, "Lt -> LtE"): "2**53 itself is exact",
    ("kernels/matmul.py", ACCUMULATOR, "LtE -> Lt"): "a wider accumulator",
    ("kernels/matmul.py", PART, "1 -> 0 (1)"): "2**53 itself is exact",
    ("kernels/matmul.py", PART, "1 -> 2"): "shorter parts",
    ("kernels/matmul.py", PART, "Sub -> Add"): "a part is at most 2**53 long",
    ("kernels/matmul.py", "if part < 1:", "1 -> 2"): SLOWER,
    ("kernels/matmul.py", "if part < 1:", "Lt -> LtE"): SLOWER,
    ("kernels/matmul.py", NOTHING, "0 -> 1"): "a bound of no elements",
    ("kernels/matmul.py", NOTHING, "0 -> -1"): "a bound of no elements",
    ("kernels/matmul.py", LOG2_TABLE, "1 -> 2"): "a larger bound, a wider carrier",
    ("kernels/softmax.py", "if int(table.max()) * n_channels >= EXP_MAX:", "GtE -> Gt"): "there is room for one more",
    # -- the same value
    ("spec/softmax.py", TVM_SHIFT, "32 -> 33 (2)"): "what follows wraps modulo 2**32 anyway",
    ("kernels/gemm.py", PADDING, "Lt -> LtE"): "the right operand is 0 beyond the depth",
    ("kernels/quantize.py", FQVIT_WEIGHTS, "2 -> 3 (1)"): "FQ-ViT's scale leaves no weight below the least code",
    ("kernels/quantize.py", FQVIT_WEIGHTS, "1 -> 0 (1)"): "FQ-ViT's scale leaves no weight below the least code",
    ("kernels/quantize.py", FQVIT_WEIGHTS, "Sub -> Add (1)"): "FQ-ViT's scale leaves no weight below the least code",
    ("spec/softmax.py", "SUM_MAX = 2**31 - 1", "1 -> 2"): PRIME,
    ("kernels/softmax.py", "limit = 2147483647", "2147483647 -> 2147483646"): PRIME,
    ("kernels/gelu.py", "limit = 2147483647", "2147483647 -> 2147483646"): PRIME,
    ("kernels/softmax.py", IVIT_NARROW, "1 -> 2"): PRIME,
    ("spec/softmax.py", SPEC_EXP, "0 -> 1"): "every exponent is at least 1",
    ("spec/softmax.py", SPEC_EXP, "0 -> -1"): "every exponent is at least 1",
    ("spec/softmax.py", SPEC_POLYNOMIAL, "0 -> -1"): "the polynomial has no value below 0",
    ("kernels/softmax.py", "return max(r * (r + b) + c, 0)", "0 -> -1"): "the polynomial has no value below 0",
    ("spec/softmax.py", SPEC_TOP, "0 -> 1"): "of a row that is hidden whole nobody reads it",
    ("spec/softmax.py", SPEC_TOP, "0 -> -1"): "of a row that is hidden whole nobody reads it",
    ("kernels/gemm.py", "for group in range(NR // 8):", "8 -> 7"): "32 // 7 is 4 as well",
    ("kernels/layernorm.py", "factor = 2147483647 // k", "2147483647 -> 2147483646"): "a prime, and k is 64 and more",
    ("kernels/layernorm.py", "k = 65536", "65536 -> 65537 (2)"): "after ten steps from a variance of 32 bits the same",
    ("kernels/tables.py", "table = np.zeros(256, found.dtype)", "256 -> 257"): UNREAD,
    ("kernels/tables.py", "square = np.zeros((256, 256), found.dtype)", "256 -> 257"): UNREAD,
    ("kernels/softmax.py", "table = np.empty(256, np.int64)", "256 -> 257"): UNREAD,
    ("kernels/softmax.py", "table = np.zeros(256, np.int64)", "256 -> 257"): UNREAD,
    ("kernels/tables.py", FROM_SECOND, "1 -> 0"): "the maximum met its first element already",
    ("kernels/gelu.py", FROM_SECOND, "1 -> 0"): "the maximum met its first element already",
    ("kernels/softmax.py", FROM_SECOND, "1 -> 0"): "the maximum met its first element already",
    ("kernels/softmax.py", "EMPTY_MASK = np.zeros((0, 0), np.bool_)", "0 -> 1 (2)"): "a mask of no rows",
    ("kernels/softmax.py", "top, seen = 0, False", "0 -> 1"): "of a row that is hidden whole nobody reads it",
    ("kernels/softmax.py", "top, seen = 0, False", "0 -> -1"): "of a row that is hidden whole nobody reads it",
    ("kernels/softmax.py", NARROW_TOP, "0 -> 1"): "of a row that is hidden whole nobody reads it",
    ("kernels/softmax.py", NARROW_TOP, "0 -> -1"): "of a row that is hidden whole nobody reads it",
    ("kernels/softmax.py", "if t < n * x0:", "Lt -> LtE"): "t = n * x0 either way",
    ("kernels/softmax.py", IVIT_BOUND, "31 -> 30"): "below 31 bits both forms give the same",
    ("kernels/softmax.py", IVIT_BOUND, "2 -> 1"): "below 31 bits both forms give the same",
    ("kernels/softmax.py", "last = 0", "0 -> 1"): "a common factor more: the ratio is the same",
    ("kernels/softmax.py", "last = 0", "0 -> -1"): "quotients are at least 0",
    ("kernels/softmax.py", SPREAD, "0 -> 1"): "of no rows",
    ("kernels/softmax.py", SPREAD, "0 -> -1"): "of no rows",
    ("kernels/arith.py", "if bits >= 64:", "64 -> 65"): "saturation at 64 bits is none",
    ("kernels/arith.py", "if bits >= 64:", "GtE -> Gt"): "saturation at 64 bits is none",
    (
        "kernels/arith.py",
        LEFT_LIMIT,
        "62 -> 63",
    ): "63 bits further all but 0 and -1 saturate, and -1 is the limit itself",
    ("kernels/arith.py", LEFT_LIMIT, "Lt -> LtE"): "at equality the value is the limit itself",
    ("kernels/arith.py", "return INT64_MAX if value > 0 else INT64_MIN", "0 -> -1"): "0 has returned, -1 is not above",
    ("kernels/arith.py", "return INT64_MAX if high > 0 else INT64_MIN", "0 -> 1"): "high is far from 0 here",
    ("kernels/arith.py", "return INT64_MAX if high > 0 else INT64_MIN", "0 -> -1"): "high is far from 0 here",
    ("kernels/arith.py", "if shift > 62:", "62 -> 63"): "a shift by 63 gives 0 as well",
    ("kernels/layernorm.py", SLOPE_SHIFT, "62 -> 61"): "of a product of 61 bits nothing is left",
    ("kernels/layernorm.py", SLOPE_SHIFT, "62 -> 63"): "of a product of 61 bits nothing is left",
    (
        "kernels/layernorm.py",
        WORD,
        "4294967295 -> 4294967294",
    ): "a bit of 2**-61 of the mean; what is known only has to lie inside",
    (
        "kernels/layernorm.py",
        HIGH_LOW,
        "1073741823 -> 1073741822",
    ): "a bit of 2**-60 of the mean; what is known only has to lie inside",
    ("kernels/layernorm.py", WORDS, "1 -> 2"): "a bit of 2**-60 of a gain; what is known only has to lie inside",
    ("kernels/layernorm.py", DOUBTS, "0 -> 1"): "bits below those that are looked at",
    ("kernels/layernorm.py", "if doubt >> 53 != 0:", "53 -> 52"): SLOWER,
    ("kernels/layernorm.py", "if offset_doubt >> 22 != 0:", "22 -> 21"): SLOWER,
    (
        "kernels/layernorm.py",
        "beyond = np.maximum(room - MOST_ROOM, 0)",
        "0 -> 1",
    ): "a bit of 2**-60 of a bias; what is known only has to lie inside",
    ("kernels/layernorm.py", LEAST_ROOM, "0 -> 1"): "less than 33 either way",
    ("kernels/layernorm.py", LEAST_ROOM, "0 -> -1"): "less than 33 either way",
    ("kernels/layernorm.py", ROOM_USED, "0 -> 1"): "less than 33 either way",
    ("kernels/layernorm.py", ROOM_USED, "0 -> -1"): "less than 33 either way",
    ("kernels/layernorm.py", LARGEST, "0 -> 1"): "a bound: 1 is no limit, -1 gives way to what the rows hold",
    ("kernels/layernorm.py", LARGEST, "0 -> -1"): "a bound: 1 is no limit, -1 gives way to what the rows hold",
}
"""Changes that cannot change a result, (file, line, change) -> why; listed one by one, never judged by a rule.

Where a change occurs more than once and "(n)" follows, only the n-th is meant.
"""
