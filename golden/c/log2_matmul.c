/* FQ-ViT's attention times V: a product with 2**-code is a shift. docs/quantization.md, "Products". */
#include "intvit.h"

#define FRACTION_BITS 15

int intvit_log2_matmul(const struct intvit_numerics *how, const int64_t *codes, const int64_t *values, size_t depth,
                       size_t columns, int64_t *y)
{
    if (!intvit_numerics_valid(how))
        return INTVIT_PARAMETER;
    for (size_t c = 0; c < columns; c++) {
        struct intvit_accumulator sum = intvit_accumulator_empty(how);
        int status;

        for (size_t k = 0; k < depth; k++) {
            if (codes[k] > FRACTION_BITS || !intvit_within(&values[k * columns + c], 1, 41))
                return INTVIT_INPUT;
            intvit_accumulate(&sum, codes[k] < 0 ? 0 : (int64_t)1 << (FRACTION_BITS - codes[k]),
                              values[k * columns + c]);
        }
        status = intvit_accumulated(&sum, 0, &y[c]);
        if (status != INTVIT_OK)
            return status;
    }
    return INTVIT_OK;
}
