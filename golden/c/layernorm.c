/* LayerNorm of one row: ten Newton steps, an exact root, an 8-bit multiplier. docs/quantization.md, "LayerNorm". */
#include "intvit.h"

#define BIAS_MAX (INT64_C(1) << 61)

/* |x| < 2**40 and C * (max - min)**2 < 2**62: sums of 62 bits, squares of 62. */
static int spread_fits(const int64_t *x, size_t channels)
{
    int64_t spread;

    if (!intvit_within(x, channels, 41))
        return 0;
    spread = intvit_row_max(x, channels) - intvit_row_min(x, channels);
    return !intvit_wide_less(intvit_wide_of(((INT64_C(1) << 62) - 1) / (int64_t)channels),
                             intvit_wide_multiply(spread, spread));
}

static int64_t mean(const int64_t *x, size_t channels)
{
    int64_t total;

    intvit_mean(x, channels, &total);
    return total;
}

/* ------------------------------------------------------------------------------------------------- I-ViT */

int64_t intvit_newton_sqrt(int64_t variance)
{
    int64_t k = 65536;
    for (int step = 0; step < 10; step++)
        k = (k + variance / k) >> 1;
    return k;
}

int intvit_layernorm_ivit(const struct intvit_layernorm_ivit *p, const int64_t *x, int64_t *y, size_t channels)
{
    int64_t middle, variance = 0, factor;

    if (p->bias.count != channels || !intvit_vector_within(p->bias, channels, -BIAS_MAX, BIAS_MAX))
        return INTVIT_PARAMETER;
    if (!spread_fits(x, channels))
        return INTVIT_INPUT;
    middle = mean(x, channels);
    for (size_t j = 0; j < channels; j++)
        variance += (x[j] - middle) * (x[j] - middle);
    factor = INT64_C(0x7FFFFFFF) / intvit_newton_sqrt(variance);
    for (size_t j = 0; j < channels; j++)
        y[j] = intvit_floor_shift((x[j] - middle) * factor, 1) + p->bias.at[j];
    return INTVIT_OK;
}

/* ------------------------------------------------------------------------------------------------ I-BERT */

int intvit_layernorm_ibert(const struct intvit_layernorm_ibert *p, const int64_t *x, int64_t *y, size_t channels)
{
    int64_t middle, variance = 0, root, factor;

    if (p->shift < 0 || p->shift > 31 || p->bias.count != channels
        || !intvit_vector_within(p->bias, channels, -BIAS_MAX, BIAS_MAX))
        return INTVIT_PARAMETER;
    if (!spread_fits(x, channels))
        return INTVIT_INPUT;
    middle = mean(x, channels);
    for (size_t j = 0; j < channels; j++) {
        int64_t shifted = intvit_floor_shift(x[j] - middle, p->shift);
        variance += shifted * shifted;
    }
    root = intvit_isqrt(variance) << p->shift;
    factor = root > 0 ? (INT64_C(1) << 31) / root : 0; /* a root of 0 leaves the bias */
    for (size_t j = 0; j < channels; j++)
        y[j] = intvit_floor_shift((x[j] - middle) * factor, 1) + p->bias.at[j];
    return INTVIT_OK;
}

/* ------------------------------------------------------------------------------------------------ FQ-ViT */

#define GUARD_BITS 24
#define OFFSET_MAX (INT64_C(1) << 60)
#define MANTISSA_MAX (INT64_C(1) << 61)

/* 1/sqrt of the row's C*sum X**2 - S**2: inverse / 2**exponent, inverse of 61 bits. */
struct reciprocal {
    int64_t inverse, exponent;
};

static int mantissas(struct intvit_vector value, struct intvit_vector exponent, size_t channels)
{
    if (value.count != channels || exponent.count != channels
        || !intvit_vector_within(value, channels, -MANTISSA_MAX, MANTISSA_MAX)
        || !intvit_vector_within(exponent, channels, -1000, 1200))
        return 0;
    for (size_t j = 0; j < channels; j++)
        if (value.at[j] != 0 && value.at[j] < MANTISSA_MAX / 2 && value.at[j] > -MANTISSA_MAX / 2)
            return 0;
    return 1;
}

/* slope / 2**slope_exp is C * gain / 2**gain_exp, but for the rounding of doubles; both are 0 where sign is. */
static int slope_is_gain(const struct intvit_layernorm_fqvit *p, size_t channels, size_t j)
{
    int64_t slope = p->slope.at[j], gain = p->gain.at[j], left = p->gain_exp.at[j] - p->slope_exp.at[j];
    intvit_wide whole, part, apart;

    if (slope < 0 || gain < 0 || (p->sign.at[j] == 0) != (slope == 0))
        return 0;
    if (slope == 0 || gain == 0)
        return slope == gain;
    if (left > 40 || left < -40) /* C < 2**23 moves a mantissa by 24 bits at most */
        return 0;
    whole = intvit_wide_left(intvit_wide_of(slope), left > 0 ? left : 0);
    part = intvit_wide_left(intvit_wide_multiply(gain, (int64_t)channels), left < 0 ? -left : 0);
    apart = intvit_wide_add(whole, intvit_wide_negate(part));
    if (intvit_wide_negative(apart))
        apart = intvit_wide_negate(apart);
    return !intvit_wide_less(intvit_wide_floor_shift(whole, 50), apart);
}

static int fqvit_valid(const struct intvit_layernorm_fqvit *p, size_t channels)
{
    if (p->factor.count != channels || !intvit_vector_within(p->factor, channels, 1, 256) || p->sign.count != channels
        || !intvit_vector_within(p->sign, channels, -1, 1) || !mantissas(p->slope, p->slope_exp, channels)
        || !mantissas(p->gain, p->gain_exp, channels) || !mantissas(p->bias, p->bias_exp, channels))
        return 0;
    for (size_t j = 0; j < channels; j++)
        if (!slope_is_gain(p, channels, j))
            return 0;
    return 1;
}

/* A 31-bit reciprocal of the root and one Newton step; variance in 1 .. 2**62 - 1. */
static struct reciprocal inverse_sqrt(int64_t variance)
{
    int64_t shift = (62 - intvit_bits(variance)) / 2 * 2, aligned = variance << shift, root = intvit_isqrt(aligned);
    int64_t fraction = ((aligned - root * root) << 30) / (2 * root), quotient = (INT64_C(1) << 61) / root;
    int64_t error = (((INT64_C(1) << 61) % root) << 30) - quotient * fraction;
    intvit_wide step = intvit_wide_round(intvit_wide_multiply(error, quotient), 61, INTVIT_HALF_EVEN);
    struct reciprocal found;

    found.inverse = (quotient << 30) + intvit_wide_low(step);
    found.exponent = 91 - shift / 2;
    return found;
}

/* floor(a * b / 2**62) of mantissas that are not negative. */
static int64_t product_high(int64_t a, int64_t b)
{
    return intvit_wide_low(intvit_wide_floor_shift(intvit_wide_multiply(a, b), 62));
}

static int64_t offset_part(intvit_wide value, int64_t count)
{
    if (count < 0)
        value = intvit_wide_left_saturated(value, -count);
    else
        value = intvit_wide_round(value, count, INTVIT_HALF_EVEN);
    return intvit_clamp(intvit_wide_saturated(value), -OFFSET_MAX, OFFSET_MAX);
}

/* y = rhe(sign * M * X + B, 2**N) with the paper's M (8 bits), N (0..31) and B of channel j. */
static int64_t fqvit_element(const struct intvit_layernorm_fqvit *p, struct reciprocal root, int64_t total, int64_t x,
                             size_t j)
{
    int64_t slope = product_high(p->slope.at[j], root.inverse), slope_exp = p->slope_exp.at[j] + root.exponent - 62;
    int64_t n = intvit_clamp(8 - intvit_bits(slope) + slope_exp, 0, 31), m, guard, beta, average, offset;

    if (slope_exp >= n)
        m = intvit_floor_shift(slope, slope_exp - n);
    else
        m = slope > 0 ? 255 : 0; /* a slope of 58 bits and more, shifted left */
    m = intvit_clamp(m, 0, 255);
    guard = intvit_clamp(p->bias_exp.at[j] - n - 1, 0, GUARD_BITS);
    beta = offset_part(intvit_wide_of(p->bias.at[j]), p->bias_exp.at[j] - n - guard);
    average = offset_part(intvit_wide_multiply(p->sign.at[j] * product_high(p->gain.at[j], root.inverse), total),
                          p->gain_exp.at[j] + root.exponent - 62 - n - guard);
    offset = intvit_rhe_shift(beta - average, guard);
    return intvit_rhe_shift(p->sign.at[j] * m * x + offset, n);
}

/* C * |x| * factor < 2**31: then C * sum X**2 is below 2**62. */
int intvit_layernorm_fqvit(const struct intvit_layernorm_fqvit *p, const int64_t *x, int64_t *y, size_t channels)
{
    int64_t total = 0, squares = 0, variance, most = 0, largest;
    struct reciprocal root = {0, 0};

    if (!intvit_within(x, channels, 32))
        return INTVIT_INPUT;
    if (!fqvit_valid(p, channels))
        return INTVIT_PARAMETER;
    for (size_t j = 0; j < channels; j++) {
        int64_t size = x[j] < 0 ? -x[j] : x[j];
        if (size > most)
            most = size;
    }
    largest = most * intvit_row_max(p->factor.at, channels);
    if (largest > INT64_C(0x7FFFFFFF) / (int64_t)channels)
        return INTVIT_INPUT;
    for (size_t j = 0; j < channels; j++) {
        int64_t scaled = x[j] * p->factor.at[j];
        total += scaled;
        squares += scaled * scaled;
    }
    variance = (int64_t)channels * squares - total * total;
    if (variance > 0)
        root = inverse_sqrt(variance);
    for (size_t j = 0; j < channels; j++) {
        if (variance > 0) {
            y[j] = fqvit_element(p, root, total, x[j] * p->factor.at[j], j);
        } else { /* equal values: the offset is all there is */
            int64_t exponent = p->bias_exp.at[j];
            if (p->bias.at[j] != 0 && exponent < 0) /* 61 bits and more, shifted left */
                return INTVIT_RESULT;
            y[j] = intvit_rhe_shift(p->bias.at[j], exponent);
        }
    }
    return INTVIT_OK;
}
