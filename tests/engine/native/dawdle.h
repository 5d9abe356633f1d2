/* Threads that dawdle before and behind each atomic step: what is rare otherwise happens all the time. */
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

static inline void dawdle(void) {
  static _Thread_local uint64_t state;
  if (state == 0) state = (uint64_t)(uintptr_t)&state | 1;
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  uint64_t drawn = state * 2685821657736338717u >> 40;
  if (drawn % 16 == 0) sched_yield();
  if (drawn % 64 == 1) {
    struct timespec time = {0, (long)(drawn / 64 % 600) * 1000};
    nanosleep(&time, NULL);
  }
}

#define DAWDLING(step)                \
  ({                                  \
    dawdle();                         \
    __auto_type result_of = (step);   \
    dawdle();                         \
    result_of;                        \
  })

#undef atomic_load
#undef atomic_load_explicit
#undef atomic_store
#undef atomic_store_explicit
#undef atomic_fetch_add
#undef atomic_fetch_add_explicit
#undef atomic_fetch_sub
#undef atomic_compare_exchange_weak_explicit
#define atomic_load(at) DAWDLING(__atomic_load_n(at, __ATOMIC_SEQ_CST))
#define atomic_load_explicit(at, order) DAWDLING(__atomic_load_n(at, order))
#define atomic_store(at, value) (dawdle(), __atomic_store_n(at, value, __ATOMIC_SEQ_CST), dawdle())
#define atomic_store_explicit(at, value, order) (dawdle(), __atomic_store_n(at, value, order), dawdle())
#define atomic_fetch_add(at, value) DAWDLING(__atomic_fetch_add(at, value, __ATOMIC_SEQ_CST))
#define atomic_fetch_add_explicit(at, value, order) DAWDLING(__atomic_fetch_add(at, value, order))
#define atomic_fetch_sub(at, value) DAWDLING(__atomic_fetch_sub(at, value, __ATOMIC_SEQ_CST))
#define atomic_compare_exchange_weak_explicit(at, expected, value, order, failed) \
  DAWDLING(__atomic_compare_exchange_n(at, expected, value, 1, order, failed))
