/* TensorFlow Lite's MultiplyByQuantizedMultiplier: what tools/preset_owners.py calls. */

#include "tensorflow/lite/kernels/internal/common.h"

extern "C" void requantize(int32_t rows, int32_t columns, const int32_t *x, const int32_t *m, const int32_t *shift,
                           int32_t *y)
{
    for (int32_t i = 0; i < rows; i++)
        for (int32_t j = 0; j < columns; j++)
            y[i * columns + j] = tflite::MultiplyByQuantizedMultiplier(x[i * columns + j], m[j], 31 - shift[j]);
}
