/* Softmax of one row: Shiftmax, I-BERT's, Log-Int-Softmax. docs/quantization.md, "Softmax". */
#include "intvit.h"

#define SUM_MAX INT64_C(0x7FFFFFFF)
#define X0_LEAST (1 - (INT64_C(1) << 30))

static int in(int64_t value, int64_t low, int64_t high)
{
    return low <= value && value <= high;
}

/* The largest value that is not masked; of a row that is masked whole nobody reads it. */
static int64_t top(const int64_t *x, const int64_t *mask, size_t channels)
{
    int64_t most = INT64_MIN;
    if (mask == NULL)
        return intvit_row_max(x, channels);
    for (size_t j = 0; j < channels; j++)
        if (!mask[j] && x[j] > most)
            most = x[j];
    return most;
}

/* x - max; of a masked position what is below every argument, which is the saturation value n * x0. */
static int64_t delta(const int64_t *x, const int64_t *mask, size_t j, int64_t most)
{
    return mask != NULL && mask[j] ? -(INT64_C(1) << 40) : x[j] - most;
}

/* ------------------------------------------------------------------------------------------------- I-ViT */

/* delta of 42 bits. A count above 31 is one of ShiftGELU's e(-max), whose sum is clamped at 2**31 - 1 anyway. */
int64_t intvit_shift_exp(int64_t d, int64_t x0, int64_t n)
{
    int64_t argument = d + intvit_floor_shift(d, 1) - intvit_floor_shift(d, 4), quotient, remainder;

    if (argument < n * x0)
        argument = n * x0;
    quotient = intvit_floor_divide(argument, x0);
    remainder = argument - x0 * quotient;
    if (n - quotient > 31)
        return INT64_C(1) << 31;
    return ((remainder - 2 * x0) << (n - quotient)) >> 1; /* both are positive */
}

int intvit_softmax_ivit(const struct intvit_softmax_ivit *p, const int64_t *x, const int64_t *mask, int64_t *y,
                        size_t channels)
{
    int64_t most, sum = 0, factor;

    if (!in(p->x0, X0_LEAST, -1) || !in(p->n, 0, 23) || !in(p->out_bits, 1, 32))
        return INTVIT_PARAMETER;
    if (!intvit_within(x, channels, 32))
        return INTVIT_INPUT;
    most = top(x, mask, channels);
    for (size_t j = 0; j < channels; j++) {
        y[j] = intvit_shift_exp(delta(x, mask, j, most), p->x0, p->n);
        sum = intvit_clamp(sum + y[j], 0, SUM_MAX);
    }
    factor = SUM_MAX / sum; /* every exponential is 1 at least */
    for (size_t j = 0; j < channels; j++)
        y[j] = (y[j] * factor) >> (32 - p->out_bits);
    return INTVIT_OK;
}

/* ------------------------------------------------------------------------------------------------ I-BERT */

static int polynomial_valid(int64_t x0, int64_t b, int64_t c, int64_t n)
{
    return in(x0, X0_LEAST, -1) && in(b, -2 * (x0 + 1), INT64_C(1) << 32) && in(c, 0, (INT64_C(1) << 62) - 1)
           && in(n, 0, 30);
}

/* r*(r + b) + c, below 2**62, or 0 where it is negative; the exponential is this times 2**`*left`. */
static int64_t polynomial(int64_t d, int64_t x0, int64_t b, int64_t c, int64_t n, int64_t *left)
{
    int64_t argument = d < n * x0 ? n * x0 : d, quotient = intvit_floor_divide(argument, x0);
    int64_t r = argument - x0 * quotient, value = r * (r + b) + c;

    *left = n - quotient;
    return value < 0 ? 0 : value;
}

int intvit_softmax_ibert_valid(const struct intvit_softmax_ibert *p)
{
    return polynomial_valid(p->x0, p->b, p->c, p->n) && in(p->m, 0, INT64_C(1) << 31) && in(p->e, -1100, 1200)
           && in(p->out_bits, 1, 32);
}

/* The exponential of up to 92 bits times m of 32: 124 bits. */
int64_t intvit_exp16(int64_t d, const struct intvit_softmax_ibert *p)
{
    int64_t left, value = polynomial(d, p->x0, p->b, p->c, p->n, &left);
    intvit_wide product = intvit_wide_left(intvit_wide_multiply(value, p->m), left);

    if (p->e < 0)
        product = intvit_wide_left_saturated(product, -p->e);
    else
        product = intvit_wide_round(product, p->e, INTVIT_HALF_EVEN);
    return intvit_wide_low(intvit_wide_narrow(product, 16, INTVIT_SATURATE, 0));
}

int intvit_softmax_ibert(const struct intvit_softmax_ibert *p, const int64_t *x, const int64_t *mask, int64_t *y,
                         size_t channels)
{
    int64_t most, sum = 0, factor;

    if (!intvit_softmax_ibert_valid(p))
        return INTVIT_PARAMETER;
    if (!intvit_within(x, channels, 32))
        return INTVIT_INPUT;
    most = top(x, mask, channels);
    for (size_t j = 0; j < channels; j++) {
        y[j] = intvit_exp16(delta(x, mask, j, most), p);
        sum += y[j];
    }
    factor = (INT64_C(1) << 32) / (sum > 0 ? sum : 1);
    for (size_t j = 0; j < channels; j++)
        y[j] = (y[j] * factor) >> (32 - p->out_bits);
    return INTVIT_OK;
}

/* ------------------------------------------------------------------------------------------------ FQ-ViT */

static intvit_wide exponential(int64_t d, const struct intvit_softmax_fqvit *p)
{
    int64_t left, value = polynomial(d, p->x0, p->b, p->c, p->n, &left);
    return intvit_wide_left(intvit_wide_of(value), left);
}

/* log2 of a ratio >= 1, rounded up from 1.5 * 2**k on; -1 from 2**bits on. */
static int64_t log2_code(intvit_wide ratio, int64_t bits)
{
    int64_t k = intvit_wide_bits(ratio) - 1;

    if (k > 0 && intvit_wide_floor_shift(ratio, k - 1).low % 2 == 1)
        k++;
    return k >= INT64_C(1) << bits ? -1 : k;
}

/* Exponentials below 2**92, their sum below 2**114. */
int intvit_softmax_fqvit(const struct intvit_softmax_fqvit *p, const int64_t *x, const int64_t *mask, int64_t *y,
                         size_t channels)
{
    intvit_wide sum = intvit_wide_of(0);
    int64_t most;

    if (!polynomial_valid(p->x0, p->b, p->c, p->n) || !in(p->bits, 1, 8))
        return INTVIT_PARAMETER;
    if (!intvit_within(x, channels, 32))
        return INTVIT_INPUT;
    most = top(x, mask, channels);
    for (size_t j = 0; j < channels; j++)
        sum = intvit_wide_add(sum, exponential(delta(x, mask, j, most), p));
    for (size_t j = 0; j < channels; j++) {
        intvit_wide e = exponential(delta(x, mask, j, most), p);
        y[j] = intvit_wide_zero(e) ? -1 : log2_code(intvit_wide_rhe_divide(sum, e), p->bits);
    }
    return INTVIT_OK;
}
