/* What moves elements and computes nothing. Arrays lie row by row, the last axis fastest. */
#include "intvit.h"

size_t intvit_elements(const struct intvit_shape *shape)
{
    size_t count = 1;
    for (size_t axis = 0; axis < shape->rank; axis++)
        count *= shape->size[axis];
    return count;
}

/* Elements of one index of an axis. */
static size_t stride(const struct intvit_shape *shape, size_t axis)
{
    size_t count = 1;
    for (size_t after = axis + 1; after < shape->rank; after++)
        count *= shape->size[after];
    return count;
}

/* y (to) in its order, from x at the strides of its axes. */
static void gather(const int64_t *x, const size_t *strides, int64_t *y, const struct intvit_shape *to)
{
    size_t index[INTVIT_MOST_AXES] = {0}, count = intvit_elements(to);

    for (size_t i = 0; i < count; i++) {
        size_t at = 0;
        for (size_t axis = 0; axis < to->rank; axis++)
            at += index[axis] * strides[axis];
        y[i] = x[at];
        for (size_t axis = to->rank; axis-- > 0;) {
            if (++index[axis] < to->size[axis])
                break;
            index[axis] = 0;
        }
    }
}

int intvit_broadcast(const int64_t *x, const struct intvit_shape *from, int64_t *y, const struct intvit_shape *to)
{
    size_t strides[INTVIT_MOST_AXES] = {0};

    if (from->rank > to->rank)
        return 0;
    for (size_t axis = 0; axis < from->rank; axis++) {
        size_t at = axis + to->rank - from->rank;
        if (from->size[axis] != 1 && from->size[axis] != to->size[at])
            return 0;
        strides[at] = from->size[axis] == 1 ? 0 : stride(from, axis);
    }
    gather(x, strides, y, to);
    return 1;
}

void intvit_transpose(const int64_t *x, const struct intvit_shape *from, const size_t *perm, int64_t *y)
{
    size_t strides[INTVIT_MOST_AXES] = {0};
    struct intvit_shape to = *from;

    for (size_t axis = 0; axis < from->rank; axis++) {
        to.size[axis] = from->size[perm[axis]];
        strides[axis] = stride(from, perm[axis]);
    }
    gather(x, strides, y, &to);
}

void intvit_slice(const int64_t *x, const struct intvit_shape *from, size_t axis, size_t start, int64_t step,
                  size_t count, int64_t *y)
{
    size_t inner = stride(from, axis), outer = intvit_elements(from) / (inner * from->size[axis]), at = 0;

    for (size_t o = 0; o < outer; o++)
        for (size_t i = 0; i < count; i++) {
            size_t index = (size_t)((int64_t)start + step * (int64_t)i);
            const int64_t *part = x + (o * from->size[axis] + index) * inner;
            for (size_t k = 0; k < inner; k++)
                y[at++] = part[k];
        }
}

void intvit_join(const int64_t *x, const struct intvit_shape *from, size_t axis, size_t at, int64_t *y,
                 const struct intvit_shape *to)
{
    size_t inner = stride(from, axis), length = from->size[axis] * inner;
    size_t outer = intvit_elements(from) / length;

    for (size_t o = 0; o < outer; o++)
        for (size_t i = 0; i < length; i++)
            y[(o * to->size[axis] + at) * inner + i] = x[o * length + i];
}
