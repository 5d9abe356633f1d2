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

/* What the processor says that it has, as far as the system keeps its registers. The compilers' own question,
 * __builtin_cpu_supports, is answered by 0 throughout where ziglang's runtime is linked. */
struct processor {
  unsigned basic, wide, tiles, more; /* leaf 1 ECX; leaf 7 EBX and EDX; leaf 7.1 EAX */
  unsigned kept;                     /* of XCR0 */
};

static struct processor ask(void) {
  enum { OSXSAVE = 1 << 27 };
  struct processor found = {0};
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE)) return found;
  found.basic = c;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    found.wide = b, found.tiles = d;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) found.more = a;
  }
  __asm__("xgetbv" : "=a"(found.kept), "=d"(d) : "c"(0));
  return found;
}

static int has(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

int runs_avx2(void) {
  enum { FMA = 1 << 12, AVX = 1 << 28, AVX2 = 1 << 5, KEPT = 0x6 };
  struct processor it = ask();
  return has(it.basic, FMA | AVX) && has(it.wide, AVX2) && has(it.kept, KEPT);
}

static int runs_avx512(void) {
  const unsigned f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31, kept = 0xe6;
  struct processor it = ask();
  return runs_avx2() && has(it.wide, f | dq | bw | vl) && has(it.kept, kept);
}

static int runs_avx512_bf16(void) { return runs_avx512() && has(ask().more, 1 << 5); }

/* Its registers are large: the system gives them to a process that asks, and to the threads that it starts after. */
static int runs_amx(void) {
#if defined(EMULATE_TILES)
  return runs_avx512_bf16();
#else
  enum { REQUEST = 0x1023, TILE_DATA = 18, TILE = 1 << 24, BFLOAT16_TILES = 1 << 22 };
  return runs_avx512_bf16() && has(ask().tiles, TILE | BFLOAT16_TILES) &&
         syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
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
EXPORTED const char *appliance_variant(int index, int all) {
  for (int i = 0; i < COUNT; i++)
    if ((all || VARIANTS[i].runs()) && index-- == 0) return VARIANTS[i].name;
  return NULL;
}
