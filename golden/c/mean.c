/* Average pooling: sum / count, ties to even. docs/quantization.md, "Average pooling". */
#include "intvit.h"

int intvit_mean(const int64_t *x, size_t count, int64_t *y)
{
    intvit_wide total = intvit_wide_of(0);

    if (count < 1 || count > INTVIT_MOST_CHANNELS)
        return INTVIT_INPUT;
    for (size_t j = 0; j < count; j++)
        total = intvit_wide_add(total, intvit_wide_of(x[j]));
    *y = intvit_wide_low(intvit_wide_rhe_divide(total, intvit_wide_of((int64_t)count)));
    return INTVIT_OK;
}
