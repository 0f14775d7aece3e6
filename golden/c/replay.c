/* Recomputes the tensors of golden cases and compares them: exit status 0 equal, 1 a difference, 2 bad input.
 *
 *     replay CASE.txt [CASE.txt ...]
 *
 * The files are those of `intvit.vectors.cref`; golden/c/README.md says their form. Every bad input ends the program
 * with one line: file, line, rule.
 */
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "intvit.h"

#define MOST_TOKENS 1100
#define MOST_LINE 32768
#define MOST_READS 1024
#define MOST_ELEMENTS ((size_t)1 << 31)

struct array {
    struct intvit_shape shape;
    int bits, is_signed;
    int64_t *values; /* NULL: not known yet */
};

/* What a node says under a name: one number, several, a word, or an array. */
struct field {
    const char *name, *word;
    struct array array;
    int used;
    struct field *next;
};

struct node {
    const char *op, *method, *site;
    size_t reads[MOST_READS], n_reads, writes;
    struct field *fields;
    struct node *next;
};

struct replayed {
    struct array *tensors;
    size_t n_tensors, images, compared, elements;
    struct node *nodes;
};

static const char *current_file = "";
static size_t current_line;
static const struct node *current_node;

static void fail(const char *format, ...)
{
    va_list arguments;

    fprintf(stderr, "%s:%lu: ", current_file, (unsigned long)current_line);
    if (current_node != NULL)
        fprintf(stderr, "%s: ", current_node->site);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    exit(2);
}

/* ------------------------------------------------------------------ memory, all of it freed after a case */

struct block {
    struct block *next;
};

static struct block *blocks;

static void *allocate(size_t count, size_t size)
{
    struct block *block = NULL;

    if (count <= MOST_ELEMENTS)
        block = calloc(1, sizeof *block + count * size);
    if (block == NULL)
        fail("memory must hold %lu values, and does not", (unsigned long)count);
    block->next = blocks;
    blocks = block;
    return block + 1;
}

static void free_all(void)
{
    while (blocks != NULL) {
        struct block *next = blocks->next;
        free(blocks);
        blocks = next;
    }
}

static char *copied(const char *text)
{
    char *copy = allocate(strlen(text) + 1, 1);
    return strcpy(copy, text);
}

/* ------------------------------------------------------------------------------------------------- reading */

static int64_t integer(const char *text)
{
    char *end;
    long long value;

    errno = 0;
    value = strtoll(text, &end, 10);
    if (*text == '\0' || isspace((unsigned char)*text) || *end != '\0' || errno != 0)
        fail("must be an integer of 64 bits, not %.40s", text);
    return (int64_t)value;
}

static size_t size(const char *text, size_t most)
{
    int64_t value = integer(text);
    if (value < 0 || (uint64_t)value > most)
        fail("must lie in 0..%lu, not %.40s", (unsigned long)most, text);
    return (size_t)value;
}

/* `s16 2 197 192`: a type, the number of axes, their sizes. Returns how many tokens that were. */
static size_t read_type(char **tokens, size_t n_tokens, struct array *array)
{
    size_t rank, elements = 1;

    if (n_tokens < 2 || (tokens[0][0] != 's' && tokens[0][0] != 'u'))
        fail("must be a type like s8 or u4 and the number of axes");
    array->is_signed = tokens[0][0] == 's';
    array->bits = (int)size(tokens[0] + 1, 64);
    if (array->bits < 1 || (array->bits == 64 && !array->is_signed))
        fail("type must be s1..s64 or u1..u63, not %.40s", tokens[0]);
    rank = size(tokens[1], INTVIT_MOST_AXES);
    if (n_tokens < 2 + rank)
        fail("must have the sizes of %lu axes", (unsigned long)rank);
    array->shape.rank = rank;
    for (size_t axis = 0; axis < rank; axis++) {
        array->shape.size[axis] = size(tokens[2 + axis], MOST_ELEMENTS);
        if (array->shape.size[axis] == 0 || array->shape.size[axis] > MOST_ELEMENTS / elements)
            fail("shape must have 1 to 2**31 elements");
        elements *= array->shape.size[axis];
    }
    return 2 + rank;
}

static int digit_of(int character)
{
    if (character >= '0' && character <= '9')
        return character - '0';
    if (character >= 'a' && character <= 'f')
        return character - 'a' + 10;
    if (character >= 'A' && character <= 'F')
        return character - 'A' + 10;
    return -1;
}

/* The value of a word of `n_digits` digits, all that its type has and maybe more: above its bits there are zeros, or
 * copies of the sign. */
static int64_t value_of(uint64_t word, int n_digits, const struct array *array, const char *path, size_t line)
{
    int width = 4 * n_digits;
    uint64_t all = width >= 64 ? UINT64_MAX : ((uint64_t)1 << width) - 1;
    uint64_t mask = array->bits == 64 ? UINT64_MAX : ((uint64_t)1 << array->bits) - 1;
    int negative = array->is_signed && (word >> (array->bits - 1)) % 2 == 1;

    if (n_digits < (array->bits + 3) / 4)
        fail("%s:%lu: word must have %d digits, not %d", path, (unsigned long)line, (array->bits + 3) / 4, n_digits);
    if ((word & ~mask) != 0 && !(negative && (word | mask) == all))
        fail("%s:%lu: word must fit %c%d, and does not", path, (unsigned long)line, array->is_signed ? 's' : 'u',
             array->bits);
    word &= mask;
    return negative ? -(int64_t)(mask - word) - 1 : (int64_t)word;
}

static int next_character(FILE *file, size_t *line)
{
    int character = getc(file);
    *line += character == '\n';
    return character;
}

/* What follows a slash: a comment. Returns the character behind it. */
static int skip_comment(FILE *file, const char *path, size_t *line)
{
    int character = next_character(file, line), last = 0;

    if (character == '/') {
        while (character != '\n' && character != EOF)
            character = next_character(file, line);
        return character;
    }
    if (character != '*')
        fail("%s:%lu: must be a comment after /", path, (unsigned long)*line);
    while ((character = next_character(file, line)) != EOF) {
        if (last == '*' && character == '/')
            return next_character(file, line);
        last = character;
    }
    fail("%s:%lu: comment must end, and does not", path, (unsigned long)*line);
    return EOF;
}

/* The text of $readmemh: words in hex, white space, comments, `_` inside words, @addresses (in words). */
static void read_hex(FILE *file, const char *path, struct array *array)
{
    size_t count = intvit_elements(&array->shape), at = 0, found = 0, line = 1;
    char *seen = allocate(count, 1);
    int character = next_character(file, &line);

    while (character != EOF) {
        int address = character == '@', n_digits = 0;
        size_t first = line;
        uint64_t word = 0;

        if (isspace(character)) {
            character = next_character(file, &line);
            continue;
        }
        if (character == '/') {
            character = skip_comment(file, path, &line);
            continue;
        }
        if (address)
            character = next_character(file, &line);
        for (; digit_of(character) >= 0 || (character == '_' && n_digits > 0);
             character = next_character(file, &line)) {
            if (character == '_')
                continue;
            if (word >> 60 != 0 || n_digits == 1000)
                fail("%s:%lu: word must fit 64 bits, and does not", path, (unsigned long)first);
            word = word << 4 | (uint64_t)digit_of(character);
            n_digits++;
        }
        if (n_digits == 0 || (character != EOF && !isspace(character) && character != '/'))
            fail("%s:%lu: must be hex digits, not character %d", path, (unsigned long)first, character);
        if (address) {
            if (word >= count)
                fail("%s:%lu: address must be below %lu, and is not", path, (unsigned long)first, (unsigned long)count);
            at = (size_t)word;
            continue;
        }
        if (at >= count || seen[at])
            fail("%s:%lu: must have %lu words, each once, and this is one too many", path, (unsigned long)first,
                 (unsigned long)count);
        seen[at] = 1;
        array->values[at++] = value_of(word, n_digits, array, path, first);
        found++;
    }
    if (found != count)
        fail("%s: must have %lu words, not %lu", path, (unsigned long)count, (unsigned long)found);
}

/* A path inside the folder of the case file. */
static void read_values(const char *name, struct array *array)
{
    const char *slash = strrchr(current_file, '/');
    size_t folder = slash == NULL ? 0 : (size_t)(slash - current_file) + 1;
    char *path = allocate(folder + strlen(name) + 1, 1);
    FILE *file;

    if (name[0] == '/' || strstr(name, "..") != NULL || strchr(name, '\\') != NULL || strchr(name, ':') != NULL)
        fail("path must stay in the folder of the case, and %.80s does not", name);
    memcpy(path, current_file, folder);
    strcpy(path + folder, name);
    file = fopen(path, "rb");
    if (file == NULL)
        fail("%.200s must be a file that can be read", path);
    array->values = allocate(intvit_elements(&array->shape), sizeof(int64_t));
    read_hex(file, path, array);
    if (ferror(file))
        fail("%.200s must be readable to its end", path);
    fclose(file);
}

/* ------------------------------------------------------------------------------------- the fields of a node */

static struct field *find(const struct node *node, const char *name)
{
    for (struct field *field = node->fields; field != NULL; field = field->next)
        if (strcmp(field->name, name) == 0) {
            field->used = 1;
            return field;
        }
    return NULL;
}

static struct field *needed(const struct node *node, const char *name)
{
    struct field *field = find(node, name);
    if (field == NULL)
        fail("%s must have %s, and has not", node->op, name);
    return field;
}

static const struct array *array_of(const struct node *node, const char *name)
{
    struct field *field = needed(node, name);
    if (field->array.values == NULL)
        fail("%s must be integers", name);
    return &field->array;
}

static int64_t number(const struct node *node, const char *name)
{
    const struct array *array = array_of(node, name);
    if (array->shape.rank != 0)
        fail("%s must be one number", name);
    return array->values[0];
}

static int64_t number_or(const struct node *node, const char *name, int64_t otherwise)
{
    return find(node, name) == NULL ? otherwise : number(node, name);
}

static struct intvit_vector vector(const struct node *node, const char *name)
{
    const struct array *array = array_of(node, name);
    struct intvit_vector found;

    if (array->shape.rank != 1)
        fail("%s must be a vector", name);
    found.count = array->shape.size[0];
    found.at = array->values;
    return found;
}

/* The place of a word among some. */
static int word_or(const struct node *node, const char *name, const char *const *words, int otherwise)
{
    struct field *field = find(node, name);
    if (field == NULL)
        return otherwise;
    for (int i = 0; words[i] != NULL; i++)
        if (field->word != NULL && strcmp(field->word, words[i]) == 0)
            return i;
    fail("%s must be a word that it may be, and is not", name);
    return 0;
}

static struct intvit_numerics numerics(const struct node *node)
{
    static const char *const roundings[] = {"half_even", "half_up", "half_away", "floor", "toward_zero", NULL};
    static const char *const overflows[] = {"saturate", "wrap", NULL};
    static const char *const residuals[] = {"each", "together", NULL};
    static const char *const policies[] = {"prove", "raise", "saturate", "saturate_end", "wrap", NULL};
    struct intvit_numerics how = intvit_hawq;

    how.multiplier_bits = number_or(node, "multiplier_bits", how.multiplier_bits);
    how.multiplier_signed = number_or(node, "multiplier_signed", how.multiplier_signed);
    how.shift_least = number_or(node, "shift_least", how.shift_least);
    how.shift_most = number_or(node, "shift_most", how.shift_most);
    how.double_rounding = number_or(node, "double_rounding", how.double_rounding);
    how.product_bits = number_or(node, "product_bits", how.product_bits);
    how.rounded_bits = number_or(node, "rounded_bits", how.rounded_bits);
    how.accumulator_bits = number_or(node, "accumulator_bits", how.accumulator_bits);
    how.rounding = (enum intvit_rounding)word_or(node, "rounding", roundings, INTVIT_HALF_EVEN);
    how.residual = (enum intvit_residual)word_or(node, "residuals", residuals, INTVIT_EACH);
    how.product_overflow = (enum intvit_overflow)word_or(node, "product_overflow", overflows, INTVIT_SATURATE);
    how.rounded_overflow = (enum intvit_overflow)word_or(node, "rounded_overflow", overflows, INTVIT_SATURATE);
    how.output_overflow = (enum intvit_overflow)word_or(node, "output_overflow", overflows, INTVIT_SATURATE);
    how.accumulator = (enum intvit_policy)word_or(node, "accumulator", policies, INTVIT_PROVE);
    if (!intvit_numerics_valid(&how))
        fail("numerics must lie in their ranges, and do not");
    return how;
}

/* --------------------------------------------------------------------------------------------- the operators */

static size_t channels_of(const struct array *array)
{
    return array->shape.rank == 0 ? 1 : array->shape.size[array->shape.rank - 1];
}

static int same_shape(const struct intvit_shape *a, const struct intvit_shape *b)
{
    return a->rank == b->rank && memcmp(a->size, b->size, a->rank * sizeof a->size[0]) == 0;
}

static void must_be_shaped(const struct array *array, const struct intvit_shape *shape, const char *what)
{
    if (!same_shape(&array->shape, shape))
        fail("%s must have the shape that the operator asks for, and has another", what);
}

static void checked(int status)
{
    static const char *const rules[] = {
        "", "constants must lie in the ranges of their parameter class, and do not",
        "inputs must lie in the ranges that the operator's words were proven for, and do not",
        "results must fit 64 bits, and do not", "accumulator must hold every sum, and does not"
    };
    if (status != INTVIT_OK)
        fail("%s", rules[status]);
}

/* A constant that is spread over the input, as one array of its shape; NULL where there is none. */
static const int64_t *spread(const struct node *node, const char *name, const struct intvit_shape *shape)
{
    const struct array *array;
    int64_t *values;

    if (find(node, name) == NULL)
        return NULL;
    array = array_of(node, name);
    values = allocate(intvit_elements(shape), sizeof *values);
    if (!intvit_broadcast(array->values, &array->shape, values, shape))
        fail("%s must broadcast to the input, and does not", name);
    return values;
}

/* One number times 1 is a zero point, which nothing multiplies or rounds. */
static int is_addend(const struct array *residual, const struct intvit_requantize *p)
{
    size_t count = intvit_elements(&residual->shape);

    if (p->residual_m.count != 1 || p->residual_e.count != 1 || p->residual_e.at[0] < 0 || p->residual_e.at[0] > 62
        || p->residual_m.at[0] != (int64_t)1 << p->residual_e.at[0])
        return 0;
    for (size_t i = 1; i < count; i++)
        if (residual->values[i] != residual->values[0])
            return 0;
    return 1;
}

static void requantize(const struct node *node, struct array **x, struct array *y)
{
    struct intvit_numerics how = numerics(node);
    struct intvit_requantize p = {0, 0, {0, NULL}, {0, NULL}, {0, NULL}, {0, NULL}};
    size_t channels = channels_of(x[0]), rows = intvit_elements(&x[0]->shape) / channels;
    const int64_t *residual = spread(node, "residual", &x[0]->shape), *addend = NULL;

    p.bits = number(node, "bits");
    p.is_unsigned = number_or(node, "is_unsigned", 0);
    p.m = vector(node, "m");
    p.e = vector(node, "e");
    must_be_shaped(y, &x[0]->shape, "output");
    if (node->n_reads == 2) {
        must_be_shaped(x[1], &x[0]->shape, "residual");
        if (residual != NULL)
            fail("residual must be an input or a constant, not both");
        residual = x[1]->values;
    }
    if (residual != NULL) {
        p.residual_m = vector(node, "residual_m");
        p.residual_e = vector(node, "residual_e");
        if (node->n_reads == 1 && is_addend(array_of(node, "residual"), &p)) {
            addend = residual;
            residual = NULL;
        }
    }
    for (size_t i = 0; i < rows; i++)
        checked(intvit_requantize(&p, &how, x[0]->values + i * channels,
                                  residual == NULL ? NULL : residual + i * channels,
                                  addend == NULL ? NULL : addend + i * channels, y->values + i * channels, channels));
}

static void linear(const struct node *node, struct array **x, struct array *y)
{
    struct intvit_numerics how = numerics(node);
    const struct array *weight = array_of(node, "weight");
    size_t channels = channels_of(x[0]), rows = intvit_elements(&x[0]->shape) / channels, outputs;
    struct intvit_shape shape = x[0]->shape;
    struct intvit_linear p = {NULL, NULL};

    if (weight->shape.rank != 2 || shape.rank < 1 || weight->shape.size[1] != channels)
        fail("weight must be (outputs, channels of the input), and is not");
    outputs = weight->shape.size[0];
    shape.size[shape.rank - 1] = outputs;
    must_be_shaped(y, &shape, "output");
    p.weight = weight->values;
    if (find(node, "bias") != NULL) {
        struct intvit_vector bias = vector(node, "bias");
        if (bias.count != outputs)
            fail("bias must have one element an output, and has not");
        p.bias = bias.at;
    }
    for (size_t i = 0; i < rows; i++)
        checked(intvit_linear(&p, &how, x[0]->values + i * channels, channels, y->values + i * outputs, outputs));
}

static void matrix_product(const struct node *node, struct array **x, struct array *y)
{
    struct intvit_numerics how = numerics(node);
    struct intvit_shape a = x[0]->shape, b = x[1]->shape;
    size_t rows, depth, columns, lead, axes = a.rank;

    if (axes < 2 || b.rank != axes || memcmp(a.size, b.size, (axes - 2) * sizeof a.size[0]) != 0
        || a.size[axes - 1] != b.size[axes - 2])
        fail("operands must be (..., R, K) and (..., K, C), and are not");
    rows = a.size[axes - 2];
    depth = a.size[axes - 1];
    columns = b.size[axes - 1];
    lead = intvit_elements(&a) / (rows * depth);
    a.size[axes - 1] = columns;
    must_be_shaped(y, &a, "output");
    for (size_t n = 0; n < lead; n++)
        for (size_t r = 0; r < rows; r++) {
            const int64_t *row = x[0]->values + (n * rows + r) * depth, *matrix = x[1]->values + n * depth * columns;
            int64_t *result = y->values + (n * rows + r) * columns;
            if (strcmp(node->op, "matmul") == 0)
                checked(intvit_matmul(&how, row, matrix, depth, columns, result));
            else
                checked(intvit_log2_matmul(&how, row, matrix, depth, columns, result));
        }
}

static size_t axis_of(const struct node *node, const struct array *x)
{
    int64_t axis = number(node, "axis");
    if (axis < 0 || (uint64_t)axis >= x->shape.rank)
        fail("axis must be one of the input's, and is not");
    return (size_t)axis;
}

static size_t inner_of(const struct array *x, size_t axis)
{
    size_t inner = 1;
    for (size_t i = axis + 1; i < x->shape.rank; i++)
        inner *= x->shape.size[i];
    return inner;
}

static void mean(const struct node *node, struct array **x, struct array *y)
{
    size_t axis = axis_of(node, x[0]), inner = inner_of(x[0], axis), count = x[0]->shape.size[axis];
    int64_t *column = allocate(count, sizeof *column);

    (void)number(node, "keepdims");
    if (intvit_elements(&y->shape) * count != intvit_elements(&x[0]->shape))
        fail("output must have the elements that are left of the input, and has not");
    for (size_t i = 0; i < intvit_elements(&y->shape); i++) {
        for (size_t k = 0; k < count; k++)
            column[k] = x[0]->values[(i / inner * count + k) * inner + i % inner];
        checked(intvit_mean(column, count, &y->values[i]));
    }
}

/* The rows that are left, from the first on. */
struct rows {
    const int64_t *x, *mask;
    int64_t *y;
    size_t channels, left;
};

static struct rows rows_of(const struct node *node, struct array **x, struct array *y)
{
    struct rows rows;

    must_be_shaped(y, &x[0]->shape, "output");
    rows.x = x[0]->values;
    rows.mask = strcmp(node->op, "softmax") == 0 ? spread(node, "mask", &x[0]->shape) : NULL;
    rows.y = y->values;
    rows.channels = channels_of(x[0]);
    rows.left = intvit_elements(&x[0]->shape) / rows.channels;
    return rows;
}

static void next(struct rows *rows)
{
    rows->x += rows->channels;
    rows->mask += rows->mask == NULL ? 0 : rows->channels;
    rows->y += rows->channels;
    rows->left--;
}

static void softmax_ivit(const struct node *node, struct array **x, struct array *y)
{
    struct intvit_softmax_ivit p = {number(node, "x0"), number(node, "n"), number(node, "out_bits")};

    for (struct rows r = rows_of(node, x, y); r.left > 0; next(&r))
        checked(intvit_softmax_ivit(&p, r.x, r.mask, r.y, r.channels));
}

static struct intvit_softmax_ibert ibert_parameters(const struct node *node)
{
    struct intvit_softmax_ibert p = {number(node, "x0"), number(node, "b"), number(node, "c"), number(node, "n"),
                                     number(node, "m"), number(node, "e"), number(node, "out_bits")};
    return p;
}

static void softmax_ibert(const struct node *node, struct array **x, struct array *y)
{
    struct intvit_softmax_ibert p = ibert_parameters(node);

    for (struct rows r = rows_of(node, x, y); r.left > 0; next(&r))
        checked(intvit_softmax_ibert(&p, r.x, r.mask, r.y, r.channels));
}

static void softmax_fqvit(const struct node *node, struct array **x, struct array *y)
{
    struct intvit_softmax_fqvit p = {number(node, "x0"), number(node, "b"), number(node, "c"), number(node, "n"),
                                     number(node, "bits")};

    for (struct rows r = rows_of(node, x, y); r.left > 0; next(&r))
        checked(intvit_softmax_fqvit(&p, r.x, r.mask, r.y, r.channels));
}

typedef int shift_gelu(const struct intvit_gelu_ivit *p, const int64_t *x, int64_t *y, size_t channels);

static void by_shifts(const struct node *node, struct array **x, struct array *y, shift_gelu *operator)
{
    struct intvit_gelu_ivit p = {number(node, "x0"), number(node, "n"), number(node, "out_bits")};

    for (struct rows r = rows_of(node, x, y); r.left > 0; next(&r))
        checked(operator(&p, r.x, r.y, r.channels));
}

static void gelu_ivit(const struct node *node, struct array **x, struct array *y)
{
    by_shifts(node, x, y, intvit_gelu_ivit);
}

static void silu_ivit(const struct node *node, struct array **x, struct array *y)
{
    by_shifts(node, x, y, intvit_silu_ivit);
}

static void quick_gelu_ivit(const struct node *node, struct array **x, struct array *y)
{
    by_shifts(node, x, y, intvit_quick_gelu_ivit);
}

static void gelu_ibert(const struct node *node, struct array **x, struct array *y)
{
    struct intvit_gelu_ibert p = {vector(node, "b"), vector(node, "c"), vector(node, "shift"), number(node, "n")};

    for (struct rows r = rows_of(node, x, y); r.left > 0; next(&r))
        checked(intvit_gelu_ibert(&p, r.x, r.y, r.channels));
}

static void silu_ibert(const struct node *node, struct array **x, struct array *y)
{
    struct intvit_softmax_ibert p = ibert_parameters(node);

    for (struct rows r = rows_of(node, x, y); r.left > 0; next(&r))
        checked(intvit_silu_ibert(&p, r.x, r.y, r.channels));
}

static void quick_gelu_ibert(const struct node *node, struct array **x, struct array *y)
{
    struct intvit_softmax_ibert p = ibert_parameters(node);

    for (struct rows r = rows_of(node, x, y); r.left > 0; next(&r))
        checked(intvit_quick_gelu_ibert(&p, r.x, r.y, r.channels));
}

static void layernorm_ivit(const struct node *node, struct array **x, struct array *y)
{
    struct intvit_layernorm_ivit p = {vector(node, "bias")};

    for (struct rows r = rows_of(node, x, y); r.left > 0; next(&r))
        checked(intvit_layernorm_ivit(&p, r.x, r.y, r.channels));
}

static void layernorm_ibert(const struct node *node, struct array **x, struct array *y)
{
    struct intvit_layernorm_ibert p = {vector(node, "bias"), number(node, "shift")};

    for (struct rows r = rows_of(node, x, y); r.left > 0; next(&r))
        checked(intvit_layernorm_ibert(&p, r.x, r.y, r.channels));
}

static void layernorm_fqvit(const struct node *node, struct array **x, struct array *y)
{
    struct intvit_layernorm_fqvit p = {
        vector(node, "factor"), vector(node, "sign"), vector(node, "slope"), vector(node, "slope_exp"),
        vector(node, "gain"), vector(node, "gain_exp"), vector(node, "bias"), vector(node, "bias_exp")
    };

    for (struct rows r = rows_of(node, x, y); r.left > 0; next(&r))
        checked(intvit_layernorm_fqvit(&p, r.x, r.y, r.channels));
}

static void rmsnorm_ivit(const struct node *node, struct array **x, struct array *y)
{
    for (struct rows r = rows_of(node, x, y); r.left > 0; next(&r))
        checked(intvit_rmsnorm_ivit(r.x, r.y, r.channels));
}

static void rmsnorm_ibert(const struct node *node, struct array **x, struct array *y)
{
    struct intvit_rmsnorm_ibert p = {number(node, "shift")};

    for (struct rows r = rows_of(node, x, y); r.left > 0; next(&r))
        checked(intvit_rmsnorm_ibert(&p, r.x, r.y, r.channels));
}

/* --------------------------------------------------------------------------------------------------- layout */

static void reshape(const struct node *node, struct array **x, struct array *y)
{
    (void)vector(node, "shape");
    if (intvit_elements(&x[0]->shape) != intvit_elements(&y->shape))
        fail("output must have the elements of the input, and has not");
    memcpy(y->values, x[0]->values, intvit_elements(&y->shape) * sizeof(int64_t));
}

static void transpose(const struct node *node, struct array **x, struct array *y)
{
    struct intvit_vector order = vector(node, "perm");
    struct intvit_shape shape = x[0]->shape;
    size_t perm[INTVIT_MOST_AXES];
    int seen[INTVIT_MOST_AXES] = {0};

    if (order.count != shape.rank)
        fail("perm must name every axis once, and does not");
    for (size_t axis = 0; axis < shape.rank; axis++) {
        if (order.at[axis] < 0 || (uint64_t)order.at[axis] >= shape.rank || seen[order.at[axis]])
            fail("perm must name every axis once, and does not");
        perm[axis] = (size_t)order.at[axis];
        seen[perm[axis]] = 1;
        shape.size[axis] = x[0]->shape.size[perm[axis]];
    }
    must_be_shaped(y, &shape, "output");
    intvit_transpose(x[0]->values, &x[0]->shape, perm, y->values);
}

static void pick(const struct node *node, struct array **x, struct array *y, int64_t start, int64_t step)
{
    size_t axis = axis_of(node, x[0]), length = x[0]->shape.size[axis];
    size_t rest = intvit_elements(&x[0]->shape) / length, count = intvit_elements(&y->shape) / rest;
    size_t reach = step > 0 ? (length - 1) / (size_t)step : step < 0 ? (length - 1) / (size_t)-step : 0;

    if (step == 0 || step > (int64_t)MOST_ELEMENTS || step < -(int64_t)MOST_ELEMENTS || start < 0
        || (uint64_t)start >= length || count < 1 || count * rest != intvit_elements(&y->shape) || count - 1 > reach
        || start + step * (int64_t)(count - 1) < 0 || (uint64_t)(start + step * (int64_t)(count - 1)) >= length)
        fail("output must be a part of the input, and is not");
    intvit_slice(x[0]->values, &x[0]->shape, axis, (size_t)start, step, count, y->values);
}

static void take(const struct node *node, struct array **x, struct array *y)
{
    pick(node, x, y, number(node, "index"), 1);
}

static void slice(const struct node *node, struct array **x, struct array *y)
{
    pick(node, x, y, number(node, "start"), number(node, "step"));
}

/* `order`: the number of an input, or -1 - i for the constant `part<i>`. */
static void concat(const struct node *node, struct array **x, struct array *y)
{
    struct intvit_vector order = vector(node, "order");
    size_t axis = axis_of(node, y), at = 0;

    for (size_t i = 0; i < order.count; i++) {
        const struct array *part;
        struct intvit_shape shape = y->shape;
        char name[32];

        if (order.at[i] >= (int64_t)node->n_reads || order.at[i] < -(int64_t)MOST_READS)
            fail("order must name inputs and parts, and does not");
        snprintf(name, sizeof name, "part%d", order.at[i] < 0 ? (int)(-1 - order.at[i]) : 0);
        part = order.at[i] < 0 ? array_of(node, name) : x[order.at[i]];
        if (part->shape.rank != shape.rank || part->shape.size[axis] > shape.size[axis] - at)
            fail("parts must form the output, and do not");
        shape.size[axis] = part->shape.size[axis];
        must_be_shaped(part, &shape, "part");
        intvit_join(part->values, &part->shape, axis, at, y->values, &y->shape);
        at += part->shape.size[axis];
    }
    if (at != y->shape.size[axis])
        fail("parts must form the output, and do not");
}

/* ------------------------------------------------------------------------------------------ a case, replayed */

static const struct {
    const char *op, *method;
    size_t least_reads, most_reads;
    void (*run)(const struct node *node, struct array **x, struct array *y);
} operators[] = {
    {"requantize", "-", 1, 2, requantize},
    {"linear", "-", 1, 1, linear},
    {"matmul", "-", 2, 2, matrix_product},
    {"log2_matmul", "-", 2, 2, matrix_product},
    {"mean", "-", 1, 1, mean},
    {"softmax", "ivit", 1, 1, softmax_ivit},
    {"softmax", "ibert", 1, 1, softmax_ibert},
    {"softmax", "fqvit", 1, 1, softmax_fqvit},
    {"gelu", "ivit", 1, 1, gelu_ivit},
    {"gelu", "ibert", 1, 1, gelu_ibert},
    {"silu", "ivit", 1, 1, silu_ivit},
    {"silu", "ibert", 1, 1, silu_ibert},
    {"quick_gelu", "ivit", 1, 1, quick_gelu_ivit},
    {"quick_gelu", "ibert", 1, 1, quick_gelu_ibert},
    {"layernorm", "ivit", 1, 1, layernorm_ivit},
    {"layernorm", "ibert", 1, 1, layernorm_ibert},
    {"layernorm", "fqvit", 1, 1, layernorm_fqvit},
    {"rmsnorm", "ivit", 1, 1, rmsnorm_ivit},
    {"rmsnorm", "ibert", 1, 1, rmsnorm_ibert},
    {"reshape", "-", 1, 1, reshape},
    {"transpose", "-", 1, 1, transpose},
    {"take", "-", 1, 1, take},
    {"slice", "-", 1, 1, slice},
    {"concat", "-", 1, MOST_READS, concat},
};

static void run_node(struct replayed *it, struct node *node)
{
    struct array *x[MOST_READS], *y = &it->tensors[node->writes];
    size_t i = 0, n = sizeof operators / sizeof operators[0];

    while (i < n && (strcmp(operators[i].op, node->op) != 0 || strcmp(operators[i].method, node->method) != 0))
        i++;
    if (i == n)
        fail("%s %s must be an operator of this reference, and is not", node->op, node->method);
    if (node->n_reads < operators[i].least_reads || node->n_reads > operators[i].most_reads)
        fail("%s must read other inputs than %lu", node->op, (unsigned long)node->n_reads);
    for (size_t k = 0; k < node->n_reads; k++) {
        x[k] = &it->tensors[node->reads[k]];
        if (x[k]->values == NULL)
            fail("tensor %lu must be known before it is read", (unsigned long)node->reads[k]);
    }
    if (y->values != NULL)
        fail("tensor %lu must be written once", (unsigned long)node->writes);
    y->values = allocate(intvit_elements(&y->shape), sizeof *y->values);
    operators[i].run(node, x, y);
    for (struct field *field = node->fields; field != NULL; field = field->next)
        if (!field->used)
            fail("%s must be a parameter of %s, and is not", field->name, node->op);
}

static void print_word(const char *what, int64_t value, const struct array *tensor)
{
    uint64_t mask = tensor->bits == 64 ? UINT64_MAX : ((uint64_t)1 << tensor->bits) - 1;
    printf("%s %lld (%0*llx)", what, (long long)value, (tensor->bits + 3) / 4,
           (unsigned long long)((uint64_t)value & mask));
}

/* Prints the first difference, if there is one. */
static int differs(const struct array *expected, const struct array *found, const char *site, size_t image)
{
    size_t count = intvit_elements(&expected->shape), at = 0, different = 0, rest;

    for (size_t i = count; i-- > 0;)
        if (expected->values[i] != found->values[i]) {
            at = i;
            different++;
        }
    if (different == 0)
        return 0;
    rest = at;
    printf("%s: %s: image %lu: element %lu [", current_file, site, (unsigned long)image, (unsigned long)at);
    for (size_t axis = 0; axis < expected->shape.rank; axis++) {
        size_t inner = inner_of(expected, axis);
        printf("%s%lu", axis > 0 ? ", " : "", (unsigned long)(rest / inner));
        rest %= inner;
    }
    print_word("]: expected", expected->values[at], expected);
    print_word(", got", found->values[at], expected);
    printf("; %lu of %lu differ\n", (unsigned long)different, (unsigned long)count);
    return 1;
}

/* One line of printable ASCII as tokens; 0 at the end of the file. */
static size_t read_line(FILE *file, char *line, char **tokens)
{
    size_t n = 0;

    while (n == 0) {
        size_t length = 0;
        int character;

        current_line++;
        while ((character = getc(file)) != EOF && character != '\n') {
            if (length == MOST_LINE - 1 || ((character < 32 || character > 126) && character != '\t'))
                fail("line must be printable ASCII of less than %d characters", MOST_LINE);
            line[length++] = (char)character;
        }
        line[length] = '\0';
        if (length == 0 && character == EOF)
            return 0;
        for (char *token = strtok(line, " \t"); token != NULL; token = strtok(NULL, " \t")) {
            if (n == MOST_TOKENS)
                fail("line must have %d words at most", MOST_TOKENS);
            tokens[n++] = token;
        }
    }
    return n;
}

static void must_have(size_t n, size_t least, size_t most, const char *form)
{
    if (n < least || n > most)
        fail("must read `%s`", form);
}

static struct field *new_field(struct node *node, const char *name)
{
    struct field *field = allocate(1, sizeof *field), **last = &node->fields;

    for (; *last != NULL; last = &(*last)->next)
        if (strcmp((*last)->name, name) == 0)
            fail("%s must be given once", name);
    *last = field;
    field->name = copied(name);
    field->array.bits = 64;
    field->array.is_signed = 1;
    return field;
}

/* The lines of a node up to `end`. */
static struct node *read_node(FILE *file, char *line, char **tokens, size_t n_tensors)
{
    struct node *node = allocate(1, sizeof *node);
    int written = 0;
    size_t n;

    node->op = copied(tokens[1]);
    node->method = copied(tokens[2]);
    node->site = copied(tokens[3]);
    while ((n = read_line(file, line, tokens)) > 0 && strcmp(tokens[0], "end") != 0) {
        if (strcmp(tokens[0], "reads") == 0) {
            must_have(n, 2, MOST_READS + 1, "reads TENSOR ...");
            node->n_reads = n - 1;
            for (size_t i = 1; i < n; i++)
                node->reads[i - 1] = size(tokens[i], n_tensors - 1);
        } else if (strcmp(tokens[0], "writes") == 0) {
            must_have(n, 2, 2, "writes TENSOR");
            node->writes = size(tokens[1], n_tensors - 1);
            written = 1;
        } else if (strcmp(tokens[0], "number") == 0 || strcmp(tokens[0], "numbers") == 0) {
            struct intvit_shape *shape;
            struct field *field;
            int one = strcmp(tokens[0], "number") == 0;

            must_have(n, 3, one ? 3 : MOST_TOKENS, "number NAME VALUE");
            field = new_field(node, tokens[1]);
            shape = &field->array.shape;
            shape->rank = one ? 0 : 1;
            shape->size[0] = n - 2;
            field->array.values = allocate(n - 2, sizeof(int64_t));
            for (size_t i = 2; i < n; i++)
                field->array.values[i - 2] = integer(tokens[i]);
        } else if (strcmp(tokens[0], "word") == 0) {
            must_have(n, 3, 3, "word NAME WORD");
            new_field(node, tokens[1])->word = copied(tokens[2]);
        } else if (strcmp(tokens[0], "array") == 0) {
            struct field *field;
            size_t read;

            must_have(n, 5, MOST_TOKENS, "array NAME TYPE AXES SIZES FILE");
            field = new_field(node, tokens[1]);
            read = read_type(tokens + 2, n - 3, &field->array);
            must_have(n, read + 3, read + 3, "array NAME TYPE AXES SIZES FILE");
            read_values(tokens[n - 1], &field->array);
        } else
            fail("must be reads, writes, number, numbers, word, array or end, not %.40s", tokens[0]);
    }
    if (n == 0 || !written || node->n_reads == 0)
        fail("node must read and write tensors and end, and does not");
    return node;
}

static int run_image(struct replayed *it, const struct array *expected, size_t image)
{
    int different = 0;

    for (struct node *node = it->nodes; node != NULL; node = node->next) {
        current_node = node;
        run_node(it, node);
        current_node = NULL;
        if (expected[node->writes].values == NULL)
            continue;
        it->compared++;
        it->elements += intvit_elements(&expected[node->writes].shape);
        if (!different)
            different = differs(&expected[node->writes], &it->tensors[node->writes], node->site, image);
    }
    it->images++;
    return different;
}

/* The lines of an image up to `run`, and the comparison. */
static int replay_image(FILE *file, char *line, char **tokens, struct replayed *it)
{
    struct array *expected = allocate(it->n_tensors, sizeof *expected);
    size_t image = size(tokens[1], MOST_ELEMENTS), n, n_expected = 0, before = it->compared;
    int different;

    for (size_t i = 0; i < it->n_tensors; i++) {
        expected[i] = it->tensors[i];
        expected[i].values = it->tensors[i].values = NULL;
    }
    while ((n = read_line(file, line, tokens)) > 0 && strcmp(tokens[0], "run") != 0) {
        int stimulus = strcmp(tokens[0], "stimulus") == 0;
        struct array *array;

        if (!stimulus && strcmp(tokens[0], "expected") != 0)
            fail("must be stimulus, expected or run, not %.40s", tokens[0]);
        must_have(n, 3, 3, "stimulus TENSOR FILE");
        array = &(stimulus ? it->tensors : expected)[size(tokens[1], it->n_tensors - 1)];
        if (array->values != NULL)
            fail("tensor must be given once, and is not");
        read_values(tokens[2], array);
        n_expected += !stimulus;
    }
    if (n == 0 || n_expected == 0)
        fail("image must expect a tensor at least and run, and does not");
    different = run_image(it, expected, image);
    if (it->compared - before != n_expected)
        fail("expected tensors must be written by a node, and one is not");
    return different;
}

static int replay(const char *path)
{
    static char line[MOST_LINE], *tokens[MOST_TOKENS];
    struct replayed it = {NULL, 0, 0, 0, 0, NULL};
    struct node **last = &it.nodes;
    FILE *file = fopen(path, "rb");
    int different = 0;
    size_t n, room = 0;

    current_file = path;
    current_line = 0;
    if (file == NULL)
        fail("must be a file that can be read");
    n = read_line(file, line, tokens);
    if (n != 4 || strcmp(tokens[0], "intvit") != 0 || strcmp(tokens[1], "c") != 0 || strcmp(tokens[2], "case") != 0
        || strcmp(tokens[3], "1") != 0)
        fail("must begin with `intvit c case 1`");
    while ((n = read_line(file, line, tokens)) > 0 && strcmp(tokens[0], "end") != 0) {
        if (strcmp(tokens[0], "tensor") == 0) {
            must_have(n, 4, 4 + INTVIT_MOST_AXES, "tensor NUMBER TYPE AXES SIZES");
            if (it.nodes != NULL || size(tokens[1], MOST_ELEMENTS) != it.n_tensors)
                fail("tensors must come first, numbered from 0 on");
            if (it.n_tensors == room) {
                struct array *more = allocate(room = 2 * room + 16, sizeof *more);
                if (it.n_tensors > 0)
                    memcpy(more, it.tensors, it.n_tensors * sizeof *more);
                it.tensors = more;
            }
            if (read_type(tokens + 2, n - 2, &it.tensors[it.n_tensors]) != n - 2)
                fail("must read `tensor NUMBER TYPE AXES SIZES`");
            it.n_tensors++;
        } else if (strcmp(tokens[0], "node") == 0) {
            must_have(n, 4, 4, "node OPERATOR METHOD SITE");
            if (it.n_tensors == 0 || it.images > 0)
                fail("nodes must come between tensors and images");
            *last = read_node(file, line, tokens, it.n_tensors);
            last = &(*last)->next;
        } else if (strcmp(tokens[0], "image") == 0) {
            must_have(n, 2, 2, "image NUMBER");
            if (it.nodes == NULL)
                fail("images must come after the nodes");
            different |= replay_image(file, line, tokens, &it);
        } else
            fail("must be tensor, node, image or end, not %.40s", tokens[0]);
    }
    if (it.images == 0)
        fail("must have an image at least");
    if (n != 1 || read_line(file, line, tokens) != 0 || ferror(file))
        fail("must end with `end` and nothing behind it");
    fclose(file);
    if (!different)
        printf("%s: equal: %lu images, %lu tensors, %lu elements\n", path, (unsigned long)it.images,
               (unsigned long)it.compared, (unsigned long)it.elements);
    free_all();
    return different;
}

int main(int count, char **arguments)
{
    int status = 0;

    if (count < 2) {
        fprintf(stderr, "usage: %s CASE.txt [CASE.txt ...]\n", count > 0 ? arguments[0] : "replay");
        return 2;
    }
    for (int i = 1; i < count; i++)
        status |= replay(arguments[i]);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "standard output must take what is printed, and does not\n");
        return 2;
    }
    return status;
}
