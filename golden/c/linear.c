/* A row times constant weights, plus a bias. docs/quantization.md, "Products". */
#include "intvit.h"

int intvit_linear(const struct intvit_linear *p, const struct intvit_numerics *how, const int64_t *x, size_t channels,
                  int64_t *y, size_t outputs)
{
    if (!intvit_numerics_valid(how))
        return INTVIT_PARAMETER;
    if (!intvit_within(x, channels, 41))
        return INTVIT_INPUT;
    for (size_t o = 0; o < outputs; o++) {
        const int64_t *weight = p->weight + o * channels;
        struct intvit_accumulator sum = intvit_accumulator_empty(how);
        int status;

        if (!intvit_within(weight, channels, 8))
            return INTVIT_PARAMETER;
        for (size_t k = 0; k < channels; k++)
            intvit_accumulate(&sum, x[k], weight[k]);
        status = intvit_accumulated(&sum, p->bias == NULL ? 0 : p->bias[o], &y[o]);
        if (status != INTVIT_OK)
            return status;
    }
    return INTVIT_OK;
}
