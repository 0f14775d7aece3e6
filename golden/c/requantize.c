/* Dyadic requantization: x * m / 2**e, rounded, narrowed word by word. docs/numerics.md, "What is computed". */
#include "intvit.h"

const struct intvit_numerics intvit_hawq = {
    32, 1, -1100, 1200, INTVIT_HALF_EVEN, 0, INTVIT_EACH, 96, INTVIT_SATURATE, 64, INTVIT_SATURATE, INTVIT_SATURATE,
    0, INTVIT_PROVE
};

int intvit_numerics_valid(const struct intvit_numerics *how)
{
    return how->multiplier_bits >= 4 && how->multiplier_bits <= (how->multiplier_signed ? 32 : 31)
           && how->shift_least >= -1100 && how->shift_least <= 62 && how->shift_most >= 0 && how->shift_most <= 1200
           && how->shift_least <= how->shift_most && how->product_bits >= 8 && how->product_bits <= 96
           && how->rounded_bits >= 4 && how->rounded_bits <= 64
           && (how->accumulator_bits == 0 ? how->accumulator == INTVIT_PROVE
                                          : how->accumulator_bits >= 16 && how->accumulator_bits <= 64);
}

static int factors_valid(struct intvit_vector m, struct intvit_vector e, const struct intvit_numerics *how,
                         size_t channels)
{
    int64_t power = (int64_t)1 << (how->multiplier_signed ? how->multiplier_bits - 1 : how->multiplier_bits);
    int64_t low = how->multiplier_signed ? -power : 0, high = power - 1;

    if (how->multiplier_signed && how->multiplier_bits == 32)
        high = power; /* the nearest 31 bits of a ratio just below a power of two */
    return intvit_vector_within(m, channels, low, high)
           && intvit_vector_within(e, channels, how->shift_least, how->shift_most);
}

static intvit_wide product(int64_t x, int64_t m, const struct intvit_numerics *how)
{
    return intvit_wide_narrow(intvit_wide_multiply(x, m), how->product_bits, how->product_overflow, 0);
}

static intvit_wide narrow(intvit_wide value, const struct intvit_numerics *how)
{
    return intvit_wide_narrow(value, how->rounded_bits, how->rounded_overflow, 0);
}

/* A product, or a sum of two, through the shift and into its word. */
static intvit_wide shifted(intvit_wide value, int64_t e, const struct intvit_numerics *how)
{
    int64_t first = how->multiplier_bits - 1;

    if (e < 0 && how->rounded_overflow == INTVIT_WRAP)
        value = intvit_wide_left(value, -e);
    else if (e < 0)
        value = intvit_wide_left_saturated(value, -e);
    else if (!how->double_rounding)
        value = intvit_wide_round(value, e, how->rounding);
    else if (e <= first)
        value = intvit_wide_round(value, e, INTVIT_HALF_UP);
    else {
        value = intvit_wide_round(value, first, INTVIT_HALF_UP);
        value = intvit_wide_narrow(value, 64, INTVIT_SATURATE, 0);
        value = intvit_wide_round(value, e - first, how->rounding);
    }
    return narrow(value, how);
}

int intvit_requantize(const struct intvit_requantize *p, const struct intvit_numerics *how, const int64_t *x,
                      const int64_t *residual, const int64_t *addend, int64_t *y, size_t channels)
{
    if (!intvit_numerics_valid(how) || !factors_valid(p->m, p->e, how, channels) || p->bits < 2
        || p->bits > (p->is_unsigned ? 62 : 64))
        return INTVIT_PARAMETER;
    if (residual != NULL && !factors_valid(p->residual_m, p->residual_e, how, channels))
        return INTVIT_PARAMETER;
    for (size_t j = 0; j < channels; j++) {
        int64_t e = intvit_at(p->e, j);
        intvit_wide value = product(x[j], intvit_at(p->m, j), how);

        if (residual == NULL)
            value = shifted(value, e, how);
        else {
            intvit_wide other = product(residual[j], intvit_at(p->residual_m, j), how);
            if (how->residual == INTVIT_TOGETHER) {
                if (intvit_at(p->residual_e, j) != e)
                    return INTVIT_PARAMETER;
                value = intvit_wide_add(value, other);
                value = shifted(intvit_wide_narrow(value, how->product_bits, how->product_overflow, 0), e, how);
            } else {
                other = shifted(other, intvit_at(p->residual_e, j), how);
                value = narrow(intvit_wide_add(shifted(value, e, how), other), how);
            }
        }
        if (addend != NULL)
            value = narrow(intvit_wide_add(value, intvit_wide_of(addend[j])), how);
        y[j] = intvit_wide_low(intvit_wide_narrow(value, p->bits, how->output_overflow, (int)p->is_unsigned));
    }
    return INTVIT_OK;
}
