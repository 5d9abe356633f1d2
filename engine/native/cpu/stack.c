/* A stack of layers, and single products, as phases of the pool: what Python calls. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dispatch.h"
#include "pool.h"

enum { ROWS_AT_ONCE = 192, NORM_ELEMENTS = 8192, SUMMED_ELEMENTS = 1 << 15, PHASES = 15 };

enum part { PRODUCTS, NORMS, ROTATION, ATTENTION, HEAD, CHOICE }; /* of a step, as `appliance_seconds` tells them */

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
static int64_t thread_bytes(const struct stack *d) {
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
EXPORTED int appliance_reserve(struct machine *machine, const struct stack *stack) {
  return pool_reserve(machine->pool, (size_t)thread_bytes(stack));
}

/* Gives each thread what it takes to choose out of that many tokens; 0 if there is no memory. */
EXPORTED int appliance_reserve_choice(struct machine *machine, int64_t vocabulary) {
  enum { MOST_LANES = 16, BYTES = 4 + 8 }; /* how likely each is, and each as a candidate */
  return pool_reserve(machine->pool, (size_t)((vocabulary + MOST_LANES) * BYTES));
}

/* Tokens [rows] from logits [rows, vocabulary], each as its own choice says. */
EXPORTED void appliance_choose(struct machine *machine, const float *logits, const struct choice *choices, int64_t rows,
                               int64_t vocabulary, int64_t *tokens) {
  struct chosen chosen = {logits, choices, tokens, vocabulary};
  struct phase phase = {machine->of[FLOAT32]->choose, &chosen, rows, CHOICE};
  if (rows > 0) pool_run(machine->pool, &phase, 1);
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

/* Puts down the phases of a product, one or two; where the next one goes. `sums` [rows, in / GROUP] is memory for those of x. */
static struct phase *put_product(struct phase *phase, const struct kernels *kernels, struct product_work *w,
                                 struct multiplied value, float *sums, int threads, int part) {
  const struct product *product = value.product;
  w->multiplied = value;
  if (takes_sums(product->form)) {
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

/* The largest of each piece of a row of logits, [rows, pieces]. */
struct compared {
  const struct largest *of;
  int64_t pieces;
  int64_t *tokens;
};

static void compare(const void *context, int64_t row, void *scratch) {
  const struct compared *c = context;
  const struct largest *of = c->of + row * c->pieces;
  (void)scratch;
  struct largest best = {-INFINITY, -1};
  for (int64_t i = 0; i < c->pieces; i++)
    if (of[i].value > best.value || (best.column < 0 && of[i].value == best.value)) best = of[i];
  c->tokens[row] = best.column < 0 ? 0 : best.column; /* none is a number */
}

/* The tokens [rows] that `appliance_choose` chooses at temperature 0 out of the first `vocabulary` outputs of a product.
 * Memory is of 8 bytes for each block of each row; `sums` as for `put_product`. */
EXPORTED void appliance_likeliest(struct machine *machine, int element, const struct product *product, const void *x,
                                  int64_t rows, int64_t vocabulary, int64_t *tokens, void *memory, float *sums) {
  if (rows == 0) return;
  struct product_work work;
  struct phase phases[3];
  struct multiplied value = {.product = product, .x = x, .out = memory, .rows = rows, .ending = LARGEST, .columns = vocabulary};
  struct phase *end = put_product(phases, machine->of[element], &work, value, sums, pool_threads(machine->pool), HEAD);
  struct compared compared = {memory, ceiling(product->out / BLOCK, work.multiplied.block_step), tokens};
  *end++ = (struct phase){compare, &compared, rows, CHOICE};
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

static struct places places_of(const struct stack *d, const struct batch *batch, char *memory) {
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
EXPORTED int64_t appliance_scratch(const struct stack *stack, const struct batch *batch) {
  static char nothing[1];
  return places_of(stack, batch, nothing).bytes;
}

/* How many sequences from `s` on, `limit` at most, are single tokens one behind the other, on the same pages and in as
 * many parts: drafts, as a rule. Each adds up what it would by itself, but a key is read once for all of them. */
static int64_t alike(const struct batch *batch, int64_t s, int64_t window, int64_t limit) {
  int64_t count = 1;
  for (int64_t n = s + 1; n < batch->sequences && count < limit; n++, count++) {
    int64_t length = batch->lengths[n], pages = batch->page_start[n] - batch->page_start[n - 1];
    if (batch->query_start[n + 1] - batch->query_start[n] != 1 || length != batch->lengths[n - 1] + 1 ||
        parts_of(length) != parts_of(length - 1) || seen_keys(batch, n, window) != length || pages == 0 ||
        batch->page_start[n + 1] - batch->page_start[n] < pages ||
        memcmp(batch->page_indices + batch->page_start[n - 1], batch->page_indices + batch->page_start[n],
               (size_t)pages * sizeof *batch->page_indices) != 0)
      break;
  }
  return count;
}

/* Shares of the batch's attention in a layer of this window. Parts of a token's keys are by position, so that
 * a token's sums are in the same order in any batch; how many heads a share has changes none of them. */
static void share_out(const struct stack *d, const struct batch *batch, int64_t window, int threads,
                      struct share *shares, int64_t *share_count, struct join *joins, int64_t *join_count) {
  int64_t step = most(QUERY_ROWS / (d->heads / d->kv_heads), 1), part = 0, single = 0, together = 0;
  *share_count = *join_count = 0;
  for (int64_t s = 0; s < batch->sequences; s++)
    if (batch->query_start[s + 1] - batch->query_start[s] == 1) single += parts_of(seen_keys(batch, s, window));
  int64_t limit = single * d->kv_heads / (4 * threads); /* so that there is something for every thread */
  limit = most(limit < QUERY_ROWS / d->heads ? limit : QUERY_ROWS / d->heads, 1);
  for (int64_t s = 0; s < batch->sequences; s++)
    if (batch->query_start[s + 1] - batch->query_start[s] == 1) {
      s += alike(batch, s, window, limit) - 1;
      together += parts_of(seen_keys(batch, s, window));
    }
  int32_t heads = together >= 4 * threads ? (int32_t)d->kv_heads : 1;
  for (int64_t s = 0; s < batch->sequences; s++) {
    int32_t first = batch->query_start[s], last = batch->query_start[s + 1];
    if (last - first == 1) {
      int64_t rows = alike(batch, s, window, limit);
      s += rows - 1; /* whose table has the pages of all */
      last = batch->query_start[s + 1];
      int64_t length = batch->lengths[s], begin = length - seen_keys(batch, s, window);
      int64_t one = begin / PART_KEYS, end = ceiling(length, PART_KEYS), count = end - one;
      for (int64_t p = one; p < end; p++) {
        int64_t from = most(p * PART_KEYS, begin), to = (p + 1) * PART_KEYS < length ? (p + 1) * PART_KEYS : length;
        for (int32_t head = 0; head < d->kv_heads; head += heads)
          shares[(*share_count)++] = (struct share){(int32_t)s, head, heads, first, last, (int32_t)from, (int32_t)(to - from),
                                                    count > 1 ? (int32_t)(part + p - one) : -1, (int32_t)count};
      }
      for (int32_t row = first; count > 1 && row < last; row++) {
        joins[(*join_count)++] = (struct join){row, (int32_t)part, (int32_t)count};
        part += count;
      }
    } else {
      for (int32_t from = last; from > first; from -= (int32_t)step) /* the last see most: first */
        for (int32_t head = 0; head < d->kv_heads; head++) {
          int32_t begin = from - (int32_t)step > first ? from - (int32_t)step : first;
          shares[(*share_count)++] = (struct share){(int32_t)s, head, 1, begin, from, -1, 0, -1, 0};
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
EXPORTED void appliance_attend(struct machine *machine, const struct stack *d, int64_t index, const struct batch *batch,
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
  struct attended attended = {d, layer, batch, p.shares, queries, layer->key_pages, layer->value_pages,
                              d->kv_heads * d->head_dim, d->kv_heads * d->value_dim, out, p.parts,
                              d->heads * d->head_dim};
  struct merged merged = {d, p.joins, p.parts, out};
  struct phase phases[2] = {{kernels->attend, &attended, count, ATTENTION}, {kernels->merge, &merged, joined, ATTENTION}};
  pool_run(machine->pool, phases, joined > 0 ? 2 : 1);
}

/* Layers [first, last) of a stack; with the last of all, the final norm. */
EXPORTED void appliance_compute(struct machine *machine, const struct stack *d, const struct step *step) {
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
    if (step->cosines[layer->rotary] != NULL) {
      w->rotated = (struct rotated){d, layer, step, p.qkv, rows};
      *phase++ = (struct phase){kernels->rotate, &w->rotated, rows, ROTATION};
    }
    int64_t bytes = element_bytes(d->element);
    w->attended = (struct attended){d, layer, batch, shares, p.qkv, layer->key_pages, layer->value_pages,
                                    d->kv_heads * d->head_dim, d->kv_heads * d->value_dim, p.attended, p.parts, stride};
    if (layer->key_pages == NULL) {
      w->attended.keys = p.qkv + d->heads * d->head_dim * bytes;
      w->attended.values = p.qkv + (d->heads + d->kv_heads) * d->head_dim * bytes;
      w->attended.key_stride = w->attended.value_stride = stride;
    }
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
    value = (struct multiplied){.product = &layer->gate_up, .x = step->normed, .out = p.gated, .rows = rows, .ending = d->ungated ? ACTIVATE : GATE, .activation = d->activation};
    phase = put_product(phase, kernels, &w->gate_up, value, p.sums, threads, PRODUCTS);
    inner = layer->gated.weight != NULL;
    value = (struct multiplied){.product = &layer->down, .x = p.gated, .out = inner ? p.added : step->residual, .rows = rows, .ending = inner ? STORE : ADD};
    phase = put_product(phase, kernels, &w->down, value, p.sums, threads, PRODUCTS);
    if (inner)
      *phase++ = norm_phase(kernels, &w->gated_norm, (struct normed){layer->gated, p.added, NULL, step->residual, rows, d->hidden, 0});
  }
  struct normed last;
  if (step->last == d->count && step->final.weight != NULL)
    *phase++ = norm_phase(kernels, &last, (struct normed){step->final, step->residual, step->normed, NULL, rows, d->hidden, 0});
  pool_run(machine->pool, p.phases, (int)(phase - p.phases));
}
