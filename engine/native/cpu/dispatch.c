#define _GNU_SOURCE /* syscall */
#include "dispatch.h"

#include <stddef.h>
#include <string.h>

struct variant {
  const char *name;
  int (*runs)(void);
  const struct kernels *of[2]; /* by element */
};

#define DECLARED(name) extern const struct kernels kernels_##name##_bfloat16, kernels_##name##_float32;
#define VARIANT_OF(name) {#name, runs_##name, {&kernels_##name##_bfloat16, &kernels_##name##_float32}}

#if defined(__x86_64__)

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

DECLARED(avx2) DECLARED(avx512) DECLARED(avx512_bf16) DECLARED(amx)

static int runs_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static int runs_avx512(void) {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
static int runs_avx512_bf16(void) { return runs_avx512() && __builtin_cpu_supports("avx512bf16"); }

/* Its registers are large: the system gives them to a process that asks, and to the threads that it starts after. */
static int runs_amx(void) {
#if defined(EMULATE_TILES)
  return runs_avx512_bf16();
#else
  enum { REQUEST = 0x1023, TILE_DATA = 18, TILE = 1 << 24, BFLOAT16_TILES = 1 << 22 };
  unsigned a, b, c, d;
  if (!runs_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
  return (d & TILE) && (d & BFLOAT16_TILES) && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#endif
}

static const struct variant VARIANTS[] = {VARIANT_OF(amx), VARIANT_OF(avx512_bf16), VARIANT_OF(avx512), VARIANT_OF(avx2)};

#else

DECLARED(neon)

static int runs_neon(void) { return 1; }

static const struct variant VARIANTS[] = {VARIANT_OF(neon)};

#endif

enum { COUNT = sizeof VARIANTS / sizeof *VARIANTS };

const struct kernels *kernels_of(const char *variant, int element) {
  for (int i = 0; i < COUNT; i++)
    if (strcmp(VARIANTS[i].name, variant) == 0 && VARIANTS[i].runs()) return VARIANTS[i].of[element != BFLOAT16];
  return NULL;
}

/* Fastest first; of those that the processor runs, unless `all`. NULL behind the last. */
__attribute__((visibility("default"))) const char *appliance_variant(int index, int all) {
  for (int i = 0; i < COUNT; i++)
    if ((all || VARIANTS[i].runs()) && index-- == 0) return VARIANTS[i].name;
  return NULL;
}
