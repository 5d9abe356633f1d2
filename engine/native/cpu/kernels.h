/* What one variant does with elements of one kind: pieces of a layer's work. */
#ifndef APPLIANCE_KERNELS_H
#define APPLIANCE_KERNELS_H

#include <string.h>

#include "interface.h"

#define INLINE static inline __attribute__((always_inline))

INLINE float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

INLINE uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

/* 32 bits of elements, two of bfloat16: they may lie anyhow, as a weight in a checkpoint's file does. */
typedef uint32_t unit __attribute__((aligned(1), may_alias));

/* What becomes of a product. */
enum ending {
  STORE,    /* to `out` as elements */
  ADD,      /* to the elements that are there */
  ACTIVATE, /* as STORE, of the activation */
  GATE,     /* activation(left block) * right block: half as many columns */
  WIDE,     /* to `out` as float32 */
  LARGEST   /* of some blocks' columns the largest alone: to `out` as `struct largest` */
};

/* The largest of some columns, of equals the first; -1: it is less than all that are numbers, and none of them. */
struct largest {
  float value;
  int32_t column;
};

/* Some rows by some columns of a product. */
struct multiplied {
  const struct product *product;
  const void *x; /* [rows, in] */
  void *out;     /* [rows, out], or half as wide */
  int64_t rows;
  int32_t ending, activation;
  int64_t row_step, block_step; /* of a piece: rows, and blocks of columns: 1, 2 or 4 */
  int64_t ahead;                /* pieces from one to that which the same thread does next, as a rule */
  const float *group_sums;      /* [rows, in / GROUP] of x, by a weight that has them added */
  int64_t columns;              /* of `out`, LARGEST: those behind them fill up the last block */
};

/* Sums of each group of a product's inputs. */
struct summed {
  const void *x;
  float *sums;
  int64_t rows, groups, step;
};

struct normed {
  struct norm norm;
  const void *x;
  void *out;
  void *added; /* NULL, or what the result is added to, instead of `out` */
  int64_t rows, width, step;
};

struct rotated {
  const struct stack *stack;
  const struct layer *layer;
  const struct step *step;
  void *qkv; /* [tokens, (heads + kv_heads) * head_dim + kv_heads * value_dim]: queries are rotated in place, and
              * keys that go to no page */
  int64_t rows;
};

struct attended {
  const struct stack *stack;
  const struct layer *layer;
  const struct batch *batch;
  const struct share *shares; /* one a piece */
  const void *queries;        /* rows `stride` elements apart, heads side by side */
  const void *keys, *values;  /* in pages */
  int64_t key_stride, value_stride; /* elements from one to the next */
  void *out;                  /* [tokens, heads * value_dim] */
  float *parts;               /* what is merged afterwards */
  int64_t stride;
};

/* Queries of one sequence: of a prompt's tokens for one head of keys, or of single tokens for some, over some keys.
 * Several single tokens are a batch's sequences that stand one key further each, on the same pages; the last one's
 * table has them all. */
struct share {
  int32_t sequence, head, heads; /* of keys */
  int32_t first, last;    /* rows of the step */
  int32_t key, keys;      /* of the last single token: where its piece begins and how long it is; else -1 */
  int32_t part, stride;   /* where in `parts` it goes, and from one token's to the next's; -1: it is all there is */
};

/* Parts of one token's attention, to be put together. */
struct merged {
  const struct stack *stack;
  const struct join *joins; /* one a piece */
  const float *parts;
  void *out;
};

struct join {
  int32_t row, part, count;
};

struct chosen {
  const float *logits; /* [rows, vocabulary] */
  const struct choice *choices;
  int64_t *tokens;
  int64_t vocabulary;
};

enum { QUERY_ROWS = 192, KEY_BLOCK = 64, PART_KEYS = 256 };

typedef void work(const void *context, int64_t piece, void *scratch);

struct kernels {
  work *multiply, *multiply_quantized, *sum_groups, *normalize, *rotate, *attend, *merge, *choose;
};

/* Of a column of a group, in 16 bits: integers and what they mean. */
static inline int64_t group_halves(int64_t form) {
  return form == INT4 ? GROUP / 4 + 2 : form == INT8 ? GROUP / 2 + 1 : GROUP / 2 + 2;
}

/* Whether an input of a form is more than a multiple of an integer, so that it takes its group's sum of x. */
static inline int has_least(int64_t form) { return form == INT4 || form == INT8_LEAST; }

/* Whether a product takes these sums; of segments it may be one. */
static inline int takes_sums(int64_t form) { return has_least(form) || form == SEGMENTS; }

/* of floats, a part: largest score, sum, then the values of each head */
static inline int64_t part_floats(const struct stack *stack) { return stack->heads * (stack->value_dim + 2); }

#endif
