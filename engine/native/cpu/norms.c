/* Norms of rows and of heads: by the root mean square, or around the mean. */

/* What to multiply a row by: one over its root mean square. */
static float reciprocal_root(const element *x, int64_t width, float epsilon) {
  floats squares = broadcast(0);
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) {
    floats value = load(x + i);
    squares += value * value;
  }
  float sum = sum_of(squares);
  for (; i < width; i++) sum += widen(x[i]) * widen(x[i]);
  return 1.0f / sqrtf(sum / (float)width + epsilon);
}

static float mean_of(const element *x, int64_t width) {
  floats added = broadcast(0);
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) added += load(x + i);
  float sum = sum_of(added);
  for (; i < width; i++) sum += widen(x[i]);
  return sum / (float)width;
}

/* One row around its mean. */
static void normalize_around(const struct norm *norm, const element *x, element *to, int64_t width) {
  const element *weight = norm->weight, *bias = norm->bias;
  float mean = mean_of(x, width);
  floats squares = broadcast(0);
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) {
    floats value = load(x + i) - mean;
    squares += value * value;
  }
  float sum = sum_of(squares);
  for (; i < width; i++) sum += (widen(x[i]) - mean) * (widen(x[i]) - mean);
  float by = 1.0f / sqrtf(sum / (float)width + norm->epsilon);
  for (i = 0; i + LANES <= width; i += LANES) store(to + i, (load(x + i) - mean) * by * load(weight + i) + load(bias + i));
  for (; i < width; i++) to[i] = narrow((widen(x[i]) - mean) * by * widen(weight[i]) + widen(bias[i]));
}

static void normalize(const void *context, int64_t piece, void *scratch) {
  const struct normed *n = context;
  (void)scratch;
  const element *weight = n->norm.weight;
  float more = n->norm.from_one ? 1.0f : 0.0f;
  int64_t first = piece * n->step, last = first + n->step < n->rows ? first + n->step : n->rows;
  for (int64_t row = first; row < last; row++) {
    const element *x = (const element *)n->x + row * n->width;
    element *to = (element *)(n->added == NULL ? n->out : n->added) + row * n->width;
    if (n->norm.bias != NULL) {
      normalize_around(&n->norm, x, to, n->width);
      continue;
    }
    float by = reciprocal_root(x, n->width, n->norm.epsilon);
    int64_t i = 0;
    for (; i + LANES <= n->width; i += LANES) {
      floats value = load(x + i) * by * (load(weight + i) + more);
      store(to + i, n->added == NULL ? value : value + load(to + i));
    }
    for (; i < n->width; i++) {
      float value = widen(x[i]) * by * (widen(weight[i]) + more);
      to[i] = narrow(n->added == NULL ? value : value + widen(to[i]));
    }
  }
}
