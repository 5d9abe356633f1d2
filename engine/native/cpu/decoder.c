/* A stack of layers, and single products, as phases of the pool: what Python calls. */
#include <stdlib.h>
#include <string.h>

#include "dispatch.h"
#include "pool.h"

enum { ROWS_AT_ONCE = 192, NORM_ELEMENTS = 8192, SUMMED_ELEMENTS = 1 << 15, PHASES = 15 };

enum part { PRODUCTS, NORMS, ROTATION, ATTENTION, HEAD }; /* of a step, as `appliance_seconds` tells them */

struct machine {
  struct pool *pool;
  double seconds[MOST_PARTS];
  const struct kernels *of[2]; /* by element */
};

/* Contexts of a product's phases. */
struct product_work {
  struct multiplied multiplied;
  struct summed summed;
};

/* Contexts of a layer's phases. */
struct layer_work {
  struct product_work qkv, output, gate_up, down;
  struct normed input, mlp, attended_norm, gated_norm;
  struct rotated rotated;
  struct attended attended;
  struct merged merged;
};

/* What a step computes in, from its scratch memory. */
struct places {
  char *qkv, *attended, *added, *gated;
  float *parts, *sums;
  struct share *shares;
  struct join *joins;
  struct layer_work *layers;
  struct phase *phases;
  int64_t bytes;
};

EXPORTED int appliance_version(void) { return APPLIANCE_VERSION; }

static int64_t element_bytes(int element) { return element == BFLOAT16 ? 2 : 4; }

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Bytes of memory that a thread needs of its own: what `attend_many` works in. */
static int64_t thread_bytes(const struct decoder *d) {
  int64_t rows = most(QUERY_ROWS, d->heads), blocks = d->head_dim + d->value_dim;
  return 4 * (rows * (d->value_dim + 2) + KEY_BLOCK * blocks + rows * d->head_dim);
}

/* NULL where there is no such variant, or neither memory nor threads. */
EXPORTED struct machine *appliance_machine(const char *variant, int threads) {
  struct machine *machine = calloc(1, sizeof *machine);
  if (machine == NULL) return NULL;
  for (int element = 0; element < 2; element++) machine->of[element] = kernels_of(variant, element);
  if (machine->of[0] != NULL) machine->pool = pool_new(threads);
  if (machine->pool != NULL) return machine;
  free(machine);
  return NULL;
}

EXPORTED void appliance_machine_free(struct machine *machine) {
  pool_free(machine->pool);
  free(machine);
}

/* Seconds that were spent in each part since the last call, [MOST_PARTS]; the first one begins it. */
EXPORTED void appliance_seconds(struct machine *machine, double *seconds) {
  memcpy(seconds, machine->seconds, sizeof machine->seconds);
  memset(machine->seconds, 0, sizeof machine->seconds);
  pool_time(machine->pool, machine->seconds);
}

/* Gives each thread the memory that attention of this shape takes; 0 if there is none. */
EXPORTED int appliance_reserve(struct machine *machine, const struct decoder *decoder) {
  return pool_reserve(machine->pool, (size_t)thread_bytes(decoder));
}

/* Rows of a weight, in units of 32 bits, into their places of the packed one; every `stride`th block is theirs. */
EXPORTED void appliance_pack(uint32_t *packed, const unit *weight, int64_t rows, int64_t units, int64_t blocks,
                             int64_t first_block, int64_t stride) {
  for (int64_t n = 0; n < rows; n += BLOCK) {
    int64_t block = first_block + n / BLOCK * stride, panel = block / 4 * 4;
    int64_t pitch = (blocks - panel < 4 ? blocks - panel : 4) * BLOCK;
    uint32_t *to = packed + panel * BLOCK * units + block % 4 * BLOCK;
    for (int64_t k = 0; k < units; k++)
      for (int64_t i = 0; i < BLOCK; i++) to[k * pitch + i] = weight[(n + i) * units + k];
  }
}

/* Sizes a product's pieces, and says how many there are: several for each thread, none smaller than pays. */
static int64_t pieces_of(struct multiplied *m, int threads) {
  int64_t blocks = m->product->out / BLOCK, least = m->ending == GATE ? 2 : 1;
  int64_t enough = (m->product->form == WHOLE ? 8 : 3) * threads; /* integers are best read by whole panels */
  m->ahead = threads;
  m->row_step = m->rows <= ROWS_AT_ONCE ? m->rows : ceiling(m->rows, ceiling(m->rows, ROWS_AT_ONCE));
  int64_t groups = ceiling(m->rows, m->row_step);
  m->block_step = 4;
  while (m->block_step > least && ceiling(blocks, m->block_step) * groups < enough) m->block_step /= 2;
  return ceiling(blocks, m->block_step) * groups;
}

/* Puts down the phases of a product, one or two; where the next one goes. `sums` [rows, in / GROUP] is memory for INT4. */
static struct phase *put_product(struct phase *phase, const struct kernels *kernels, struct product_work *w,
                                 struct multiplied value, float *sums, int threads, int part) {
  const struct product *product = value.product;
  w->multiplied = value;
  if (product->form == INT4) {
    w->summed = (struct summed){value.x, sums, value.rows, product->in / GROUP, most(SUMMED_ELEMENTS / product->in, 1)};
    w->multiplied.group_sums = sums;
    *phase++ = (struct phase){kernels->sum_groups, &w->summed, ceiling(value.rows, w->summed.step), part};
  }
  int64_t pieces = pieces_of(&w->multiplied, threads);
  work *multiply = product->form == WHOLE ? kernels->multiply : kernels->multiply_quantized;
  *phase++ = (struct phase){multiply, &w->multiplied, pieces, part};
  return phase;
}

/* `sums` as for `put_product`. */
EXPORTED void appliance_multiply(struct machine *machine, int element, const struct product *product, const void *x,
                                 int64_t rows, void *out, int wide, float *sums) {
  if (rows == 0) return;
  struct product_work work;
  struct phase phases[2];
  struct multiplied value = {.product = product, .x = x, .out = out, .rows = rows, .ending = wide ? WIDE : STORE};
  struct phase *end = put_product(phases, machine->of[element], &work, value, sums, pool_threads(machine->pool), HEAD);
  pool_run(machine->pool, phases, (int)(end - phases));
}

static void *take(char **at, int64_t bytes) {
  void *place = *at;
  *at += (bytes + 63) / 64 * 64;
  return place;
}

/* Pieces of one token's keys. */
static int64_t parts_of(int64_t keys) { return ceiling(keys, PART_KEYS); }

static int64_t seen_keys(const struct batch *batch, int64_t sequence, int64_t window) {
  int64_t length = batch->lengths[sequence];
  return window >= 0 && length > window + 1 ? window + 1 : length;
}

static struct places places_of(const struct decoder *d, const struct batch *batch, char *memory) {
  struct places p;
  char *at = memory;
  int64_t bytes = element_bytes(d->element), tokens = batch->tokens;
  int64_t wide = d->heads * d->head_dim + d->kv_heads * (d->head_dim + d->value_dim);
  int64_t group = d->heads / d->kv_heads, step = most(QUERY_ROWS / group, 1), shares = 0, parts = 0;
  for (int64_t s = 0; s < batch->sequences; s++) {
    int64_t rows = batch->query_start[s + 1] - batch->query_start[s];
    int64_t pieces = rows == 1 ? parts_of(batch->lengths[s]) + 1 : ceiling(rows, step);
    shares += pieces * d->kv_heads;
    if (rows == 1) parts += pieces;
  }
  p.qkv = take(&at, tokens * wide * bytes);
  p.attended = take(&at, tokens * d->heads * d->value_dim * bytes);
  p.added = take(&at, tokens * d->hidden * bytes);
  p.gated = take(&at, tokens * d->intermediate * bytes);
  p.parts = take(&at, parts * part_floats(d) * 4);
  p.sums = take(&at, tokens * most(most(d->hidden, d->intermediate), d->heads * d->value_dim) / GROUP * 4);
  p.shares = take(&at, 2 * shares * (int64_t)sizeof *p.shares); /* of two kinds of window */
  p.joins = take(&at, 2 * shares * (int64_t)sizeof *p.joins);
  p.layers = take(&at, d->count * (int64_t)sizeof *p.layers);
  p.phases = take(&at, (d->count * PHASES + 1) * (int64_t)sizeof *p.phases);
  p.bytes = at - memory;
  return p;
}

/* Bytes of scratch memory that a step takes. */
EXPORTED int64_t appliance_scratch(const struct decoder *decoder, const struct batch *batch) {
  static char nothing[1];
  return places_of(decoder, batch, nothing).bytes;
}

/* Shares of the batch's attention in a layer of this window. Parts of a token's keys are by position, so that
 * a token's sums are in the same order in any batch; how many heads a share has changes none of them. */
static void share_out(const struct decoder *d, const struct batch *batch, int64_t window, int threads,
                      struct share *shares, int64_t *share_count, struct join *joins, int64_t *join_count) {
  int64_t step = most(QUERY_ROWS / (d->heads / d->kv_heads), 1), part = 0, together = 0;
  *share_count = *join_count = 0;
  for (int64_t s = 0; s < batch->sequences; s++)
    if (batch->query_start[s + 1] - batch->query_start[s] == 1) together += parts_of(seen_keys(batch, s, window));
  int32_t heads = together >= 4 * threads ? (int32_t)d->kv_heads : 1;
  for (int64_t s = 0; s < batch->sequences; s++) {
    int32_t first = batch->query_start[s], last = batch->query_start[s + 1];
    if (last - first == 1) {
      int64_t length = batch->lengths[s], begin = length - seen_keys(batch, s, window);
      int64_t one = begin / PART_KEYS, end = ceiling(length, PART_KEYS), count = end - one;
      for (int64_t p = one; p < end; p++) {
        int64_t from = most(p * PART_KEYS, begin), to = (p + 1) * PART_KEYS < length ? (p + 1) * PART_KEYS : length;
        for (int32_t head = 0; head < d->kv_heads; head += heads)
          shares[(*share_count)++] = (struct share){(int32_t)s,    head, heads, first, last, (int32_t)from,
                                                    (int32_t)(to - from), count > 1 ? (int32_t)(part + p - one) : -1};
      }
      if (count > 1) {
        joins[(*join_count)++] = (struct join){first, (int32_t)part, (int32_t)count};
        part += count;
      }
    } else {
      for (int32_t from = last; from > first; from -= (int32_t)step) /* the last see most: first */
        for (int32_t head = 0; head < d->kv_heads; head++) {
          int32_t begin = from - (int32_t)step > first ? from - (int32_t)step : first;
          shares[(*share_count)++] = (struct share){(int32_t)s, head, 1, begin, from, -1, 0, -1};
        }
    }
  }
}

static struct phase norm_phase(const struct kernels *kernels, struct normed *at, struct normed value) {
  *at = value;
  at->step = most(NORM_ELEMENTS / value.width, 1);
  return (struct phase){kernels->normalize, at, ceiling(value.rows, at->step), NORMS};
}

/* Keys and values of one layer stored, then attended to. */
EXPORTED void appliance_attend(struct machine *machine, const struct decoder *d, int64_t index, const struct batch *batch,
                               const void *queries, const void *keys, const void *values, void *out, void *scratch) {
  const struct kernels *kernels = machine->of[d->element];
  const struct layer *layer = &d->layers[index];
  struct places p = places_of(d, batch, scratch);
  int64_t bytes = element_bytes(d->element), count = 0, joined = 0;
  int64_t key = d->kv_heads * d->head_dim * bytes, value = d->kv_heads * d->value_dim * bytes;
  if (batch->tokens == 0) return;
  for (int64_t row = 0; row < batch->tokens; row++) {
    memcpy((char *)layer->key_pages + batch->slots[row] * key, (const char *)keys + row * key, (size_t)key);
    memcpy((char *)layer->value_pages + batch->slots[row] * value, (const char *)values + row * value, (size_t)value);
  }
  share_out(d, batch, layer->window, pool_threads(machine->pool), p.shares, &count, p.joins, &joined);
  struct attended attended = {d, layer, batch, p.shares, queries, out, p.parts, d->heads * d->head_dim};
  struct merged merged = {d, p.joins, p.parts, out};
  struct phase phases[2] = {{kernels->attend, &attended, count, ATTENTION}, {kernels->merge, &merged, joined, ATTENTION}};
  pool_run(machine->pool, phases, joined > 0 ? 2 : 1);
}

/* Layers [first, last) of a decoder; with the last of all, the final norm. */
EXPORTED void appliance_decode(struct machine *machine, const struct decoder *d, const struct step *step) {
  const struct batch *batch = step->batch;
  const struct kernels *kernels = machine->of[d->element];
  struct places p = places_of(d, batch, step->scratch);
  struct phase *phase = p.phases;
  int threads = pool_threads(machine->pool);
  int64_t rows = batch->tokens, share_count[2] = {0, 0}, join_count[2] = {0, 0}, windows[2];
  int64_t half = ((char *)p.joins - (char *)p.shares) / (int64_t)sizeof *p.shares / 2, known = 0;
  int64_t stride = d->heads * d->head_dim + d->kv_heads * (d->head_dim + d->value_dim);
  struct multiplied value;
  if (rows == 0) return;
  for (int64_t l = step->first; l < step->last; l++) {
    const struct layer *layer = &d->layers[l];
    struct layer_work *w = &p.layers[l];
    int64_t kind = 0;
    while (kind < known && windows[kind] != layer->window) kind++;
    struct share *shares = p.shares + kind * half;
    struct join *joins = p.joins + kind * half;
    if (kind == known) {
      windows[known++] = layer->window;
      share_out(d, batch, layer->window, threads, shares, &share_count[kind], joins, &join_count[kind]);
    }
    *phase++ = norm_phase(kernels, &w->input, (struct normed){layer->input, step->residual, step->normed, NULL, rows, d->hidden, 0});
    value = (struct multiplied){.product = &layer->qkv, .x = step->normed, .out = p.qkv, .rows = rows, .ending = STORE};
    phase = put_product(phase, kernels, &w->qkv, value, p.sums, threads, PRODUCTS);
    w->rotated = (struct rotated){d, layer, step, p.qkv, rows};
    *phase++ = (struct phase){kernels->rotate, &w->rotated, rows, ROTATION};
    w->attended = (struct attended){d, layer, batch, shares, p.qkv, p.attended, p.parts, stride};
    *phase++ = (struct phase){kernels->attend, &w->attended, share_count[kind], ATTENTION};
    if (join_count[kind] > 0) {
      w->merged = (struct merged){d, joins, p.parts, p.attended};
      *phase++ = (struct phase){kernels->merge, &w->merged, join_count[kind], ATTENTION};
    }
    int inner = layer->attended.weight != NULL;
    value = (struct multiplied){.product = &layer->output, .x = p.attended, .out = inner ? p.added : step->residual, .rows = rows, .ending = inner ? STORE : ADD};
    phase = put_product(phase, kernels, &w->output, value, p.sums, threads, PRODUCTS);
    if (inner)
      *phase++ = norm_phase(kernels, &w->attended_norm, (struct normed){layer->attended, p.added, NULL, step->residual, rows, d->hidden, 0});
    *phase++ = norm_phase(kernels, &w->mlp, (struct normed){layer->mlp, step->residual, step->normed, NULL, rows, d->hidden, 0});
    value = (struct multiplied){.product = &layer->gate_up, .x = step->normed, .out = p.gated, .rows = rows, .ending = GATE, .activation = d->activation};
    phase = put_product(phase, kernels, &w->gate_up, value, p.sums, threads, PRODUCTS);
    inner = layer->gated.weight != NULL;
    value = (struct multiplied){.product = &layer->down, .x = p.gated, .out = inner ? p.added : step->residual, .rows = rows, .ending = inner ? STORE : ADD};
    phase = put_product(phase, kernels, &w->down, value, p.sums, threads, PRODUCTS);
    if (inner)
      *phase++ = norm_phase(kernels, &w->gated_norm, (struct normed){layer->gated, p.added, NULL, step->residual, rows, d->hidden, 0});
  }
  struct normed last;
  if (step->last == d->count)
    *phase++ = norm_phase(kernels, &last, (struct normed){step->final, step->residual, step->normed, NULL, rows, d->hidden, 0});
  pool_run(machine->pool, p.phases, (int)(phase - p.phases));
}
