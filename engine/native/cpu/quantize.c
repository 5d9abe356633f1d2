/* A weight's elements as integers: what `interface.h` says of INT8 and INT4. */
#include "meant.h"

enum { REFINED = 4 }; /* times that what four bits mean is fitted to them */
enum stored { STORED_BFLOAT16, STORED_FLOAT32, STORED_FLOAT16 };

/* One that is no smaller, but for the largest. */
static uint16_t to_half_above(float value) {
  uint16_t bits = to_half(value);
  return from_half(bits) < value && bits < 0x7bff ? bits + 1 : bits;
}

static void read_group(const char *from, int stored, float *to) {
  uint16_t bits[GROUP];
  if (stored == STORED_FLOAT32) {
    memcpy(to, from, 4 * GROUP);
    return;
  }
  memcpy(bits, from, sizeof bits);
  if (stored == STORED_BFLOAT16)
    for (int i = 0; i < GROUP; i++) to[i] = as_float((uint32_t)bits[i] << 16);
  else
    for (int i = 0; i < GROUP; i++) to[i] = from_half(bits[i]);
}

/* The whole number that is nearest, of one below 2^22. */
static inline float nearest(float value) { return (value + 12582912.0f) - 12582912.0f; }

static inline float lesser(float a, float b) { return a < b ? a : b; }
static inline float greater(float a, float b) { return a > b ? a : b; }
static inline float sum(float a, float b) { return a + b; }

/* Of a group, eight at once, so that a compiler finds vectors in it. */
#define OVER_GROUP(NAME, TWO)                                                \
  static float NAME##_of(const float *w) {                                   \
    float part[8];                                                           \
    memcpy(part, w, sizeof part);                                            \
    for (int i = 8; i < GROUP; i += 8)                                       \
      for (int j = 0; j < 8; j++) part[j] = TWO(part[j], w[i + j]);          \
    for (int half = 4; half > 0; half /= 2)                                  \
      for (int j = 0; j < half; j++) part[j] = TWO(part[j], part[half + j]); \
    return part[0];                                                          \
  }
OVER_GROUP(least, lesser) OVER_GROUP(most, greater) OVER_GROUP(sum, sum)

static void as_eight(const float *w, struct meant *to) {
  float largest = greater(most_of(w), -least_of(w));
  to->scale = to_half_above(largest / 127.0f);
  float scale = from_half(to->scale), by = scale > 0 ? 1.0f / scale : 0;
  for (int i = 0; i < GROUP; i++) to->q[i] = nearest(lesser(greater(w[i] * by, -127.0f), 127.0f));
}

/* The nearest of 16 values that are `scale` apart, from `least` on; the sum of the squares of the errors. */
static float as_four_of(const float *w, float scale, float least, struct meant *to) {
  float squares[GROUP];
  to->scale = to_half(greater(scale, 0)), to->least = to_half(least);
  scale = from_half(to->scale), least = from_half(to->least);
  float by = scale > 0 ? 1.0f / scale : 0;
  for (int i = 0; i < GROUP; i++) {
    float q = nearest(lesser(greater((w[i] - least) * by, 0), 15.0f)), error = w[i] - (q * scale + least);
    to->q[i] = q;
    squares[i] = error * error;
  }
  return sum_of(squares);
}

static void as_four(const float *w, struct meant *to) {
  float least = least_of(w), most = most_of(w), all = sum_of(w);
  float error = as_four_of(w, (most - least) / 15.0f, least, to), scale = greater(most, -least) / 8.0f;
  struct meant other = *to;
  /* or with a place for 0, as weights that were made of such integers have it: Q4_0 of GGUF */
  float even = as_four_of(w, scale, most > -least ? -7.0f * scale : -8.0f * scale, &other);
  if (even < error) error = even, *to = other;
  for (int tried = 0; tried < REFINED && error > 0; tried++) { /* by the line through the integers that is nearest */
    float squares[GROUP], products[GROUP];
    for (int i = 0; i < GROUP; i++) squares[i] = to->q[i] * to->q[i], products[i] = to->q[i] * w[i];
    float q = sum_of(to->q), spread = GROUP * sum_of(squares) - q * q;
    if (!(spread > 0)) return;
    scale = (GROUP * sum_of(products) - q * all) / spread;
    least = (all - scale * q) / GROUP;
    float left = as_four_of(w, scale, least, &other);
    if (!(left < error)) return;
    error = left, *to = other;
  }
}

/* Rows of a weight [rows, in] into their places of the packed one; every `stride`th block is theirs. 0 where it has what
 * is no number, or infinite. */
EXPORTED int appliance_quantize(void *packed, int form, const void *weight, int stored, int64_t rows, int64_t in,
                                int64_t blocks, int64_t first_block, int64_t stride) {
  int64_t bytes = stored == STORED_FLOAT32 ? 4 : 2;
  for (int64_t n = 0; n < rows; n += BLOCK) {
    struct place to = place_of(packed, form, first_block + n / BLOCK * stride, blocks, in);
    for (int64_t g = 0; g < in / GROUP; g++, to.panel += to.step)
      for (int64_t row = n; row < n + BLOCK; row++) {
        float w[GROUP], none[GROUP];
        struct meant group = {0};
        read_group((const char *)weight + (row * in + g * GROUP) * bytes, stored, w);
        for (int i = 0; i < GROUP; i++) none[i] = w[i] * 0;
        if (sum_of(none) != 0) return 0;
        if (form == INT8)
          as_eight(w, &group);
        else
          as_four(w, &group);
        put_group(&group, form, to.panel, to.pitch, to.column + row - n);
      }
  }
  return 1;
}
