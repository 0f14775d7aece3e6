/* RMSNorm of one row: the LayerNorms without mean and bias. docs/quantization.md, "RMSNorm". */
#include "intvit.h"

/* C * max|x|**2 < 2**62. */
static int squares_fit(const int64_t *x, size_t channels)
{
    int64_t high, low, most;

    if (!intvit_within(x, channels, 41))
        return 0;
    high = intvit_row_max(x, channels);
    low = intvit_row_min(x, channels);
    most = high > -low ? high : -low;
    return !intvit_wide_less(intvit_wide_of(((INT64_C(1) << 62) - 1) / (int64_t)channels),
                             intvit_wide_multiply(most, most));
}

int intvit_rmsnorm_ivit(const int64_t *x, int64_t *y, size_t channels)
{
    int64_t total = 0, factor;

    if (!squares_fit(x, channels))
        return INTVIT_INPUT;
    for (size_t j = 0; j < channels; j++)
        total += x[j] * x[j];
    factor = INT64_C(0x7FFFFFFF) / intvit_newton_sqrt(total);
    for (size_t j = 0; j < channels; j++)
        y[j] = intvit_floor_shift(x[j] * factor, 1);
    return INTVIT_OK;
}

int intvit_rmsnorm_ibert(const struct intvit_rmsnorm_ibert *p, const int64_t *x, int64_t *y, size_t channels)
{
    int64_t total = 0, root, factor;

    if (p->shift < 0 || p->shift > 31)
        return INTVIT_PARAMETER;
    if (!squares_fit(x, channels))
        return INTVIT_INPUT;
    for (size_t j = 0; j < channels; j++) {
        int64_t shifted = intvit_floor_shift(x[j], p->shift);
        total += shifted * shifted;
    }
    root = intvit_isqrt(total) << p->shift;
    factor = root > 0 ? (INT64_C(1) << 31) / root : 0;
    for (size_t j = 0; j < channels; j++)
        y[j] = intvit_floor_shift(x[j] * factor, 1);
    return INTVIT_OK;
}
