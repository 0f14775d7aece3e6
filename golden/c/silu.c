/* x * sigmoid(x): ShiftGELU's sigmoid, or I-BERT's softmax of (x, 0). docs/quantization.md, "SiLU and quick GELU". */
#include "intvit.h"

int intvit_silu_ivit(const struct intvit_gelu_ivit *p, const int64_t *x, int64_t *y, size_t channels)
{
    return intvit_gelu_ivit(p, x, y, channels);
}

int intvit_silu_ibert(const struct intvit_softmax_ibert *p, const int64_t *x, int64_t *y, size_t channels)
{
    if (!intvit_softmax_ibert_valid(p))
        return INTVIT_PARAMETER;
    if (!intvit_within(x, channels, 41))
        return INTVIT_INPUT;
    for (size_t j = 0; j < channels; j++) {
        int64_t most = x[j] > 0 ? x[j] : 0, own = intvit_exp16(x[j] - most, p);
        int64_t sum = own + intvit_exp16(-most, p), factor = (INT64_C(1) << 32) / (sum > 0 ? sum : 1);
        intvit_wide product = intvit_wide_multiply(x[j], (own * factor) >> (32 - p->out_bits));

        if (!intvit_wide_fits(product, 64))
            return INTVIT_RESULT;
        y[j] = intvit_wide_low(product);
    }
    return INTVIT_OK;
}
