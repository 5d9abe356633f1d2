/* A weight's elements as integers: what `interface.h` says of INT8 and INT4. */
#include <math.h>
#include <string.h>

#include "kernels.h"

enum { REFINED = 4 }; /* times that what four bits mean is fitted to them */
enum stored { STORED_BFLOAT16, STORED_FLOAT32, STORED_FLOAT16 };

/* of float16: exact where it is a number */
static float from_half(uint16_t bits) {
  uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = (uint32_t)(bits & 0x7fff) << 13;
  if ((bits & 0x7c00) == 0x7c00) return as_float(sign | 0x70000000 | rest); /* infinite, or none */
  return as_float(sign | as_bits(as_float(rest) * 0x1p112f));
}

/* The nearest float16 of a number, the largest one there is for a larger one. */
static uint16_t to_half(float value) {
  float size = fabsf(value) < 65504.0f ? fabsf(value) : 65504.0f;
  uint32_t sign = as_bits(value) >> 16 & 0x8000;
  if (size < 0x1p-14f) return (uint16_t)(sign | (as_bits(size + 0.5f) & 0xfff)); /* multiples of 2^-24, as 1/2 has them */
  uint32_t bits = as_bits(size);
  return (uint16_t)(sign | ((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13));
}

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

/* 32 numbers as integers, and what these mean. */
struct meant {
  uint16_t scale, least;
  float q[GROUP];
};

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

/* A group's integers and what they mean, into its place in a panel. */
static void put_eight(const float *w, uint16_t *panel, int64_t pitch, int64_t column) {
  struct meant group;
  uint32_t *units = (uint32_t *)panel + column;
  as_eight(w, &group);
  for (const float *q = group.q; q < group.q + GROUP; q += 4, units += pitch)
    *units = ((int32_t)q[0] & 255u) | ((int32_t)q[2] & 255u) << 8 | ((int32_t)q[1] & 255u) << 16 |
             ((int32_t)q[3] & 255u) << 24;
  panel[2 * (GROUP / 4) * pitch + column] = group.scale;
}

static void put_four(const float *w, uint16_t *panel, int64_t pitch, int64_t column) {
  struct meant group;
  uint32_t *units = (uint32_t *)panel + column;
  as_four(w, &group);
  for (const float *q = group.q; q < group.q + GROUP; q += 8, units += pitch) {
    *units = 0;
    for (int i = 0; i < 8; i++) *units |= (uint32_t)q[i] << (i / 2 * 4 + i % 2 * 16);
  }
  *units = group.scale | (uint32_t)group.least << 16;
}

/* Rows of a weight [rows, in] into their places of the packed one; every `stride`th block is theirs. 0 where it has what
 * is no number, or infinite. */
EXPORTED int appliance_quantize(void *packed, int form, const void *weight, int stored, int64_t rows, int64_t in,
                                int64_t blocks, int64_t first_block, int64_t stride) {
  int64_t bytes = stored == STORED_FLOAT32 ? 4 : 2, groups = in / GROUP, step = group_halves(form);
  for (int64_t n = 0; n < rows; n += BLOCK) {
    int64_t block = first_block + n / BLOCK * stride, panel = block / 4 * 4;
    int64_t pitch = (blocks - panel < 4 ? blocks - panel : 4) * BLOCK, first = block % 4 * BLOCK;
    uint16_t *to = (uint16_t *)packed + panel * BLOCK * groups * step;
    for (int64_t g = 0; g < groups; g++, to += pitch * step)
      for (int64_t column = first; column < first + BLOCK; column++) {
        float w[GROUP], none[GROUP];
        read_group((const char *)weight + ((n + column - first) * in + g * GROUP) * bytes, stored, w);
        for (int i = 0; i < GROUP; i++) none[i] = w[i] * 0;
        if (sum_of(none) != 0) return 0;
        if (form == INT8)
          put_eight(w, to, pitch, column);
        else
          put_four(w, to, pitch, column);
      }
  }
  return 1;
}
