/* Weights as a GGUF file has them, in blocks of a row's inputs, as what `interface.h` says of integers. An integer stays what
 * it is; so does a scale, unless it is a product there, which is rounded to float16.
 *
 * Formats: ggml-org/ggml, src/ggml-common.h and ggml-quants.c. */
#include "meant.h"

enum kind { Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K };

/* Inputs of a block, and its bytes. */
static const struct {
  int64_t inputs, bytes;
} BLOCKS[] = {{32, 34}, {32, 18}, {32, 20}, {32, 22}, {32, 24}, {256, 144}, {256, 176}, {256, 210}};

/* What a group is, before it has its form. */
struct group {
  float q[GROUP], scale, second, least;
};

static float half_at(const uint8_t *at) {
  uint16_t bits;
  memcpy(&bits, at, sizeof bits);
  return from_half(bits);
}

/* Of Q4_K and Q5_K: eight pairs of six bits, the upper two of the last four behind the first four's. */
static void read_pair(const uint8_t *packed, int64_t n, float *scale, float *least) {
  int low = packed[n % 4], high = packed[4 + n % 4], both = packed[8 + n % 4];
  *scale = (float)(n < 4 ? low & 63 : (both & 15) | (low >> 6) << 4);
  *least = (float)(n < 4 ? high & 63 : both >> 4 | (high >> 6) << 4);
}

/* Group `n` of a block. */
static void read_group(int kind, const uint8_t *block, int64_t n, struct group *to) {
  const uint8_t *from = block + 2;
  float first = half_at(block), least = 0;
  to->scale = to->second = first, to->least = 0;
  switch (kind) {
    case Q8_0:
      for (int i = 0; i < GROUP; i++) to->q[i] = (float)(int8_t)from[i];
      return;
    case Q4_1:
      to->least = half_at(from);
      from += 2; /* fallthrough */
    case Q4_0:
      for (int i = 0; i < GROUP / 2; i++) to->q[i] = (float)(from[i] & 15), to->q[i + GROUP / 2] = (float)(from[i] >> 4);
      if (kind == Q4_0)
        for (int i = 0; i < GROUP; i++) to->q[i] -= 8;
      return;
    case Q5_1:
      to->least = half_at(from);
      from += 2; /* fallthrough */
    case Q5_0: {
      int more = kind == Q5_0 ? 16 : 0;
      for (int i = 0; i < GROUP; i++) {
        int low = i < GROUP / 2 ? from[4 + i] & 15 : from[4 + i - GROUP / 2] >> 4, high = from[i / 8] >> i % 8 & 1;
        to->q[i] = (float)((low | high << 4) - more);
      }
      return;
    }
    case Q4_K:
    case Q5_K: {
      const uint8_t *fifth = block + 16, *four = fifth + (kind == Q5_K ? 32 : 0) + n / 2 * 32;
      read_pair(block + 4, n, &to->scale, &least);
      to->scale *= first, to->second = to->scale, to->least = -half_at(block + 2) * least;
      for (int i = 0; i < GROUP; i++) {
        int q = four[i] >> n % 2 * 4 & 15;
        if (kind == Q5_K) q |= (fifth[i] >> n & 1) << 4;
        to->q[i] = (float)q;
      }
      return;
    }
    default: { /* Q6_K: halves of 128 inputs, in each four groups */
      const uint8_t *four = block + n / 4 * 64 + n % 2 * 32, *two = block + 128 + n / 4 * 32;
      first = half_at(block + 208);
      to->scale = first * (float)(int8_t)block[192 + 2 * n], to->second = first * (float)(int8_t)block[193 + 2 * n];
      for (int i = 0; i < GROUP; i++)
        to->q[i] = (float)((four[i] >> n % 4 / 2 * 4 & 15) + ((two[i] >> n % 4 * 2 & 3) << 4) - 32);
    }
  }
}

/* 0 where a number is none, or too large for float16. */
static int as_form(const struct group *group, int form, struct meant *to) {
  float more = 0, least = group->least;
  if (form == INT4 && group->least == 0)
    for (int i = 0; i < GROUP; i++) more = group->q[i] < 0 ? 8 : more; /* Q4_0 */
  least -= more * group->scale;
  to->scale = to_half(group->scale), to->second = to_half(group->second), to->least = to_half(least);
  for (int i = 0; i < GROUP; i++) to->q[i] = group->q[i] + more;
  return fabsf(group->scale) < 65520.0f && fabsf(group->second) < 65520.0f && fabsf(least) < 65520.0f;
}

/* Rows of blocks into their places of the packed weight, by a form that has room for their kind; every `stride`th block of 16
 * outputs is theirs. 0 where a number is none, or too large. */
EXPORTED int appliance_repack(void *packed, int form, const uint8_t *weight, int kind, int64_t rows, int64_t in,
                              int64_t blocks, int64_t first_block, int64_t stride) {
  int64_t inputs = BLOCKS[kind].inputs, bytes = BLOCKS[kind].bytes, row_bytes = in / inputs * bytes;
  for (int64_t n = 0; n < rows; n += BLOCK) {
    struct place to = place_of(packed, form, first_block + n / BLOCK * stride, blocks, in);
    for (int64_t g = 0; g < in / GROUP; g++, to.panel += to.step)
      for (int64_t row = n; row < n + BLOCK; row++) {
        struct group group;
        struct meant meant;
        const uint8_t *block = weight + row * row_bytes + g * GROUP / inputs * bytes;
        read_group(kind, block, g % (inputs / GROUP), &group);
        if (!as_form(&group, form, &meant)) return 0;
        put_group(&meant, form, to.panel, to.pitch, to.column + row - n);
      }
  }
  return 1;
}
