/* Shifts, divisions, roots and roundings of 64 bits, and integers of 128 bits in two words. */
#include "intvit.h"

static int64_t as_signed(uint64_t word)
{
    return word <= (uint64_t)INT64_MAX ? (int64_t)word : -(int64_t)(~word) - 1;
}

int64_t intvit_floor_shift(int64_t value, int64_t count)
{
    if (count > 63)
        return value < 0 ? -1 : 0;
    return value < 0 ? ~(~value >> count) : value >> count;
}

int64_t intvit_floor_divide(int64_t value, int64_t by)
{
    int64_t quotient = value / by;
    return value % by != 0 && (value < 0) != (by < 0) ? quotient - 1 : quotient;
}

/* Digit by digit, in base 4. */
int64_t intvit_isqrt(int64_t value)
{
    uint64_t rest = (uint64_t)value, root = 0, digit = (uint64_t)1 << 62;

    while (digit > rest)
        digit >>= 2;
    for (; digit > 0; digit >>= 2) {
        uint64_t trial = root + digit;
        root >>= 1;
        if (rest >= trial) {
            rest -= trial;
            root += digit;
        }
    }
    return (int64_t)root;
}

int64_t intvit_bits(int64_t value)
{
    int64_t bits = 0;
    for (; value > 0; value >>= 1)
        bits++;
    return bits;
}

int64_t intvit_clamp(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

int64_t intvit_rhe_shift(int64_t value, int64_t count)
{
    intvit_wide wide = intvit_wide_of(value);
    if (count < 0)
        return intvit_wide_saturated(intvit_wide_left_saturated(wide, -count));
    return intvit_wide_low(intvit_wide_round(wide, count, INTVIT_HALF_EVEN));
}

int64_t intvit_row_max(const int64_t *row, size_t channels)
{
    int64_t most = row[0];
    for (size_t j = 1; j < channels; j++)
        if (row[j] > most)
            most = row[j];
    return most;
}

int64_t intvit_row_min(const int64_t *row, size_t channels)
{
    int64_t least = row[0];
    for (size_t j = 1; j < channels; j++)
        if (row[j] < least)
            least = row[j];
    return least;
}

int intvit_within(const int64_t *row, size_t channels, int bits)
{
    int64_t limit = (int64_t)1 << (bits - 1);
    if (channels < 1 || channels > INTVIT_MOST_CHANNELS)
        return 0;
    for (size_t j = 0; j < channels; j++)
        if (row[j] < -limit || row[j] >= limit)
            return 0;
    return 1;
}

int64_t intvit_at(struct intvit_vector vector, size_t channel)
{
    return vector.at[vector.count == 1 ? 0 : channel];
}

int intvit_vector_within(struct intvit_vector vector, size_t channels, int64_t low, int64_t high)
{
    if (vector.at == NULL || (vector.count != 1 && vector.count != channels))
        return 0;
    for (size_t j = 0; j < vector.count; j++)
        if (vector.at[j] < low || vector.at[j] > high)
            return 0;
    return 1;
}

/* -------------------------------------------------------------------------------------------------- 128 bits */

static intvit_wide words(uint64_t high, uint64_t low)
{
    intvit_wide wide = {high, low};
    return wide;
}

intvit_wide intvit_wide_of(int64_t value)
{
    return words(value < 0 ? UINT64_MAX : 0, (uint64_t)value);
}

intvit_wide intvit_wide_add(intvit_wide a, intvit_wide b)
{
    uint64_t low = a.low + b.low;
    return words(a.high + b.high + (low < a.low), low);
}

intvit_wide intvit_wide_negate(intvit_wide a)
{
    return intvit_wide_add(words(~a.high, ~a.low), words(0, 1));
}

int intvit_wide_negative(intvit_wide a)
{
    return a.high >> 63 == 1;
}

int intvit_wide_zero(intvit_wide a)
{
    return a.high == 0 && a.low == 0;
}

/* Of words without a sign. */
static int below(intvit_wide a, intvit_wide b)
{
    return a.high != b.high ? a.high < b.high : a.low < b.low;
}

int intvit_wide_less(intvit_wide a, intvit_wide b)
{
    uint64_t sign = (uint64_t)1 << 63;
    return below(words(a.high ^ sign, a.low), words(b.high ^ sign, b.low));
}

/* Four products of 32-bit halves; those of negative factors are too large by the other factor times 2**64. */
intvit_wide intvit_wide_multiply(int64_t a, int64_t b)
{
    uint64_t mask = 0xFFFFFFFFu, ua = (uint64_t)a, ub = (uint64_t)b;
    uint64_t low = (ua & mask) * (ub & mask), right = (ua & mask) * (ub >> 32), left = (ua >> 32) * (ub & mask);
    uint64_t middle = (low >> 32) + (right & mask) + (left & mask);
    uint64_t high = (ua >> 32) * (ub >> 32) + (right >> 32) + (left >> 32) + (middle >> 32);

    high -= a < 0 ? ub : 0;
    high -= b < 0 ? ua : 0;
    return words(high, (middle << 32) | (low & mask));
}

intvit_wide intvit_wide_left(intvit_wide a, int64_t count)
{
    if (count > 127)
        return words(0, 0);
    if (count > 63)
        return words(a.low << (count - 64), 0);
    if (count == 0)
        return a;
    return words((a.high << count) | (a.low >> (64 - count)), a.low << count);
}

intvit_wide intvit_wide_left_saturated(intvit_wide a, int64_t count)
{
    intvit_wide most = words((uint64_t)1 << 62, 0), size = intvit_wide_negative(a) ? intvit_wide_negate(a) : a;
    if (intvit_wide_zero(a) || (count <= 127 && intvit_wide_bits(size) + count <= 126))
        return intvit_wide_left(a, count);
    return intvit_wide_negative(a) ? intvit_wide_negate(most) : most;
}

intvit_wide intvit_wide_floor_shift(intvit_wide a, int64_t count)
{
    uint64_t fill = intvit_wide_negative(a) ? UINT64_MAX : 0;
    if (count > 127)
        return words(fill, fill);
    if (count == 0)
        return a;
    if (count == 64)
        return words(fill, a.high);
    if (count > 64)
        return words(fill, (a.high >> (count - 64)) | (fill << (128 - count)));
    return words((a.high >> count) | (fill << (64 - count)), (a.low >> count) | (a.high << (64 - count)));
}

int64_t intvit_wide_bits(intvit_wide a)
{
    uint64_t word = a.high != 0 ? a.high : a.low;
    int64_t bits = a.high != 0 ? 64 : 0;
    for (; word > 0; word >>= 1)
        bits++;
    return bits;
}

/* Bit by bit, as on paper. */
intvit_wide intvit_wide_divide(intvit_wide a, intvit_wide b, intvit_wide *rest)
{
    intvit_wide quotient = words(0, 0), left = words(0, 0);
    for (int64_t i = intvit_wide_bits(a) - 1; i >= 0; i--) {
        left = intvit_wide_add(intvit_wide_left(left, 1), words(0, intvit_wide_floor_shift(a, i).low & 1));
        quotient = intvit_wide_left(quotient, 1);
        if (!below(left, b)) {
            left = intvit_wide_add(left, intvit_wide_negate(b));
            quotient.low |= 1;
        }
    }
    *rest = left;
    return quotient;
}

intvit_wide intvit_wide_rhe_divide(intvit_wide a, intvit_wide b)
{
    intvit_wide size = intvit_wide_negative(a) ? intvit_wide_negate(a) : a, rest;
    intvit_wide quotient = intvit_wide_divide(size, b, &rest), lacking = intvit_wide_add(b, intvit_wide_negate(rest));

    if (below(lacking, rest) || (!below(rest, lacking) && quotient.low % 2 == 1))
        quotient = intvit_wide_add(quotient, words(0, 1));
    return intvit_wide_negative(a) ? intvit_wide_negate(quotient) : quotient;
}

/* |a| < 2**126: what is shifted by 127 and more is less than a half. */
intvit_wide intvit_wide_round(intvit_wide a, int64_t count, enum intvit_rounding rounding)
{
    int64_t by = count > 127 ? 127 : count;
    intvit_wide down = intvit_wide_floor_shift(a, by), rest, half;
    int negative = intvit_wide_negative(a), tie, above, up;

    if (by == 0)
        return a;
    rest = intvit_wide_add(a, intvit_wide_negate(intvit_wide_left(down, by)));
    half = intvit_wide_left(words(0, 1), by - 1);
    above = below(half, rest);
    tie = !above && !below(rest, half);
    switch (rounding) {
    case INTVIT_HALF_EVEN:
        up = above || (tie && down.low % 2 == 1);
        break;
    case INTVIT_HALF_UP:
        up = above || tie;
        break;
    case INTVIT_HALF_AWAY:
        up = above || (tie && !negative);
        break;
    case INTVIT_FLOOR:
        up = 0;
        break;
    default: /* INTVIT_TOWARD_ZERO */
        up = negative && !intvit_wide_zero(rest);
        break;
    }
    return up ? intvit_wide_add(down, words(0, 1)) : down;
}

/* bits 1..128 of a signed word, 1..126 of one without a sign. */
intvit_wide intvit_wide_narrow(intvit_wide a, int64_t bits, enum intvit_overflow overflow, int is_unsigned)
{
    intvit_wide one = words(0, 1), low, high;
    if (overflow == INTVIT_WRAP) {
        a = intvit_wide_left(a, 128 - bits);
        if (!is_unsigned)
            return intvit_wide_floor_shift(a, 128 - bits);
        return intvit_wide_floor_shift(words(a.high >> 1, (a.low >> 1) | (a.high << 63)), 127 - bits);
    }
    high = intvit_wide_add(intvit_wide_left(one, is_unsigned ? bits : bits - 1), words(UINT64_MAX, UINT64_MAX));
    low = is_unsigned ? words(0, 0) : words(~high.high, ~high.low);
    if (intvit_wide_less(a, low))
        return low;
    return intvit_wide_less(high, a) ? high : a;
}

int intvit_wide_fits(intvit_wide a, int64_t bits)
{
    intvit_wide narrowed = intvit_wide_narrow(a, bits, INTVIT_WRAP, 0);
    return narrowed.high == a.high && narrowed.low == a.low;
}

int64_t intvit_wide_low(intvit_wide a)
{
    return as_signed(a.low);
}

int64_t intvit_wide_saturated(intvit_wide a)
{
    return intvit_wide_low(intvit_wide_narrow(a, 64, INTVIT_SATURATE, 0));
}
