/* The next token of a row of logits: the largest, or one drawn from what top-k, top-p and min-p leave. */
#include <stdlib.h>

enum { FINE = 18, BUCKETS = (0x3f800000 >> FINE) + 1, RUN = 1024, LOOK = 64 }; /* FINE: bits of a probability that a bucket ignores */

/* A token, for putting those of a bucket in order. */
struct candidate {
  float likely;
  int32_t token;
};

/* The likelier first, of equals the one that comes first. */
static int in_order(const void *a, const void *b) {
  const struct candidate *left = a, *right = b;
  if (left->likely != right->likely) return left->likely < right->likely ? 1 : -1;
  return left->token < right->token ? -1 : 1;
}

static float largest_in(const float *values, int64_t count) {
  floats top = broadcast(-INFINITY);
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) top = larger(load_floats(values + i), top);
  float most = largest_of(top);
  for (; i < count; i++) most = values[i] > most ? values[i] : most;
  return most;
}

static int64_t first_of(const float *logits, int64_t count, float value) {
  for (int64_t i = 0; i < count; i++)
    if (logits[i] == value) return i;
  return 0; /* none is a number */
}

/* Logits of tokens that may come, and of the others less than any. */
static void mask_logits(const float *logits, int64_t count, const uint32_t *allowed, float *masked) {
  ints places;
  for (int32_t i = 0; i < LANES; i++) places[i] = i;
  for (int64_t first = 0; first < count; first += 32) {
    uint32_t bits = allowed[first / 32];
    int64_t last = first + 32 < count ? first + 32 : count, i = first;
    for (; i + LANES <= last; i += LANES) {
      ints off = ((((ints){0} + (int32_t)(bits >> (i - first))) >> places) & 1) - 1; /* all bits of those that may not */
      ints kept = (ints)load_floats(logits + i) & ~off;
      store_floats(masked + i, (floats)(kept | ((ints)broadcast(-INFINITY) & off)));
    }
    for (; i < last; i++) masked[i] = bits >> (i - first) & 1 ? logits[i] : -INFINITY;
  }
}

/* How likely each is, the likeliest 1: 2^-126 of that and less is nothing. */
static void weigh_logits(const float *logits, int64_t count, float temperature, float most, float *likely) {
  float scale = LOG2_E / temperature;
  if (!(scale < 1e30f)) scale = 1e30f; /* and nothing times it is nothing */
  for (int64_t i = 0; i < count; i += LANES) {
    floats power;
    if (i + LANES <= count) {
      power = (load_floats(logits + i) - most) * scale;
    } else {
      power = broadcast(-INFINITY);
      for (int64_t j = i; j < count; j++) power[j - i] = (logits[j] - most) * scale;
    }
    floats found = two_to(power);
    store_floats(likely + i, (floats)((ints)found & (ints)(power > -126.0f)));
  }
}

/* Those of a bucket, in order; how many they are. */
static int64_t gather(const float *likely, int64_t count, int64_t bucket, struct candidate *to) {
  float low = as_float((uint32_t)(bucket << FINE)), above = as_float((uint32_t)((bucket + 1) << FINE));
  int64_t found = 0;
  for (int64_t first = 0; first < count; first += LOOK) {
    int64_t last = first + LOOK < count ? first + LOOK : count;
    if (largest_in(likely + first, last - first) < low) continue; /* as most are */
    for (int64_t i = first; i < last; i++)
      if (likely[i] >= low && likely[i] < above) to[found++] = (struct candidate){likely[i], (int32_t)i};
  }
  qsort(to, (size_t)found, sizeof *to, in_order);
  return found;
}

/* Leaves those tokens that top-k and then top-p of what it leaves let pass: the others become 0. */
static void filter(const struct choice *choice, float *likely, int64_t count, struct candidate *candidates) {
  int32_t number[BUCKETS] = {0};
  double sum[BUCKETS] = {0};
  for (int64_t i = 0; i < count; i++) {
    uint32_t bucket = as_bits(likely[i]) >> FINE;
    number[bucket]++;
    sum[bucket] += likely[i];
  }
  /* buckets above `bucket` stay, and of its own `found` candidates the first `kept` */
  int64_t bucket = BUCKETS - 1, before = 0, found = 0, kept = 0;
  double total = 0;
  if (choice->top_k > 0 && choice->top_k < count) {
    for (; bucket > 0 && before + number[bucket] < choice->top_k; bucket--)
      before += number[bucket], total += sum[bucket];
    found = gather(likely, count, bucket, candidates);
    kept = choice->top_k - before < found ? choice->top_k - before : found;
    for (int64_t i = 0; i < kept; i++) total += candidates[i].likely;
  } else {
    for (bucket = 0; bucket < BUCKETS; bucket++) total += sum[bucket];
    bucket = -1; /* no bucket is cut */
  }
  if (choice->top_p < 1) {
    double limit = choice->top_p * total, sofar = 0;
    int64_t last = bucket;
    for (bucket = BUCKETS - 1; bucket > last && sofar + sum[bucket] < limit; bucket--) sofar += sum[bucket];
    if (bucket < 0) return; /* rounding: all of them */
    if (bucket != last) found = kept = gather(likely, count, bucket, candidates);
    int64_t most = kept;
    for (kept = 0; kept < most && (sofar < limit || (kept == 0 && bucket == BUCKETS - 1)); kept++)
      sofar += candidates[kept].likely;
  }
  if (bucket < 0) return;
  float low = as_float((uint32_t)(bucket << FINE));
  for (int64_t i = 0; i < count; i += LANES) {
    floats value = load_floats(likely + i);
    store_floats(likely + i, (floats)((ints)value & (ints)(value >= low)));
  }
  for (int64_t i = kept; i < found; i++) likely[candidates[i].token] = 0;
}

static double sum_of_run(const float *likely, int64_t first, int64_t count) {
  floats sum = broadcast(0);
  for (int64_t i = first; i < first + RUN && i < count; i += LANES) sum += load_floats(likely + i);
  return sum_of(sum);
}

/* The first token up to which more than `point` of all there is lies. */
static int64_t draw(const float *likely, int64_t count, double point) {
  double all = 0, passed = 0;
  for (int64_t first = 0; first < count; first += RUN) all += sum_of_run(likely, first, count);
  double target = point * all, sum;
  int64_t first = 0;
  for (; first < count && passed + (sum = sum_of_run(likely, first, count)) <= target; first += RUN) passed += sum;
  int64_t i = first < count ? first : count;
  for (; i < first + RUN && i < count; i++)
    if ((passed += likely[i]) > target && likely[i] != 0) return i;
  while (i > 0 && likely[i - 1] == 0) i--; /* one after the other they round otherwise: the last of them */
  return i > 0 ? i - 1 : 0;
}

static void choose(const void *context, int64_t row, void *scratch) {
  const struct chosen *c = context;
  const struct choice *choice = &c->choices[row];
  const float *logits = c->logits + row * c->vocabulary;
  int64_t count = c->vocabulary, whole = (count + LANES - 1) / LANES * LANES;
  float *likely = scratch;
  if (choice->allowed) {
    mask_logits(logits, count, choice->allowed, likely);
    logits = likely;
  }
  float most = largest_in(logits, count);
  if (choice->temperature == 0) {
    c->tokens[row] = first_of(logits, count, most);
    return;
  }
  weigh_logits(logits, count, choice->temperature, most, likely);
  if ((choice->top_k > 0 && choice->top_k < count) || choice->top_p < 1)
    filter(choice, likely, whole, (struct candidate *)(void *)(likely + whole));
  if (choice->min_p > 0)
    for (int64_t i = 0; i < whole; i += LANES) {
      floats value = load_floats(likely + i);
      store_floats(likely + i, (floats)((ints)value & (ints)(value >= choice->min_p)));
    }
  c->tokens[row] = draw(likely, whole, choice->point);
}
