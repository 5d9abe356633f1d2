#define _GNU_SOURCE /* syscall */
#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
  LINE = 64,
  SPINS = 4000,   /* of a thread without work, some tens of microseconds, before it sleeps */
  PATIENCE = 500  /* of one that waits for another's piece, some microseconds, before it gives up its core */
};

/* A phase as threads see it. A claim carries the run's number: a thread that slept through the end of its run can
 * claim no piece of another one, and nobody waits for it. */
struct counter {
  _Alignas(LINE) _Atomic uint64_t next; /* run << 32 | pieces claimed */
  _Alignas(LINE) _Atomic uint64_t done; /* run << 32 | pieces done */
  _Atomic uint32_t waiting, ends;       /* ends that somebody waited for: what waiters sleep on, none past its run */
  _Atomic int64_t pieces;
  void (*work)(const void *context, int64_t piece, void *scratch); /* read behind a claim alone */
  const void *context;
};

struct worker {
  struct pool *pool;
  pthread_t thread;
  void *scratch;
};

struct pool {
  struct counter *counters;
  struct worker *workers; /* the caller is the first; it has no thread */
  int threads;
  size_t reserved;
  double *seconds; /* the caller's alone */
  _Atomic int count;
  _Alignas(LINE) _Atomic uint32_t run; /* what sleepers wait on */
  _Alignas(LINE) _Atomic int sleeping;
  _Atomic int ending;
};

static inline void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static void futex(_Atomic uint32_t *word, int operation, uint32_t value) {
  syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int64_t pieces_in(uint64_t done) { return (uint32_t)done; }

/* Whether no piece of this run is left in a phase, or another run has begun. */
static int is_over(struct counter *counter, uint32_t run) {
  int64_t pieces = atomic_load_explicit(&counter->pieces, memory_order_acquire); /* first: if another run's, so is `done` */
  uint64_t done = atomic_load(&counter->done);
  return done >> 32 != run || pieces_in(done) >= pieces;
}

/* Waits for the pieces of a phase that others have. Whoever has one may have been taken off its core: a core that is left
 * idle is what the system moves it to at once. */
static void await(struct counter *counter, uint32_t run) {
  for (int spins = 0; spins < PATIENCE; spins++) {
    if (is_over(counter, run)) return;
    relax();
  }
  atomic_fetch_add(&counter->waiting, 1); /* sequentially consistent, as is what ends a phase: one sees the other */
  for (;;) {
    uint32_t ends = atomic_load(&counter->ends);
    if (is_over(counter, run)) break;
    futex(&counter->ends, FUTEX_WAIT, ends); /* returns at once if the end has come meanwhile */
  }
  atomic_fetch_sub(&counter->waiting, 1);
}

/* Works through the phases of a run until it is over. The caller's are given; others see them by their counters. */
static void work_through(struct pool *pool, uint32_t run, const struct worker *worker, const struct phase *phases) {
  int count = atomic_load_explicit(&pool->count, memory_order_relaxed);
  double *seconds = phases == NULL ? NULL : pool->seconds, begun = seconds == NULL ? 0 : now();
  for (int p = 0; p < count; p++) {
    struct counter *counter = &pool->counters[p];
    uint64_t claimed = atomic_load_explicit(&counter->next, memory_order_acquire);
    while (claimed >> 32 == run) {
      int64_t piece = (uint32_t)claimed, pieces = atomic_load_explicit(&counter->pieces, memory_order_acquire);
      if (piece >= pieces) break;
      if (!atomic_compare_exchange_weak_explicit(&counter->next, &claimed, claimed + 1, memory_order_acq_rel,
                                                 memory_order_acquire))
        continue;
      counter->work(counter->context, piece, worker->scratch);
      if (pieces_in(atomic_fetch_add(&counter->done, 1)) + 1 == pieces && atomic_load(&counter->waiting) > 0) {
        atomic_fetch_add(&counter->ends, 1);
        futex(&counter->ends, FUTEX_WAKE, (uint32_t)pool->threads);
      }
      claimed = atomic_load_explicit(&counter->next, memory_order_acquire);
    }
    await(counter, run);
    if (atomic_load_explicit(&pool->run, memory_order_acquire) != run) return;
    if (seconds != NULL) {
      double ended = now();
      seconds[phases[p].part] += ended - begun;
      begun = ended;
    }
  }
}

static void *live(void *given) {
  struct worker *worker = given;
  struct pool *pool = worker->pool;
  uint32_t seen = 0;
  while (!atomic_load_explicit(&pool->ending, memory_order_acquire)) {
    uint32_t run = atomic_load_explicit(&pool->run, memory_order_acquire);
    for (int spins = 0; run == seen && spins < SPINS; spins++) {
      relax();
      run = atomic_load_explicit(&pool->run, memory_order_acquire);
    }
    if (run == seen) {
      atomic_fetch_add(&pool->sleeping, 1);
      futex(&pool->run, FUTEX_WAIT, seen); /* returns at once if a run has begun */
      atomic_fetch_sub(&pool->sleeping, 1);
      continue;
    }
    seen = run;
    work_through(pool, run, worker, NULL);
  }
  return NULL;
}

static void begin(struct pool *pool) {
  atomic_fetch_add(&pool->run, 1); /* sequentially consistent, as is a sleeper's count: one of the two sees the other */
  if (atomic_load(&pool->sleeping) > 0) futex(&pool->run, FUTEX_WAKE, (uint32_t)pool->threads);
}

void pool_free(struct pool *pool) {
  atomic_store_explicit(&pool->ending, 1, memory_order_release);
  atomic_store_explicit(&pool->count, 0, memory_order_relaxed);
  begin(pool);
  for (int t = 0; t < pool->threads; t++) {
    if (t > 0) pthread_join(pool->workers[t].thread, NULL);
    free(pool->workers[t].scratch);
  }
  free(pool->workers);
  free(pool->counters);
  free(pool);
}

struct pool *pool_new(int threads) {
  if (threads < 1) return NULL; /* the caller is one */
  struct pool *pool = aligned_alloc(LINE, sizeof *pool);
  if (pool == NULL) return NULL;
  *pool = (struct pool){
      .counters = aligned_alloc(LINE, MOST_PHASES * sizeof(struct counter)),
      .workers = calloc((size_t)threads, sizeof(struct worker)),
  };
  if (pool->counters != NULL && pool->workers != NULL) {
    for (int p = 0; p < MOST_PHASES; p++) pool->counters[p] = (struct counter){0};
    while (pool->threads < threads) {
      struct worker *worker = &pool->workers[pool->threads];
      worker->pool = pool;
      if (pool->threads > 0 && pthread_create(&worker->thread, NULL, live, worker) != 0) break;
      pool->threads++;
    }
    if (pool->threads == threads) return pool;
  }
  pool_free(pool);
  return NULL;
}

int pool_reserve(struct pool *pool, size_t bytes) {
  if (bytes <= pool->reserved) return 1;
  bytes = (bytes + LINE - 1) / LINE * LINE;
  for (int t = 0; t < pool->threads; t++) { /* nobody uses the old one: it is read behind a claim */
    void *scratch = aligned_alloc(LINE, bytes);
    if (scratch == NULL) return 0;
    free(pool->workers[t].scratch);
    pool->workers[t].scratch = scratch;
  }
  pool->reserved = bytes;
  return 1;
}

void pool_time(struct pool *pool, double *seconds) { pool->seconds = seconds; }

int pool_threads(const struct pool *pool) { return pool->threads; }

static void run_some(struct pool *pool, const struct phase *phases, int count) {
  uint32_t run = atomic_load_explicit(&pool->run, memory_order_relaxed) + 1;
  for (int p = 0; p < count; p++) {
    struct counter *counter = &pool->counters[p];
    /* first: whoever still has the run before in hand claims nothing from here on */
    atomic_store(&counter->next, (uint64_t)run << 32);
    atomic_store_explicit(&counter->done, (uint64_t)run << 32, memory_order_relaxed);
    /* behind that, and read so: who finds this run's pieces cannot claim one of them for the run before */
    atomic_store_explicit(&counter->pieces, phases[p].pieces, memory_order_release);
    counter->work = phases[p].work;
    counter->context = phases[p].context;
  }
  atomic_store_explicit(&pool->count, count, memory_order_relaxed);
  begin(pool);
  work_through(pool, run, &pool->workers[0], phases);
}

void pool_run(struct pool *pool, const struct phase *phases, int count) {
  for (; count > MOST_PHASES; phases += MOST_PHASES, count -= MOST_PHASES) run_some(pool, phases, MOST_PHASES);
  run_some(pool, phases, count);
}
