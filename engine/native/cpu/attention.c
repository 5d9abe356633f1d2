/* Attention over pages: of single tokens, memory bound, a piece of their keys at a time; of prompts by blocks of
 * queries and keys. Softmax in float32, kept as it goes (Milakov and Gimelshein 2018). */

enum { KEYS = BLOCK, MOST_HEADS = 8, AHEAD = 4 }; /* of a single token: keys at a time, heads that share them */

/* Where a sequence's keys or values lie, one after the other: a page is looked up once. */
struct walk {
  const element *page;
  const int32_t *next; /* of the page table */
  const element *pages;
  int64_t left, page_size, step; /* keys left on the page, and elements from one to the next */
};

INLINE struct walk walk_from(const struct attended *a, const void *pages, int64_t step, int64_t sequence,
                             int64_t position, int64_t head, int64_t size) {
  const struct batch *batch = a->batch;
  int64_t page_size = a->stack->page_size, offset = position % page_size;
  const int32_t *table = batch->page_indices + batch->page_start[sequence] + position / page_size;
  const element *from = (const element *)pages + head * size;
  return (struct walk){from + (*table * page_size + offset) * step, table + 1, from, page_size - offset, page_size, step};
}

INLINE const element *walk_on(struct walk *walk) {
  if (walk->left == 0) { /* only now: there may be no other page */
    walk->page = walk->pages + *walk->next++ * walk->page_size * walk->step;
    walk->left = walk->page_size;
  }
  const element *found = walk->page;
  walk->page += walk->step;
  walk->left--;
  return found;
}

INLINE void ask_for(const element *from, int64_t size) {
  for (int64_t i = 0; i < size; i += 64 / (int64_t)sizeof(element)) __builtin_prefetch(from + i);
}

/* cap * tanh(x / cap), where there is a cap; no number stays none */
INLINE floats capped(floats x, float cap) {
  if (cap == 0) return x;
  floats twice = smaller(broadcast(126.0f), x * (2.0f / cap * LOG2_E));
  return cap * (1.0f - 2.0f / (two_to(twice) + 1.0f));
}

INLINE uint32_t unit_at(const element *from, int64_t unit) {
  uint32_t value;
  memcpy(&value, from + unit * UNIT, 4);
  return value;
}

/* Scores of some heads' queries, `size` elements apart, for one key. */
#define SCORES(HEADS)                                                                                                   \
  static void scores_##HEADS(const element *queries, const element *key, int64_t size, float *to) {                     \
    floats sum[HEADS];                                                                                                  \
    int64_t units = size / UNIT, u = 0;                                                                                 \
    for (int h = 0; h < HEADS; h++) sum[h] = broadcast(0);                                                              \
    for (; u + LANES <= units; u += LANES) {                                                                            \
      words column = load_words((const uint32_t *)(const void *)(key + u * UNIT));                                      \
      for (int h = 0; h < HEADS; h++)                                                                                   \
        sum[h] = multiply_add_lanes(sum[h], column,                                                                     \
                                    load_words((const uint32_t *)(const void *)(queries + h * size + u * UNIT)));       \
    }                                                                                                                   \
    for (int h = 0; h < HEADS; h++) {                                                                                   \
      float score = sum_of(sum[h]);                                                                                     \
      for (int64_t i = u * UNIT; i < size; i++) score += widen(queries[h * size + i]) * widen(key[i]);                  \
      to[h * KEYS] = score;                                                                                             \
    }                                                                                                                   \
  }

/* Adds the values of some keys, each by its weight for each head, to `sums` [heads, size]. */
#define VALUES(HEADS)                                                                                                   \
  static void values_##HEADS(const element *const *keys, int64_t count, const float *weights, int64_t size,             \
                             float *sums) {                                                                             \
    for (int64_t i = 0; i < size; i += LANES) {                                                                         \
      floats sum[HEADS];                                                                                                \
      for (int h = 0; h < HEADS; h++) sum[h] = load_floats(sums + h * size + i);                                        \
      for (int64_t k = 0; k < count; k++) {                                                                             \
        floats value = load(keys[k] + i);                                                                               \
        for (int h = 0; h < HEADS; h++) sum[h] += value * weights[h * KEYS + k];                                        \
      }                                                                                                                 \
      for (int h = 0; h < HEADS; h++) store_floats(sums + h * size + i, sum[h]);                                        \
    }                                                                                                                   \
  }

#define FOR_HEADS(MAKE) MAKE(1) MAKE(2) MAKE(3) MAKE(4) MAKE(5) MAKE(6) MAKE(7) MAKE(8)
FOR_HEADS(SCORES)
FOR_HEADS(VALUES)

typedef void scores(const element *queries, const element *key, int64_t size, float *to);
typedef void values(const element *const *keys, int64_t count, const float *weights, int64_t size, float *sums);
static scores *const SCORES_OF[MOST_HEADS] = {scores_1, scores_2, scores_3, scores_4,
                                              scores_5, scores_6, scores_7, scores_8};
static values *const VALUES_OF[MOST_HEADS] = {values_1, values_2, values_3, values_4,
                                              values_5, values_6, values_7, values_8};

/* Scores of one head to weights, 2^(score - largest), the same base for all; returns what to multiply sums before by. */
static float weigh(float *scores, int64_t count, float scale, float cap, float *largest, float *sum) {
  floats top = broadcast(*largest);
  for (int64_t i = 0; i < count; i += LANES) {
    floats score = load_floats(scores + i);
    score = cap == 0 ? score * (scale * LOG2_E) : capped(score * scale, cap) * LOG2_E;
    store_floats(scores + i, score);
    top = larger(top, score);
  }
  float most = largest_of(top), by = *largest == most ? 1.0f : two_to(broadcast(*largest - most))[0];
  floats added = broadcast(0);
  for (int64_t i = 0; i < count; i += LANES) {
    floats weight = two_to(load_floats(scores + i) - most);
    store_floats(scores + i, weight);
    added += weight;
  }
  *largest = most;
  *sum = *sum * by + sum_of(added);
  return by;
}

/* What a token's heads have seen so far: largest score, sum of weights, and values not yet divided by it. */
struct seen {
  float *largest, *sum, *values;
};

/* The weights of some keys for `heads` queries that share a head of keys, and these keys' values by them. */
static void see(const struct stack *stack, const element *queries, int64_t heads, const element *const *keys,
                const element *const *values, int64_t count, struct seen seen) {
  int64_t size = stack->head_dim, wide = stack->value_dim;
  _Alignas(64) float weights[MOST_HEADS * KEYS];
  for (int64_t k = 0; k < count; k++) SCORES_OF[heads - 1](queries, keys[k], size, weights + k);
  for (int64_t h = 0; h < heads; h++) {
    float *score = weights + h * KEYS, before = seen.sum[h];
    for (int64_t k = count; k < KEYS; k++) score[k] = score[0]; /* no key: as far as the first, and not counted */
    float by = weigh(score, KEYS, stack->scale, stack->soft_cap, &seen.largest[h], &seen.sum[h]);
    if (count < KEYS) {
      seen.sum[h] = before * by;
      for (int64_t k = 0; k < count; k++) seen.sum[h] += score[k];
    }
    if (by != 1.0f)
      for (int64_t i = 0; i < wide; i += LANES)
        store_floats(seen.values + h * wide + i, load_floats(seen.values + h * wide + i) * by);
  }
  VALUES_OF[heads - 1](values, count, weights, wide, seen.values);
}

/* Single tokens over a share of their keys, for some heads of keys: these lie side by side, so memory is read in a
 * row. What is done for a token is the same with others beside it. */
static void attend_one(const struct attended *a, const struct share *share, float *scratch) {
  const struct stack *stack = a->stack;
  int64_t group = stack->heads / stack->kv_heads, size = stack->head_dim, wide = stack->value_dim;
  int64_t rows = share->last - share->first, own = share->heads * group, all = rows * own, first_head = share->head * group;
  struct seen seen = {scratch, scratch + all, scratch + (2 * all + LANES - 1) / LANES * LANES};
  const element *queries = (const element *)a->queries + share->first * a->stride + first_head * size;
  struct walk keys = walk_from(a, a->keys, a->key_stride, share->sequence, share->key, share->head, size);
  struct walk values = walk_from(a, a->values, a->value_stride, share->sequence, share->key, share->head, wide);
  struct walk next_keys = keys, next_values = values;
  int64_t length = a->batch->lengths[share->sequence]; /* of the last token */
  int64_t ahead = 0; /* keys that have been asked for: memory is slower than what is done with it */
  for (int64_t h = 0; h < all; h++) seen.largest[h] = -INFINITY, seen.sum[h] = 0;
  memset(seen.values, 0, (size_t)(all * wide) * sizeof(float));
  for (int64_t done = 0; done < share->keys; done += KEYS) {
    int64_t count = share->keys - done < KEYS ? share->keys - done : KEYS;
    const element *key[KEYS], *value[KEYS];
    for (; ahead < share->keys && ahead < done + AHEAD * KEYS; ahead++) {
      ask_for(walk_on(&next_keys), share->heads * size);
      ask_for(walk_on(&next_values), share->heads * wide);
    }
    for (int64_t k = 0; k < count; k++) key[k] = walk_on(&keys), value[k] = walk_on(&values);
    for (int64_t head = 0; head < share->heads; head++) {
      for (int64_t row = 0; row < rows; row++) {
        int64_t left = length - (rows - 1 - row) - share->key - done, there = left < count ? left : count;
        for (int64_t first = 0; first < group && there > 0; first += MOST_HEADS) {
          int64_t heads = group - first < MOST_HEADS ? group - first : MOST_HEADS, at = head * group + first;
          struct seen some = {seen.largest + row * own + at, seen.sum + row * own + at, seen.values + (row * own + at) * wide};
          see(stack, queries + row * a->stride + at * size, heads, key, value, there, some);
        }
      }
      for (int64_t k = 0; k < count; k++) key[k] += size, value[k] += wide;
    }
  }
  for (int64_t h = 0; h < all; h++) {
    const float *found = seen.values + h * wide;
    int64_t row = h / own, head = first_head + h % own;
    if (share->part < 0) {
      element *to = (element *)a->out + ((share->first + row) * stack->heads + head) * wide;
      for (int64_t i = 0; i < wide; i += LANES) store(to + i, load_floats(found + i) * (1.0f / seen.sum[h]));
    } else {
      float *to = a->parts + ((share->part + row * share->stride) * stack->heads + head) * (wide + 2);
      to[0] = seen.largest[h], to[1] = seen.sum[h];
      memcpy(to + 2, found, (size_t)wide * sizeof(float));
    }
  }
}

static void merge(const void *context, int64_t piece, void *scratch) {
  const struct merged *m = context;
  const struct stack *stack = m->stack;
  const struct join *join = &m->joins[piece];
  (void)scratch;
  int64_t wide = stack->value_dim, step = stack->heads * (wide + 2);
  for (int64_t h = 0; h < stack->heads; h++) {
    const float *parts = m->parts + join->part * step + h * (wide + 2);
    element *to = (element *)m->out + (join->row * stack->heads + h) * wide;
    float top = -INFINITY, sum = 0;
    for (int64_t p = 0; p < join->count; p++) top = parts[p * step] > top ? parts[p * step] : top;
    for (int64_t p = 0; p < join->count; p++)
      sum += two_to(broadcast(parts[p * step] - top))[0] * parts[p * step + 1];
    for (int64_t i = 0; i < wide; i += LANES) {
      floats value = broadcast(0);
      for (int64_t p = 0; p < join->count; p++)
        value += load_floats(parts + p * step + 2 + i) * two_to(broadcast(parts[p * step] - top));
      store(to + i, value * (1.0f / sum));
    }
  }
}

/* A block of keys [units, KEY_BLOCK] and of values [KEY_BLOCK / UNIT, size] as weights of a product are. */
static void pack_block(const struct attended *a, const struct share *share, int64_t first, int64_t count,
                       uint32_t *keys, uint32_t *values) {
  int64_t size = a->stack->head_dim, wide = a->stack->value_dim, units = size / UNIT;
  struct walk from = walk_from(a, a->keys, a->key_stride, share->sequence, first, share->head, size);
  if (count < KEY_BLOCK) {
    memset(keys, 0, (size_t)(units * KEY_BLOCK) * 4);
    memset(values, 0, (size_t)(KEY_BLOCK / UNIT * wide) * 4);
  }
  for (int64_t k = 0; k < count; k++) {
    const element *key = walk_on(&from);
    for (int64_t u = 0; u < units; u++) keys[u * KEY_BLOCK + k] = unit_at(key, u);
  }
  from = walk_from(a, a->values, a->value_stride, share->sequence, first, share->head, wide);
  for (int64_t k = 0; k < count; k += UNIT) {
    const element *value[UNIT];
    for (int64_t u = 0; u < UNIT; u++) value[u] = k + u < count ? walk_on(&from) : NULL;
    element *to = (element *)(values + k / UNIT * wide);
    if (value[UNIT - 1] != NULL)
      for (int64_t i = 0; i < wide; i += LANES) by_turns(to + i * UNIT, value[0] + i, value[UNIT - 1] + i);
    else
      for (int64_t i = 0; i < wide; i++) to[i * UNIT] = value[0][i];
  }
}

/* One row's scores of a block to weights: those of keys [low, high) of it. Returns what to multiply sums before by. */
static float weigh_row(const struct stack *stack, float *scores, element *weights, int64_t low, int64_t high,
                       float *largest, float *sum) {
  enum { VECTORS = KEY_BLOCK / LANES };
  float scale = stack->scale * LOG2_E, cap = stack->soft_cap;
  floats score[VECTORS], top = broadcast(*largest), added = broadcast(0);
  if (low >= high) {
    memset(weights, 0, KEY_BLOCK * sizeof(element));
    return 1.0f;
  }
  for (int64_t i = 0; i < low; i++) scores[i] = -INFINITY;
  for (int64_t i = high; i < KEY_BLOCK; i++) scores[i] = -INFINITY;
  for (int v = 0; v < VECTORS; v++) {
    score[v] = load_floats(scores + v * LANES);
    if (cap == 0) {
      score[v] *= scale;
    } else {
      ints hidden = score[v] == -INFINITY;
      score[v] = capped(score[v] * stack->scale, cap) * LOG2_E;
      score[v] = (floats)(((ints)score[v] & ~hidden) | ((ints)broadcast(-INFINITY) & hidden));
    }
    top = larger(top, score[v]);
  }
  float most = largest_of(top), by = *largest == most ? 1.0f : two_to(broadcast(*largest - most))[0];
  for (int v = 0; v < VECTORS; v++) {
    floats weight = two_to(score[v] - most);
    /* 2^-127 of what is hidden would be a weight, if the least one */
    weight = (floats)((ints)weight & ~(ints)(score[v] - most <= -126.0f));
    store(weights + v * LANES, weight);
    added += weight;
  }
  *largest = most;
  *sum = *sum * by + sum_of(added);
  return by;
}

/* Behind the last key that a row's token sees: of its span those that there are, its slice may end within it. */
INLINE int64_t end_of(const struct batch *batch, int64_t row, int64_t own, int64_t length) {
  int64_t end = own + 1;
  if (batch->last_seen != NULL && batch->last_seen[row] >= end) end = batch->last_seen[row] + 1;
  return end < length ? end : length;
}

static void attend_many(const struct attended *a, const struct share *share, float *scratch) {
  const struct stack *stack = a->stack;
  const struct batch *batch = a->batch;
  int64_t group = stack->heads / stack->kv_heads, size = stack->head_dim, wide = stack->value_dim;
  int64_t tokens = share->last - share->first, rows = tokens * group, units = size / UNIT;
  int64_t position = batch->lengths[share->sequence] - (batch->query_start[share->sequence + 1] - share->first);
  float *sums = scratch, *largest = sums + rows * wide, *sum = largest + rows;
  uint32_t *keys = (uint32_t *)(sum + rows), *packed = keys + units * KEY_BLOCK;
  element *queries = (element *)(packed + KEY_BLOCK / UNIT * wide);
  _Alignas(64) float scores[MOST_ROWS * KEY_BLOCK], added[MOST_ROWS * PANEL];
  _Alignas(64) element weights[MOST_ROWS * KEY_BLOCK];
  float by[MOST_ROWS];
  int64_t window = a->layer->window;
  int64_t length = batch->lengths[share->sequence];
  int64_t begin = window >= 0 && position > window ? position - window : 0, end = 0;
  for (int64_t t = 0; t < tokens; t++) {
    memcpy(queries + t * group * size,
           (const element *)a->queries + (share->first + t) * a->stride + share->head * group * size,
           (size_t)(group * size) * sizeof(element));
    int64_t own_end = end_of(batch, share->first + t, position + t, length);
    end = own_end > end ? own_end : end;
  }
  for (int64_t r = 0; r < rows; r++) largest[r] = -INFINITY, sum[r] = 0;
  memset(sums, 0, (size_t)(rows * wide) * sizeof(float));
  for (int64_t first = begin / KEY_BLOCK * KEY_BLOCK; first < end; first += KEY_BLOCK) {
    pack_block(a, share, first, length - first < KEY_BLOCK ? length - first : KEY_BLOCK, keys, packed);
    for (int64_t r = 0; r < rows; r += MOST_ROWS) { /* what a few rows need lies in the first cache */
      int64_t some = rows - r < MOST_ROWS ? rows - r : MOST_ROWS;
      multiply_tile((const unit *)(queries + r * size), units, some, keys, KEY_BLOCK, units,
                    KEY_BLOCK / BLOCK, keys, scores);
      for (int64_t i = 0; i < some; i++) {
        int64_t row = r + i, own = position + row / group, low = window >= 0 ? own - window - first : 0;
        int64_t high = end_of(batch, share->first + row / group, own, length) - first;
        high = high < KEY_BLOCK ? high : KEY_BLOCK;
        by[i] = weigh_row(stack, scores + i * KEY_BLOCK, weights + i * KEY_BLOCK, low > 0 ? low : 0, high,
                          &largest[row], &sum[row]);
      }
      for (int64_t column = 0; column < wide; column += PANEL) {
        int64_t blocks = (wide - column < PANEL ? wide - column : PANEL) / BLOCK;
        multiply_tile((const unit *)weights, KEY_BLOCK / UNIT, some, packed + column, wide,
                      KEY_BLOCK / UNIT, blocks, packed, added);
        for (int64_t i = 0; i < some; i++)
          for (int64_t c = 0; c < blocks * BLOCK; c += LANES) {
            float *to = sums + (r + i) * wide + column + c;
            store_floats(to, load_floats(to) * by[i] + load_floats(added + i * PANEL + c));
          }
      }
    }
  }
  for (int64_t r = 0; r < rows; r++) {
    int64_t row = share->first + r / group;
    element *to = (element *)a->out + ((row * stack->kv_heads + share->head) * group + r % group) * wide;
    for (int64_t i = 0; i < wide; i += LANES) store(to + i, load_floats(sums + r * wide + i) * (1.0f / sum[r]));
  }
}

static void attend(const void *context, int64_t piece, void *scratch) {
  const struct attended *a = context;
  const struct share *share = &a->shares[piece];
  if (share->key >= 0)
    attend_one(a, share, scratch);
  else
    attend_many(a, share, scratch);
}
