/* Deeploy's RequantShift, a column at a time: what tools/preset_owners.py calls. */

#include "DeeployBasicMath.h"

#define COLUMNS(bits)                                                                                                  \
    void requantize_s##bits(int32_t rows, int32_t columns, int##bits##_t *x, int32_t *m, const int32_t *shift,         \
                            const int32_t *addend, int32_t *residual, int8_t *y)                                       \
    {                                                                                                                  \
        for (int32_t j = 0; j < columns; j++) /* x and y: one column after the other */                                \
            RequantShift_s##bits##_s8_NHWC(x + (int64_t)j * rows, rows, &m[j], &residual[j], y + (int64_t)j * rows,    \
                                           shift[j], 1, 0, addend[j], -128, 127, true);                                \
    }

COLUMNS(8)
COLUMNS(16)
COLUMNS(32)
