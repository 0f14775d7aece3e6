/* CMSIS-NN's requantization of a column of accumulators: what tools/preset_owners.py calls. */

#include "arm_nnsupportfunctions.h"

void requantize_s32(int32_t rows, int32_t columns, const int32_t *x, const int32_t *m, const int32_t *shift, int32_t *y)
{
    for (int32_t i = 0; i < rows; i++)
        for (int32_t j = 0; j < columns; j++)
            y[i * columns + j] = arm_nn_requantize(x[i * columns + j], m[j], 31 - shift[j]);
}

/* A product of zeros whose bias is x: one output channel, as the addend is one for all. */
int requantize_s8(int32_t rows, int32_t columns, const int32_t *x, const int32_t *m, const int32_t *shift,
                  const int32_t *addend, int8_t *y)
{
    const int8_t zeros[4] = {0, 0, 0, 0};

    for (int32_t j = 0; j < columns; j++) {
        const int32_t left = 31 - shift[j];

        for (int32_t i = 0; i < rows; i++) {
            int8_t out;

            if (arm_nn_mat_mult_nt_t_s8(zeros, zeros, &x[i * columns + j], &out, &m[j], &left, 1, 1, 4, 0, addend[j],
                                        -128, 127, 1, 4) != ARM_CMSIS_NN_SUCCESS)
                return 1;
            y[i * columns + j] = out;
        }
    }
    return 0;
}
