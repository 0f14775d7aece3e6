/* Sums of products in a word of a stated width. docs/numerics.md, "Accumulators". */
#include "intvit.h"

/* Factors below this have products below 2**60, which are first added in 64 bits. */
#define SMALL (INT64_C(1) << 30)
#define FULL (INT64_C(1) << 61)

struct intvit_accumulator intvit_accumulator_empty(const struct intvit_numerics *how)
{
    struct intvit_accumulator sum;
    sum.total = intvit_wide_of(0);
    sum.part = 0;
    sum.how = how;
    return sum;
}

static void add(struct intvit_accumulator *sum, intvit_wide value)
{
    sum->total = intvit_wide_add(sum->total, value);
    if (sum->how->accumulator == INTVIT_SATURATE_EVERY)
        sum->total = intvit_wide_narrow(sum->total, sum->how->accumulator_bits, INTVIT_SATURATE, 0);
}

/* |a| and |b| up to 2**40: 2**31 products of them are below 2**112. Only `saturate` looks at every sum. */
void intvit_accumulate(struct intvit_accumulator *sum, int64_t a, int64_t b)
{
    if (sum->how->accumulator == INTVIT_SATURATE_EVERY || a <= -SMALL || a >= SMALL || b <= -SMALL || b >= SMALL) {
        add(sum, intvit_wide_multiply(a, b));
        return;
    }
    sum->part += a * b;
    if (sum->part >= FULL || sum->part <= -FULL) {
        add(sum, intvit_wide_of(sum->part));
        sum->part = 0;
    }
}

int intvit_accumulated(struct intvit_accumulator *sum, int64_t bias, int64_t *result)
{
    int64_t bits = sum->how->accumulator_bits;

    if (sum->part != 0)
        add(sum, intvit_wide_of(sum->part));
    add(sum, intvit_wide_of(bias));
    if (sum->how->accumulator == INTVIT_SATURATE_END)
        sum->total = intvit_wide_narrow(sum->total, bits, INTVIT_SATURATE, 0);
    if (sum->how->accumulator == INTVIT_WRAP_SUM) /* modulo 2**bits, every time or once */
        sum->total = intvit_wide_narrow(sum->total, bits, INTVIT_WRAP, 0);
    if (bits != 0 && !intvit_wide_fits(sum->total, bits))
        return INTVIT_SUM;
    if (!intvit_wide_fits(sum->total, 64))
        return INTVIT_RESULT;
    *result = intvit_wide_low(sum->total);
    return INTVIT_OK;
}
