/* Vectors of the machine and elements of the model: what a kernel is compiled for, once for each pair.
 *
 * LANES floats are a vector; the compiler is told by its own flags which instructions there are. ELEMENT_BFLOAT16
 * or ELEMENT_FLOAT32 is what is stored; sums are float32 everywhere. */
#ifndef APPLIANCE_ELEMENT_H
#define APPLIANCE_ELEMENT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX2__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
enum { SUBS = BLOCK / LANES }; /* vectors of a block */

#if defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)")
#define FOUR_TIMES _Pragma("clang loop unroll_count(4)")
#else
#define UNROLLED _Pragma("GCC unroll 32")
#define FOUR_TIMES _Pragma("GCC unroll 4")
#endif

typedef float floats __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));
typedef uint16_t halves __attribute__((vector_size(LANES * 2)));

INLINE floats broadcast(float value) { return value - (floats){0}; }

INLINE floats load_floats(const float *from) {
  floats value;
  memcpy(&value, from, sizeof value);
  return value;
}

INLINE void store_floats(float *to, floats value) { memcpy(to, &value, sizeof value); }

INLINE words load_words(const uint32_t *from) {
  words value;
  memcpy(&value, from, sizeof value);
  return value;
}

/* b where either is no number */
INLINE floats larger(floats a, floats b) {
#if defined(__AVX512F__)
  return (floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (floats)_mm256_max_ps((__m256)a, (__m256)b);
#endif
  ints mask = a > b;
  return (floats)(((words)mask & (words)a) | (~(words)mask & (words)b));
}

/* likewise */
INLINE floats smaller(floats a, floats b) { return -larger(-a, -b); }

/* a * b + c, rounded once where the machine has it: not up to the compiler, which may take either of two products for it */
INLINE floats fused(floats a, floats b, floats c) {
#if defined(__AVX512F__)
  return (floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

INLINE float largest_of(floats value) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)value);
#else
  float most = value[0];
  for (int i = 1; i < LANES; i++) most = value[i] > most ? value[i] : most;
  return most;
#endif
}

INLINE int32_t smallest_of(ints value) {
#if defined(__AVX512F__)
  return _mm512_reduce_min_epi32((__m512i)value);
#else
  int32_t least = value[0];
  for (int i = 1; i < LANES; i++) least = value[i] < least ? value[i] : least;
  return least;
#endif
}

INLINE float sum_of(floats value) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)value);
#else
  float sum = 0;
  for (int i = 0; i < LANES; i++) sum += value[i];
  return sum;
#endif
}

#if defined(ELEMENT_BFLOAT16)

typedef uint16_t element;
enum { UNIT = 2 }; /* elements in 32 bits */

INLINE float widen(element value) { return as_float((uint32_t)value << 16); }

INLINE element narrow(float value) {
  uint32_t bits = as_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (element)(bits >> 16 | 0x40); /* stays no number */
  return (element)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE floats load(const element *from) {
  halves value;
  memcpy(&value, from, sizeof value);
  return (floats)(__builtin_convertvector(value, words) << 16);
}

INLINE void store(element *to, floats value) {
#if defined(__AVX512BF16__)
  __m256bh narrowed = _mm512_cvtneps_pbh((__m512)value);
  memcpy(to, &narrowed, sizeof narrowed);
#else
  words bits = (words)value;
  words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  words odd = (words)((ints)(bits & 0x7fffffffu) > 0x7f800000); /* no numbers stay such */
  rounded = (rounded & ~odd) | ((bits >> 16 | 0x40) & odd);
  halves narrowed = __builtin_convertvector(rounded, halves);
  memcpy(to, &narrowed, sizeof narrowed);
#endif
}

/* Elements of two rows by turns. */
INLINE void by_turns(element *to, const element *first, const element *second) {
  halves one, other;
  memcpy(&one, first, sizeof one);
  memcpy(&other, second, sizeof other);
  words both = __builtin_convertvector(one, words) | __builtin_convertvector(other, words) << 16;
  memcpy(to, &both, sizeof both);
}

/* sum + the two products of the halves of each word by those of x */
INLINE floats multiply_add(floats sum, words weight, uint32_t x) {
#if defined(__AVX512BF16__)
  return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weight, (__m512bh)_mm512_set1_epi32((int)x));
#else
  sum += (floats)(weight << 16) * as_float(x << 16);
  sum += (floats)(weight & 0xffff0000u) * as_float(x & 0xffff0000u);
  return sum;
#endif
}

/* the same of words that both differ by lane */
INLINE floats multiply_add_lanes(floats sum, words a, words b) {
#if defined(__AVX512BF16__)
  return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  sum += (floats)(a << 16) * (floats)(b << 16);
  sum += (floats)(a & 0xffff0000u) * (floats)(b & 0xffff0000u);
  return sum;
#endif
}

#else

typedef float element;
enum { UNIT = 1 };

INLINE float widen(element value) { return value; }
INLINE element narrow(float value) { return value; }
INLINE floats load(const element *from) { return load_floats(from); }
INLINE void store(element *to, floats value) { store_floats(to, value); }
INLINE void by_turns(element *to, const element *first, const element *second) {
  (void)second; /* the same: a unit is one row's */
  store_floats(to, load_floats(first));
}
INLINE floats multiply_add(floats sum, words weight, uint32_t x) { return sum + (floats)weight * as_float(x); }
INLINE floats multiply_add_lanes(floats sum, words a, words b) { return sum + (floats)a * (floats)b; }

#endif

/* 2 to the power of each lane, which is at most 127: to float32's last bit or two; nothing of note from -127 down. */
INLINE floats two_to(floats x) {
  x = larger(broadcast(-127.0f), x); /* in this order no number stays none */
#if defined(__AVX512F__)
  floats whole = (floats)_mm512_roundscale_ps((__m512)x, 0);
#else
  floats shifted = x + 12582912.0f; /* 1.5 * 2^23: rounds to a whole number, which is in the low bits */
  floats whole = shifted - 12582912.0f;
#endif
  floats rest = x - whole;
  floats sum = broadcast(1.3398874e-3f); /* a polynomial that is nearest on [-1/2, 1/2] */
  sum = sum * rest + 9.6184370e-3f;
  sum = sum * rest + 5.5503324e-2f;
  sum = sum * rest + 2.4022648e-1f;
  sum = sum * rest + 6.9314720e-1f;
  sum = sum * rest + 1.0f;
#if defined(__AVX512F__)
  return (floats)_mm512_scalef_ps((__m512)sum, (__m512)whole);
#else
  ints power = ((ints)shifted - 0x4b400000 + 127) << 23; /* of -127: zero */
  return sum * (floats)power;
#endif
}

#define LOG2_E 1.44269504f

/* The Gauss error function, to 1.5e-7. Source: Abramowitz and Stegun 1964, 7.1.26. */
INLINE floats error_function(floats x) {
  ints sign = (ints)x & (ints)(words)broadcast(-0.0f);
  floats size = (floats)((ints)x ^ sign), t = 1.0f / (1.0f + 0.3275911f * size);
  floats sum = broadcast(1.061405429f);
  sum = sum * t - 1.453152027f;
  sum = sum * t + 1.421413741f;
  sum = sum * t - 0.284496736f;
  sum = sum * t + 0.254829592f;
  floats value = 1.0f - sum * t * two_to(size * size * -LOG2_E);
  return (floats)((ints)value | sign);
}

INLINE floats activated(floats x, int activation) {
  if (activation == GELU) return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
  /* x / (1 + e^-y): y is x of SiLU, and of GELU's tanh 2 * sqrt(2 / pi) * (x + 0.044715 x^3) */
  floats y = activation == SILU         ? x
             : activation == QUICK_GELU ? x * 1.702f
                                        : x * 1.5957691216f * (1.0f + 0.044715f * x * x);
  return x / (1.0f + two_to(smaller(y * -LOG2_E, broadcast(126.0f))));
}

#endif
