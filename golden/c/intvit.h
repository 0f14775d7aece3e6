/* The operators of intvit in C99: integers only, bit-exact to intvit/spec. golden/c/README.md, docs/quantization.md.
 *
 * A function computes one row. It returns INTVIT_OK, or another status, and then what it wrote means nothing. Rows and
 * constants are int64_t, whatever their width is in a file. The fields of a structure are the names of
 * `intvit.vectors.part.parameters`; the constants of a site that are spread over its whole input, `mask` and
 * `residual`, are arguments beside the row that they belong to.
 *
 * Signed words are never shifted and never overflow: what may be negative goes through intvit_floor_shift, and what 64
 * bits do not hold is an intvit_wide. Nothing here is left to the implementation but the sizes of int and size_t.
 */
#ifndef INTVIT_H
#define INTVIT_H

#include <stddef.h>
#include <stdint.h>

enum intvit_status {
    INTVIT_OK = 0,
    INTVIT_PARAMETER, /* a constant is outside the range of its parameter class */
    INTVIT_INPUT,     /* a row is longer, or its values are larger, than the words below were proven for */
    INTVIT_RESULT,    /* a result does not fit 64 bits */
    INTVIT_SUM        /* a sum does not fit an accumulator whose policy is `prove` or `raise` */
};

#define INTVIT_MOST_CHANNELS ((size_t)1 << 22)

/* ------------------------------------------------------------------------------- arithmetic (arith.c) */

enum intvit_rounding {
    INTVIT_HALF_EVEN,
    INTVIT_HALF_UP,
    INTVIT_HALF_AWAY,
    INTVIT_FLOOR,
    INTVIT_TOWARD_ZERO
};

enum intvit_overflow { INTVIT_SATURATE, INTVIT_WRAP };

/* A signed integer of 128 bits, two's complement. */
typedef struct {
    uint64_t high, low;
} intvit_wide;

int64_t intvit_floor_shift(int64_t value, int64_t count);      /* floor(value / 2**count), count >= 0 */
int64_t intvit_floor_divide(int64_t value, int64_t by);        /* by != 0, and not INT64_MIN by -1 */
int64_t intvit_isqrt(int64_t value);                           /* the largest k with k*k <= value; value >= 0 */
int64_t intvit_bits(int64_t value);                            /* the bits of value >= 0; none of 0 */
int64_t intvit_clamp(int64_t value, int64_t low, int64_t high);
int64_t intvit_rhe_shift(int64_t value, int64_t count);        /* value / 2**count, half to even; saturates at s64 */
int64_t intvit_row_max(const int64_t *row, size_t channels);   /* channels >= 1 */
int64_t intvit_row_min(const int64_t *row, size_t channels);
int intvit_within(const int64_t *row, size_t channels, int bits); /* 1..MOST_CHANNELS values of `bits` bits? */

intvit_wide intvit_wide_of(int64_t value);
intvit_wide intvit_wide_add(intvit_wide a, intvit_wide b);
intvit_wide intvit_wide_negate(intvit_wide a);
intvit_wide intvit_wide_multiply(int64_t a, int64_t b);
intvit_wide intvit_wide_left(intvit_wide a, int64_t count);    /* modulo 2**128; count >= 0 */
intvit_wide intvit_wide_left_saturated(intvit_wide a, int64_t count); /* beyond 2**126: that, or -2**126 */
intvit_wide intvit_wide_floor_shift(intvit_wide a, int64_t count);
int intvit_wide_negative(intvit_wide a);
int intvit_wide_zero(intvit_wide a);
int intvit_wide_less(intvit_wide a, intvit_wide b);
int64_t intvit_wide_bits(intvit_wide a);                       /* the bits of a >= 0 */
intvit_wide intvit_wide_divide(intvit_wide a, intvit_wide b, intvit_wide *rest); /* a >= 0, b > 0 */
intvit_wide intvit_wide_rhe_divide(intvit_wide a, intvit_wide b); /* a / b, half to even; b > 0, any a */
intvit_wide intvit_wide_round(intvit_wide a, int64_t count, enum intvit_rounding rounding); /* count >= 0 */
intvit_wide intvit_wide_narrow(intvit_wide a, int64_t bits, enum intvit_overflow overflow, int is_unsigned);
int intvit_wide_fits(intvit_wide a, int64_t bits);             /* in a signed word */
int64_t intvit_wide_low(intvit_wide a);                        /* the value of one that fits 64 bits */
int64_t intvit_wide_saturated(intvit_wide a);                  /* the nearest in 64 bits */

/* ------------------------------------------------------------------------ numerics (docs/numerics.md) */

enum intvit_residual { INTVIT_EACH, INTVIT_TOGETHER };

enum intvit_policy {
    INTVIT_PROVE,
    INTVIT_RAISE,
    INTVIT_SATURATE_EVERY, /* `saturate`: after every product */
    INTVIT_SATURATE_END,
    INTVIT_WRAP_SUM /* `wrap` */
};

struct intvit_numerics {
    int64_t multiplier_bits, multiplier_signed;
    int64_t shift_least, shift_most;
    enum intvit_rounding rounding;
    int64_t double_rounding;
    enum intvit_residual residual;
    int64_t product_bits;
    enum intvit_overflow product_overflow;
    int64_t rounded_bits;
    enum intvit_overflow rounded_overflow, output_overflow;
    int64_t accumulator_bits; /* 0: exact sums, of 64 bits */
    enum intvit_policy accumulator;
};

extern const struct intvit_numerics intvit_hawq; /* the default */
int intvit_numerics_valid(const struct intvit_numerics *how);

/* One constant of a row: `count` is 1, or the number of channels. */
struct intvit_vector {
    size_t count;
    const int64_t *at;
};

int64_t intvit_at(struct intvit_vector vector, size_t channel);
int intvit_vector_within(struct intvit_vector vector, size_t channels, int64_t low, int64_t high);

/* --------------------------------------------------------------------------------------- requantize.c */

struct intvit_requantize {
    int64_t bits; /* of the output, 2..64 */
    int64_t is_unsigned;
    struct intvit_vector m, e;
    struct intvit_vector residual_m, residual_e; /* where there is a residual */
};

/* `residual` and `addend` are rows, or NULL. */
int intvit_requantize(const struct intvit_requantize *p, const struct intvit_numerics *how, const int64_t *x,
                      const int64_t *residual, const int64_t *addend, int64_t *y, size_t channels);

/* ------------------------------------------------------------- accumulate.c, and products of matrices */

struct intvit_accumulator {
    intvit_wide total;
    int64_t part; /* of the sum, not in `total` yet */
    const struct intvit_numerics *how;
};

struct intvit_accumulator intvit_accumulator_empty(const struct intvit_numerics *how);
void intvit_accumulate(struct intvit_accumulator *sum, int64_t a, int64_t b); /* adds a * b */
int intvit_accumulated(struct intvit_accumulator *sum, int64_t bias, int64_t *result);

struct intvit_linear {
    const int64_t *weight; /* (outputs, channels) */
    const int64_t *bias;   /* (outputs), or NULL */
};

int intvit_linear(const struct intvit_linear *p, const struct intvit_numerics *how, const int64_t *x, size_t channels,
                  int64_t *y, size_t outputs);
/* a (depth), b (depth, columns), y (columns) */
int intvit_matmul(const struct intvit_numerics *how, const int64_t *a, const int64_t *b, size_t depth, size_t columns,
                  int64_t *y);
/* codes (depth): 2**-code, 0 for a negative one; values (depth, columns); y in steps of 2**-15 */
int intvit_log2_matmul(const struct intvit_numerics *how, const int64_t *codes, const int64_t *values, size_t depth,
                       size_t columns, int64_t *y);
int intvit_mean(const int64_t *x, size_t count, int64_t *y); /* one result */

/* ------------------------------------------------------------------------------------------ softmax.c */

struct intvit_softmax_ivit {
    int64_t x0, n, out_bits;
};
struct intvit_softmax_ibert {
    int64_t x0, b, c, n, m, e, out_bits;
};
struct intvit_softmax_fqvit {
    int64_t x0, b, c, n, bits;
};

/* `mask` (channels) or NULL: what is not 0 takes no part. */
int intvit_softmax_ivit(const struct intvit_softmax_ivit *p, const int64_t *x, const int64_t *mask, int64_t *y,
                        size_t channels);
int intvit_softmax_ibert(const struct intvit_softmax_ibert *p, const int64_t *x, const int64_t *mask, int64_t *y,
                         size_t channels);
int intvit_softmax_fqvit(const struct intvit_softmax_fqvit *p, const int64_t *x, const int64_t *mask, int64_t *y,
                         size_t channels);

int intvit_softmax_ibert_valid(const struct intvit_softmax_ibert *p);
int64_t intvit_shift_exp(int64_t delta, int64_t x0, int64_t n);            /* 2**31 where it is more */
int64_t intvit_exp16(int64_t delta, const struct intvit_softmax_ibert *p); /* delta <= 0 */

/* ----------------------------------------------------------------------- gelu.c, silu.c, quick_gelu.c */

struct intvit_gelu_ivit {
    int64_t x0, n, out_bits;
};
struct intvit_gelu_ibert {
    struct intvit_vector b, c, shift;
    int64_t n;
};

int intvit_gelu_ivit(const struct intvit_gelu_ivit *p, const int64_t *x, int64_t *y, size_t channels);
int intvit_gelu_ibert(const struct intvit_gelu_ibert *p, const int64_t *x, int64_t *y, size_t channels);
int intvit_silu_ivit(const struct intvit_gelu_ivit *p, const int64_t *x, int64_t *y, size_t channels);
int intvit_silu_ibert(const struct intvit_softmax_ibert *p, const int64_t *x, int64_t *y, size_t channels);
int intvit_quick_gelu_ivit(const struct intvit_gelu_ivit *p, const int64_t *x, int64_t *y, size_t channels);
int intvit_quick_gelu_ibert(const struct intvit_softmax_ibert *p, const int64_t *x, int64_t *y, size_t channels);

/* ----------------------------------------------------------------------------- layernorm.c, rmsnorm.c */

struct intvit_layernorm_ivit {
    struct intvit_vector bias;
};
struct intvit_layernorm_ibert {
    struct intvit_vector bias;
    int64_t shift;
};
struct intvit_layernorm_fqvit {
    struct intvit_vector factor, sign, slope, slope_exp, gain, gain_exp, bias, bias_exp;
};
struct intvit_rmsnorm_ibert {
    int64_t shift;
};

int intvit_layernorm_ivit(const struct intvit_layernorm_ivit *p, const int64_t *x, int64_t *y, size_t channels);
int intvit_layernorm_ibert(const struct intvit_layernorm_ibert *p, const int64_t *x, int64_t *y, size_t channels);
int intvit_layernorm_fqvit(const struct intvit_layernorm_fqvit *p, const int64_t *x, int64_t *y, size_t channels);
int intvit_rmsnorm_ivit(const int64_t *x, int64_t *y, size_t channels); /* it has no constants */
int intvit_rmsnorm_ibert(const struct intvit_rmsnorm_ibert *p, const int64_t *x, int64_t *y, size_t channels);

int64_t intvit_newton_sqrt(int64_t variance);

/* ------------------------------------------------------------------------------------------- layout.c */

#define INTVIT_MOST_AXES 16

struct intvit_shape {
    size_t rank, size[INTVIT_MOST_AXES];
};

size_t intvit_elements(const struct intvit_shape *shape);
/* y (to) = x (from), broadcast; 0 unless it does. */
int intvit_broadcast(const int64_t *x, const struct intvit_shape *from, int64_t *y, const struct intvit_shape *to);
/* y, whose axis i is axis perm[i] of x (from). */
void intvit_transpose(const int64_t *x, const struct intvit_shape *from, const size_t *perm, int64_t *y);
/* y: `count` indices of an axis of x (from), from `start` on, `step` apart. */
void intvit_slice(const int64_t *x, const struct intvit_shape *from, size_t axis, size_t start, int64_t step,
                  size_t count, int64_t *y);
/* Writes x (from) into y (to) from index `at` of an axis on, as a part of what is joined there. */
void intvit_join(const int64_t *x, const struct intvit_shape *from, size_t axis, size_t at, int64_t *y,
                 const struct intvit_shape *to);

#endif
