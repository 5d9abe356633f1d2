/* A group's integers and what they mean, and their place in a panel. */
#ifndef APPLIANCE_MEANT_H
#define APPLIANCE_MEANT_H

#include <math.h>

#include "kernels.h"

/* 32 numbers as integers, and what these mean, in float16. */
struct meant {
  uint16_t scale, second, least; /* `second`: of the last 16, in INT8_HALVES */
  float q[GROUP];
};

/* of float16: exact where it is a number */
static inline float from_half(uint16_t bits) {
  uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = (uint32_t)(bits & 0x7fff) << 13;
  if ((bits & 0x7c00) == 0x7c00) return as_float(sign | 0x70000000 | rest); /* infinite, or none */
  return as_float(sign | as_bits(as_float(rest) * 0x1p112f));
}

/* The nearest float16 of a number, the largest one there is for a larger one. */
static inline uint16_t to_half(float value) {
  float size = fabsf(value) < 65504.0f ? fabsf(value) : 65504.0f;
  uint32_t sign = as_bits(value) >> 16 & 0x8000;
  if (size < 0x1p-14f) return (uint16_t)(sign | (as_bits(size + 0.5f) & 0xfff)); /* multiples of 2^-24, as 1/2 has them */
  uint32_t bits = as_bits(size);
  return (uint16_t)(sign | ((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13));
}

static inline void put_eight(const struct meant *group, int form, uint16_t *panel, int64_t pitch, int64_t column) {
  uint32_t *units = (uint32_t *)panel + column;
  uint16_t *meaning = panel + 2 * (GROUP / 4) * pitch;
  for (const float *q = group->q; q < group->q + GROUP; q += 4, units += pitch)
    *units = ((int32_t)q[0] & 255u) | ((int32_t)q[2] & 255u) << 8 | ((int32_t)q[1] & 255u) << 16 |
             ((int32_t)q[3] & 255u) << 24;
  if (form == INT8_LEAST) {
    *units = group->scale | (uint32_t)group->least << 16;
    return;
  }
  meaning[column] = group->scale;
  if (form == INT8_HALVES) meaning[pitch + column] = group->second;
}

static inline void put_four(const struct meant *group, uint16_t *panel, int64_t pitch, int64_t column) {
  uint32_t *units = (uint32_t *)panel + column;
  for (const float *q = group->q; q < group->q + GROUP; q += 8, units += pitch) {
    *units = 0;
    for (int i = 0; i < 8; i++) *units |= (uint32_t)q[i] << (i / 2 * 4 + i % 2 * 16);
  }
  *units = group->scale | (uint32_t)group->least << 16;
}

/* A column of a group into its place. */
static inline void put_group(const struct meant *group, int form, uint16_t *panel, int64_t pitch, int64_t column) {
  if (form == INT4)
    put_four(group, panel, pitch, column);
  else
    put_eight(group, form, panel, pitch, column);
}

/* Where 16 rows of a weight go: their panel's first group, how far it is to the next one, and their first column. */
struct place {
  uint16_t *panel;
  int64_t pitch, column, step; /* `step` in 16 bits */
};

static inline struct place place_of(void *packed, int form, int64_t block, int64_t blocks, int64_t in) {
  int64_t first = block / 4 * 4, pitch = (blocks - first < 4 ? blocks - first : 4) * BLOCK;
  uint16_t *panel = (uint16_t *)packed + first * BLOCK * (in / GROUP) * group_halves(form);
  return (struct place){panel, pitch, block % 4 * BLOCK, pitch * group_halves(form)};
}

#endif
