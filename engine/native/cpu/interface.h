/* What Python hands over: plain structs of pointers and sizes, all checked there (engine/native/library.py). */
#ifndef APPLIANCE_INTERFACE_H
#define APPLIANCE_INTERFACE_H

#include <stdint.h>

#define APPLIANCE_VERSION 4 /* another for each change of this file */

#define EXPORTED __attribute__((visibility("default")))

enum { BLOCK = 16, PANEL = 64 }; /* columns of a product: of a vector register, of a panel of four */
enum { GROUP = 32 };             /* inputs of one output that share a scale, where a weight is of integers */

enum element { BFLOAT16, FLOAT32 };
enum activation { SILU, GELU_TANH, GELU, QUICK_GELU };
enum form { WHOLE, INT8, INT4, INT8_HALVES, INT8_LEAST, SEGMENTS }; /* of a weight: elements, or integers and what they mean */

/* A weight [out, in] in panels of 64 outputs, in each the inputs in turn, of each the outputs side by side.
 *
 * WHOLE, by `appliance_pack`: two bfloat16 inputs, or one float32, are a unit of 32 bits. The others, by
 * `appliance_quantize` or `appliance_repack`: groups of 32 inputs in turn, in each first the integers and then what they mean,
 * column by column. A unit has four inputs of eight bits, in the bytes 0, 2, 1 and 3, or eight of four bits: those of even
 * number in its lower half, the others in the upper one. An input of INT8 is q * scale, with q from -128 to 127; of
 * INT8_HALVES too, but the last 16 of a group have a scale of their own, behind all columns' first ones. One of INT4, with q
 * from 0 to 15, and of INT8_LEAST is q * scale + least. All are float16, the scale in the lower half where they are a unit.
 *
 * SEGMENTS: `packed` leads to segments of some outputs each, which have forms of their own: none is WHOLE or SEGMENTS. */
struct segment {
  const void *packed; /* in panels of its own */
  int64_t out, form;
};

struct product {
  const void *packed;
  const void *bias; /* [out], or NULL */
  int64_t out, in, form;
};

struct norm {
  const void *weight; /* NULL: there is no such norm */
  const void *bias;   /* NULL: by the root mean square alone; else of the difference from the mean, and this added */
  float epsilon;
  int32_t from_one; /* by 1 + weight */
};

struct layer {
  struct product qkv, output, gate_up, down; /* gate and up by turns, a block of each, or up alone */
  struct norm input, mlp, queries, keys, attended, gated;
  void *key_pages, *value_pages; /* [pages, page_size, kv_heads, head_dim]; NULL: nothing is stored, a tower's */
  int64_t window;                /* earlier keys that a token sees; -1: all */
  int64_t rotary;                /* which of a step's angles */
};

/* A stack of layers, a tower's among them: each row of its batch is a page, as rows of the step lie. */
struct stack {
  const struct layer *layers;
  int64_t count, hidden, intermediate, heads, kv_heads, head_dim, value_dim, page_size;
  float scale, soft_cap; /* soft_cap 0: none */
  int32_t activation, element, ungated;
};

/* Sequences of a step, packed one after the other. */
struct batch {
  int64_t sequences, tokens;
  const int32_t *query_start;  /* [sequences + 1] rows of the step */
  const int32_t *page_start;   /* [sequences + 1] in page_indices */
  const int32_t *page_indices;
  const int32_t *lengths;      /* [sequences] keys, the step's own included */
  const int64_t *slots;        /* [tokens] where keys and values are stored */
  const int64_t *last_seen;    /* [tokens] last position that a token sees beyond its own, or NULL */
};

/* How a row's token is chosen. */
struct choice {
  double point;      /* in [0, 1): where in the distribution */
  float temperature; /* 0: the likeliest */
  float top_p, min_p;
  int32_t top_k; /* 0: all */
  const uint32_t *allowed; /* token t may come if bit t % 32 of number t / 32 is set; NULL: all may */
};

struct step {
  const struct batch *batch;
  void *residual;            /* [tokens, hidden]: in and out */
  void *normed;              /* [tokens, hidden]: the final norm's result */
  const float *cosines[2];   /* [tokens, head_dim] of each kind of layer; NULL: a tower's that rotates nothing */
  const float *sines[2];
  struct norm final;         /* a tower has none */
  int64_t first, last;       /* layers */
  void *scratch;             /* as much as appliance_scratch says */
};

#endif
