/* What TensorFlow Lite's common.cc needs of the header of this name, which needs the rest of TensorFlow. */

#ifndef INTVIT_TOOLS_OWNERS_TFLITE_COMMON_H
#define INTVIT_TOOLS_OWNERS_TFLITE_COMMON_H

#include <cassert>
#include <cstdint>
#include <limits>

#include "fixedpoint/fixedpoint.h"

#define TFLITE_DCHECK(condition) assert(condition)
#define TFLITE_NO_SANITIZE_INTEGER_OVERFLOW

namespace tflite {
int32_t MultiplyByQuantizedMultiplier(int32_t x, int32_t quantized_multiplier, int shift);
int32_t MultiplyByQuantizedMultiplier(int64_t x, int32_t quantized_multiplier, int shift);
}

#endif
