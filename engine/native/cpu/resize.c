/* Pictures of three bytes a pixel in another size, to the last bit as torch has them with antialiasing.
 *
 * Rows are brought to their new width first, then columns of these to the new height; each time a pixel is a sum of
 * pixels by 16-bit weights, rounded to a byte. Source: aten/src/ATen/native/cpu/UpSampleKernel.cpp of PyTorch, which has
 * it from Pillow (Resample.c). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dispatch.h"

enum { CHANNELS = 3, AT_ONCE = 4, ROWS = 4, VECTOR = 32 }; /* taps, rows and bytes that are taken together */
enum { MOST_BITS = 22, SLACK = 16 };                      /* of weights; bytes that are read behind a row, and no matter */

/* What each pixel along one side is made of. */
struct side {
  int64_t size, taps; /* pixels; weights of each, whole fours of which the last may be 0 */
  int64_t *first;     /* [size] pixel that the first weight is of */
  int64_t *count;     /* [size] weights that are not there to fill up */
  int16_t *weights;   /* [size, taps] in units of 2^-bits */
  int bits;
};

static double cubic(double x) {
  x = fabs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

static double triangle(double x) { return fmax(0, 1 - fabs(x)); }

static int64_t within(int64_t value, int64_t least, int64_t most) {
  return value < least ? least : value > most ? most : value;
}

static void forget(struct side *side) {
  free(side->first);
  free(side->count);
  free(side->weights);
}

/* The largest precision at which the largest weight has 16 bits. */
static int precision(double largest) {
  int bits = 0;
  while (bits < MOST_BITS && 0.5 + largest * (1 << (bits + 1)) < 1 << 15) bits++;
  return bits;
}

/* Of `size` pixels out of `from`; 0: no memory. All in float64, as the order of operations decides about last bits.
 * What is there is to be freed either way. */
static int weigh(struct side *side, int64_t from, int64_t size, int is_cubic) {
  double scale = (double)from / (double)size, shrink = scale >= 1 ? scale : 1;
  double reach = (is_cubic ? 2.0 : 1.0) * shrink, by = 1 / shrink, largest = 0;
  int64_t most = (int64_t)ceil(reach) * 2 + 1, taps = (most + AT_ONCE - 1) / AT_ONCE * AT_ONCE;
  double *exact = calloc((size_t)(size * taps), sizeof *exact);
  *side = (struct side){
      .size = size,
      .taps = taps,
      .first = malloc((size_t)size * sizeof *side->first),
      .count = malloc((size_t)size * sizeof *side->count),
      .weights = malloc((size_t)(size * taps) * sizeof *side->weights),
  };
  int there = exact != NULL && side->first != NULL && side->count != NULL && side->weights != NULL;
  for (int64_t i = 0; there && i < size; i++) {
    double centre = scale * ((double)i + 0.5), sum = 0, *weights = exact + i * taps;
    int64_t first = within((int64_t)(centre - reach + 0.5), 0, from);
    int64_t count = within(within((int64_t)(centre + reach + 0.5), 0, from) - first, 0, most);
    side->first[i] = first, side->count[i] = count;
    for (int64_t j = 0; j < count; j++) {
      double x = ((double)(j + first) - centre + 0.5) * by;
      sum += weights[j] = is_cubic ? cubic(x) : triangle(x);
    }
    for (int64_t j = 0; j < count; j++) {
      if (sum != 0) weights[j] /= sum;
      largest = fmax(largest, weights[j]);
    }
  }
  side->bits = precision(largest);
  for (int64_t i = 0; there && i < size * taps; i++) {
    double value = exact[i] * (1 << side->bits);
    side->weights[i] = (int16_t)(value < 0 ? value - 0.5 : value + 0.5);
  }
  free(exact);
  return there;
}

/* ROWS rows to their new width. More may be read behind a source, and a byte is written behind a result. */
typedef void across_rows(const struct side *side, const uint8_t *const from[ROWS], uint8_t *const to[ROWS]);

/* One row of `width` bytes of those that begin at `from`. Up to a whole VECTOR is read of each. */
typedef void down_rows(const struct side *side, int64_t row, const uint8_t *from, int64_t stride, uint8_t *to, int64_t width);

static uint8_t rounded(int32_t sum, int bits) { return (uint8_t)within(sum >> bits, 0, 255); }

static void across(const struct side *side, const uint8_t *const from[ROWS], uint8_t *const to[ROWS]) {
  for (int row = 0; row < ROWS; row++) {
    for (int64_t i = 0; i < side->size; i++) {
      const uint8_t *pixel = from[row] + side->first[i] * CHANNELS;
      const int16_t *weights = side->weights + i * side->taps;
      int32_t sums[CHANNELS];
      for (int c = 0; c < CHANNELS; c++) sums[c] = 1 << (side->bits - 1);
      for (int64_t j = 0; j < side->count[i]; j++, pixel += CHANNELS)
        for (int c = 0; c < CHANNELS; c++) sums[c] += weights[j] * pixel[c];
      for (int c = 0; c < CHANNELS; c++) to[row][i * CHANNELS + c] = rounded(sums[c], side->bits);
    }
  }
}

static void down(const struct side *side, int64_t row, const uint8_t *from, int64_t stride, uint8_t *to, int64_t width) {
  const int16_t *weights = side->weights + row * side->taps;
  for (int64_t begin = 0; begin < width; begin += VECTOR) {
    const uint8_t *source = from + side->first[row] * stride + begin;
    int32_t sums[VECTOR];
    for (int i = 0; i < VECTOR; i++) sums[i] = 1 << (side->bits - 1);
    for (int64_t j = 0; j < side->count[row]; j++, source += stride)
      for (int i = 0; i < VECTOR; i++) sums[i] += weights[j] * source[i];
    for (int i = 0; i < VECTOR && begin + i < width; i++) to[begin + i] = rounded(sums[i], side->bits);
  }
}

#if defined(__x86_64__)

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))

/* Sixteen bytes of each of two rows. */
AVX2 INLINE __m256i of_both(const uint8_t *first, const uint8_t *second) {
  __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)first));
  return _mm256_inserti128_si256(low, _mm_loadu_si128((const __m128i *)second), 1);
}

/* Two weights side by side, everywhere. */
AVX2 INLINE __m256i two_of(const int16_t *weights) {
  int32_t both;
  memcpy(&both, weights, sizeof both);
  return _mm256_set1_epi32(both);
}

AVX2 INLINE __m256i plus(__m256i sum, __m256i pixels, __m256i weights) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pixels, weights));
}

AVX2 static void across_avx2(const struct side *side, const uint8_t *const from[ROWS], uint8_t *const to[ROWS]) {
  /* of four pixels the first two and the last two, each channel's side by side and widened */
  const __m256i early = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
  const __m256i late = _mm256_broadcastsi128_si256(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
  const __m256i half = _mm256_set1_epi32(1 << (side->bits - 1));
  const __m128i bits = _mm_cvtsi32_si128(side->bits);
  for (int64_t i = 0; i < side->size; i++) {
    const int16_t *weights = side->weights + i * side->taps;
    int64_t place = side->first[i] * CHANNELS;
    __m256i upper = half, lower = half; /* sums of the first two rows, and of the others */
    for (int64_t j = 0; j < side->count[i]; j += AT_ONCE, place += AT_ONCE * CHANNELS) {
      __m256i two = two_of(weights + j), others = two_of(weights + j + 2);
      __m256i above = of_both(from[0] + place, from[1] + place), below = of_both(from[2] + place, from[3] + place);
      upper = plus(upper, _mm256_shuffle_epi8(above, early), two);
      lower = plus(lower, _mm256_shuffle_epi8(below, early), two);
      upper = plus(upper, _mm256_shuffle_epi8(above, late), others);
      lower = plus(lower, _mm256_shuffle_epi8(below, late), others);
    }
    __m256i words = _mm256_packs_epi32(_mm256_sra_epi32(upper, bits), _mm256_sra_epi32(lower, bits));
    __m256i bytes = _mm256_packus_epi16(words, words);
    __m128i even = _mm256_castsi256_si128(bytes), odd = _mm256_extracti128_si256(bytes, 1);
    uint32_t pixels[ROWS] = {(uint32_t)_mm_cvtsi128_si32(even), (uint32_t)_mm_cvtsi128_si32(odd),
                             (uint32_t)_mm_extract_epi32(even, 1), (uint32_t)_mm_extract_epi32(odd, 1)};
    for (int row = 0; row < ROWS; row++) memcpy(to[row] + i * CHANNELS, &pixels[row], sizeof pixels[row]);
  }
}

AVX2 static void down_avx2(const struct side *side, int64_t row, const uint8_t *from, int64_t stride, uint8_t *to,
                           int64_t width) {
  const int16_t *weights = side->weights + row * side->taps;
  const __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi32(1 << (side->bits - 1));
  const __m128i bits = _mm_cvtsi32_si128(side->bits);
  int64_t count = side->count[row];
  for (int64_t begin = 0; begin < width; begin += VECTOR) {
    const uint8_t *source = from + side->first[row] * stride + begin;
    __m256i sums[4] = {half, half, half, half};
    for (int64_t j = 0; j < count; j += 2, source += 2 * stride) {
      __m256i two = two_of(weights + j), first = _mm256_loadu_si256((const __m256i *)source);
      /* behind the last row the weight is 0, and any row will do */
      __m256i second = _mm256_loadu_si256((const __m256i *)(j + 1 < count ? source + stride : source));
      __m256i low = _mm256_unpacklo_epi8(first, second), high = _mm256_unpackhi_epi8(first, second);
      sums[0] = plus(sums[0], _mm256_unpacklo_epi8(low, zero), two);
      sums[1] = plus(sums[1], _mm256_unpackhi_epi8(low, zero), two);
      sums[2] = plus(sums[2], _mm256_unpacklo_epi8(high, zero), two);
      sums[3] = plus(sums[3], _mm256_unpackhi_epi8(high, zero), two);
    }
    for (int i = 0; i < 4; i++) sums[i] = _mm256_sra_epi32(sums[i], bits);
    __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3]));
    if (width - begin >= VECTOR) {
      _mm256_storeu_si256((__m256i *)(to + begin), bytes);
    } else {
      memcpy(to + begin, &bytes, (size_t)(width - begin));
    }
  }
}

#endif

/* All rows of a picture to their new width, or as they are where `side` is NULL. Room is that of ROWS rows with SLACK. */
static void widths(const struct side *side, const uint8_t *from, int64_t height, int64_t width, uint8_t *to, int64_t stride,
                   uint8_t *room, across_rows *pass) {
  const uint8_t *end = from + height * width;
  for (int64_t row = 0; row < height; row += ROWS) {
    const uint8_t *sources[ROWS];
    uint8_t *targets[ROWS];
    for (int i = 0; i < ROWS; i++) { /* of too few rows the last goes several times */
      int64_t place = within(row + i, 0, height - 1);
      sources[i] = from + place * width, targets[i] = to + place * stride;
      if (side == NULL) memcpy(targets[i], sources[i], (size_t)width);
      if (side == NULL || end - sources[i] >= width + SLACK) continue;
      sources[i] = memcpy(room + i * (width + SLACK), sources[i], (size_t)width);
    }
    if (side != NULL) pass(side, sources, targets);
  }
}

/* `from` [height, width, 3] as `to` [to_height, to_width, 3]; sizes are above 0. 0: no memory. */
EXPORTED int appliance_resize(const uint8_t *from, int64_t height, int64_t width, uint8_t *to, int64_t to_height,
                              int64_t to_width, int is_cubic) {
  across_rows *pass_across = across;
  down_rows *pass_down = down;
#if defined(__x86_64__)
  if (runs_avx2()) pass_across = across_avx2, pass_down = down_avx2;
#endif
  int64_t bytes = width * CHANNELS, to_bytes = to_width * CHANNELS, stride = (to_bytes / VECTOR + 2) * VECTOR;
  struct side across_side = {0}, down_side = {0};
  uint8_t *between = malloc((size_t)(height * stride)), *room = calloc(ROWS, (size_t)(bytes + SLACK));
  int done = between != NULL && room != NULL && (width == to_width || weigh(&across_side, width, to_width, is_cubic));
  if (done && (height == to_height || (done = weigh(&down_side, height, to_height, is_cubic)))) {
    widths(width == to_width ? NULL : &across_side, from, height, bytes, between, stride, room, pass_across);
    for (int64_t row = 0; row < to_height; row++) {
      uint8_t *target = to + row * to_bytes;
      if (height == to_height) memcpy(target, between + row * stride, (size_t)to_bytes);
      else pass_down(&down_side, row, between, stride, target, to_bytes);
    }
  }
  forget(&across_side);
  forget(&down_side);
  free(between);
  free(room);
  return done;
}
