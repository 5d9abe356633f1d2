/* Queries and keys of a step: normed where the model does so, rotated, and keys and values stored in their pages,
 * where there are such. */

/* LANES of each half of a head, from place `i` on. */
INLINE void rotate_pairs(const element *lower, const element *upper, element *to, int64_t i, int64_t half,
                         const element *weight, float by, float more, const float *cosines, const float *sines) {
  floats left = load(lower), right = load(upper);
  if (weight != NULL) {
    left *= by * (load(weight + i) + more);
    right *= by * (load(weight + half + i) + more);
  }
  store(to, left * load_floats(cosines + i) - right * load_floats(sines + i));
  store(to + half, right * load_floats(cosines + half + i) + left * load_floats(sines + half + i));
}

/* A head, normed by `norm` if it has a weight, rotated by a token's angles into `to`. */
static void rotate_head(const element *head, element *to, int64_t size, const struct norm *norm, const float *cosines,
                        const float *sines) {
  int64_t half = size / 2, whole = half / LANES * LANES;
  const element *weight = norm->weight;
  float by = weight == NULL ? 1.0f : reciprocal_root(head, size, norm->epsilon);
  float more = norm->from_one ? 1.0f : 0.0f;
  element last[2 * LANES]; /* what a vector has too few of, as the head was: `to` may be it */
  if (whole < half && half >= LANES) {
    memcpy(last, head + half - LANES, sizeof last / 2);
    memcpy(last + LANES, head + size - LANES, sizeof last / 2);
  }
  for (int64_t i = 0; i + LANES <= half; i += LANES)
    rotate_pairs(head + i, head + half + i, to + i, i, half, weight, by, more, cosines, sines);
  if (whole < half && half >= LANES)
    rotate_pairs(last, last + LANES, to + half - LANES, half - LANES, half, weight, by, more, cosines, sines);
  else
    for (int64_t i = whole; i < half; i++) {
      float left = widen(head[i]), right = widen(head[half + i]);
      if (weight != NULL) {
        left *= by * (widen(weight[i]) + more);
        right *= by * (widen(weight[half + i]) + more);
      }
      to[i] = narrow(left * cosines[i] - right * sines[i]);
      to[half + i] = narrow(right * cosines[half + i] + left * sines[half + i]);
    }
}

static void rotate(const void *context, int64_t row, void *scratch) {
  const struct rotated *r = context;
  (void)scratch;
  const struct stack *stack = r->stack;
  const struct layer *layer = r->layer;
  int64_t size = stack->head_dim, values = stack->value_dim, heads = stack->heads, kept = stack->kv_heads;
  element *qkv = (element *)r->qkv + row * ((heads + kept) * size + kept * values);
  const float *cosines = r->step->cosines[layer->rotary] + row * size;
  const float *sines = r->step->sines[layer->rotary] + row * size;
  element *keys = qkv + heads * size;
  for (int64_t head = 0; head < heads; head++)
    rotate_head(qkv + head * size, qkv + head * size, size, &layer->queries, cosines, sines);
  int64_t slot = 0;
  if (layer->key_pages != NULL) {
    slot = r->step->batch->slots[row];
    keys = (element *)layer->key_pages + slot * kept * size;
  }
  for (int64_t head = 0; head < kept; head++)
    rotate_head(qkv + (heads + head) * size, keys + head * size, size, &layer->keys, cosines, sines);
  if (layer->key_pages == NULL) return;
  element *stored = (element *)layer->value_pages + slot * kept * values;
  memcpy(stored, qkv + (heads + kept) * size, (size_t)(kept * values) * sizeof(element));
}
