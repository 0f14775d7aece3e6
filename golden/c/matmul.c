/* A row times a matrix of activations. docs/quantization.md, "Products". */
#include "intvit.h"

int intvit_matmul(const struct intvit_numerics *how, const int64_t *a, const int64_t *b, size_t depth, size_t columns,
                  int64_t *y)
{
    if (!intvit_numerics_valid(how))
        return INTVIT_PARAMETER;
    if (!intvit_within(a, depth, 41))
        return INTVIT_INPUT;
    for (size_t c = 0; c < columns; c++) {
        struct intvit_accumulator sum = intvit_accumulator_empty(how);
        int status;

        for (size_t k = 0; k < depth; k++) {
            if (!intvit_within(&b[k * columns + c], 1, 41))
                return INTVIT_INPUT;
            intvit_accumulate(&sum, a[k], b[k * columns + c]);
        }
        status = intvit_accumulated(&sum, 0, &y[c]);
        if (status != INTVIT_OK)
            return status;
    }
    return INTVIT_OK;
}
