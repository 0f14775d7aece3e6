/* x * sigmoid(1.702 x): SiLU's forms, the factor in the constants. docs/quantization.md, "SiLU and quick GELU". */
#include "intvit.h"

int intvit_quick_gelu_ivit(const struct intvit_gelu_ivit *p, const int64_t *x, int64_t *y, size_t channels)
{
    return intvit_silu_ivit(p, x, y, channels);
}

int intvit_quick_gelu_ibert(const struct intvit_softmax_ibert *p, const int64_t *x, int64_t *y, size_t channels)
{
    return intvit_silu_ibert(p, x, y, channels);
}
