/* GELU of one token: ShiftGELU, and I-BERT's polynomial. docs/quantization.md, "GELU". */
#include "intvit.h"

#define SUM_MAX INT64_C(0x7FFFFFFF)

/* Exponentials of x - max are below 2**53, the one of 0 - max is clamped with the sum. */
int intvit_gelu_ivit(const struct intvit_gelu_ivit *p, const int64_t *x, int64_t *y, size_t channels)
{
    int64_t most, of_zero;

    if (p->x0 <= -(INT64_C(1) << 30) || p->x0 > -1 || p->n < 0 || p->n > 23 || p->out_bits < 1 || p->out_bits > 8)
        return INTVIT_PARAMETER;
    if (!intvit_within(x, channels, 32))
        return INTVIT_INPUT;
    most = intvit_row_max(x, channels);
    of_zero = intvit_shift_exp(-most, p->x0, p->n);
    for (size_t j = 0; j < channels; j++) {
        int64_t e = intvit_shift_exp(x[j] - most, p->x0, p->n);
        int64_t factor = SUM_MAX / intvit_clamp(e + of_zero, 0, SUM_MAX);
        y[j] = x[j] * ((e * factor) >> (32 - p->out_bits));
    }
    return INTVIT_OK;
}

/* The gate is below 2**63; its product with x has up to 95 bits, and must fit 64. */
int intvit_gelu_ibert(const struct intvit_gelu_ibert *p, const int64_t *x, int64_t *y, size_t channels)
{
    int64_t least = 1 - (INT64_C(1) << 62);

    if (p->n < 0 || p->n > 30 || !intvit_vector_within(p->b, channels, 1 - (INT64_C(1) << 30), -1)
        || !intvit_vector_within(p->c, channels, least, 0) || !intvit_vector_within(p->shift, channels, least, 0)
        || p->b.count != p->c.count || p->b.count != p->shift.count)
        return INTVIT_PARAMETER;
    if (!intvit_within(x, channels, 32))
        return INTVIT_INPUT;
    for (size_t j = 0; j < channels; j++) {
        int64_t b = intvit_at(p->b, j), size = x[j] < 0 ? -x[j] : x[j], clipped = size < -b ? size : -b;
        int64_t polynomial = (clipped + b) * (clipped + b) + intvit_at(p->c, j);
        int64_t erf = intvit_floor_shift(x[j] > 0 ? polynomial : x[j] < 0 ? -polynomial : 0, p->n);
        intvit_wide product = intvit_wide_multiply(x[j], erf + intvit_at(p->shift, j));

        if (!intvit_wide_fits(product, 64))
            return INTVIT_RESULT;
        y[j] = intvit_wide_low(product);
    }
    return INTVIT_OK;
}
