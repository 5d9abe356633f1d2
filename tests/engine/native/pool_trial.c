/* The pool's promises, tried: each piece runs once, behind all of the phase before, and a sleeper wakes.
 *
 *   pool_trial any SEED POOLS RUNS THREADS   runs of many phases with pieces of any number and length
 *   pool_trial wake RUNS THREADS SECONDS     runs that end only if every thread takes part, after pauses
 *   pool_trial late POOLS THREADS            runs with pieces and without in turn, and then no more
 *   pool_trial long PHASES THREADS           one run of so many phases
 *   pool_trial many PIECES THREADS           phases of about so many pieces
 *
 * What pieces leave is plain memory: a sanitizer of threads sees what is not ordered. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "pool.h"

enum { MOST_PIECES = 300, SCRATCH = 4096 };

struct trial {
  int64_t pieces;
  const struct trial *before; /* NULL: the first */
  int64_t nap;                /* piece that sleeps a while; -1: none */
  int ran[MOST_PIECES];
  size_t scratch;
};

static _Atomic int faults;

static void fault(const char *what) {
  if (atomic_fetch_add(&faults, 1) < 5) fprintf(stderr, "fault: %s\n", what);
}

static void sleep_for(long microseconds) {
  struct timespec time = {0, microseconds * 1000};
  nanosleep(&time, NULL);
}

static void piece_of(const void *context, int64_t piece, void *scratch) {
  struct trial *trial = (struct trial *)(uintptr_t)context;
  if (piece < 0 || piece >= trial->pieces) {
    fault("a piece that is none");
    return;
  }
  if (trial->before != NULL)
    for (int64_t i = 0; i < trial->before->pieces; i++)
      if (trial->before->ran[i] < 1) fault("a phase begun before the end of that before it");
  memset(scratch, (int)piece & 0x7f, trial->scratch);
  if (piece == trial->nap) sleep_for(1500);
  for (size_t i = 0; i < trial->scratch; i += 511)
    if (((char *)scratch)[i] != (char)(piece & 0x7f)) fault("memory of another thread's");
  trial->ran[piece]++;
}

static uint64_t state;

static uint64_t draw(uint64_t below) { /* xorshift* of Marsaglia and Vigna */
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 2685821657736338717u % below;
}

static int64_t some_pieces(int threads) {
  switch (draw(8)) {
    case 0: return 0;
    case 1: return 1;
    case 2: return threads;
    case 3: return (int64_t)draw(MOST_PIECES + 1);
    default: return (int64_t)draw(12);
  }
}

static void one_run(struct pool *pool, int threads, int count) {
  struct phase *phases = malloc((size_t)count * sizeof *phases);
  struct trial *trials = malloc((size_t)count * sizeof *trials);
  size_t scratch = draw(10) == 0 ? SCRATCH + draw(8 * SCRATCH) : SCRATCH;
  if (phases == NULL || trials == NULL || !pool_reserve(pool, scratch)) exit(2);
  for (int p = 0; p < count; p++) {
    trials[p] = (struct trial){.pieces = some_pieces(threads), .before = p > 0 ? &trials[p - 1] : NULL, .nap = -1};
    trials[p].scratch = draw(4) == 0 ? scratch : 64;
    if (draw(150) == 0) trials[p].nap = (int64_t)draw(8);
    phases[p] = (struct phase){piece_of, &trials[p], trials[p].pieces, p % MOST_PARTS};
  }
  pool_run(pool, phases, count);
  for (int p = 0; p < count; p++)
    for (int64_t i = 0; i < trials[p].pieces; i++)
      if (trials[p].ran[i] != 1) fault("a piece that did not run just once");
  memset(phases, 0x5a, (size_t)count * sizeof *phases); /* whoever comes late finds nothing */
  memset(trials, 0x5a, (size_t)count * sizeof *trials);
  free(phases);
  free(trials);
}

static void try_any(int pools, int runs, int threads) {
  for (int n = 0; n < pools; n++) {
    double seconds[MOST_PARTS] = {0};
    struct pool *pool = pool_new(threads);
    if (pool == NULL || pool_threads(pool) != threads) exit(2);
    if (n % 2) pool_time(pool, seconds);
    for (int run = n % 5 == 4 ? runs : 0; run < runs; run++) { /* some pools are never used */
      one_run(pool, threads, 1 + (int)draw(30));
      if (draw(4) == 0) sleep_for((long)draw(300)); /* about when threads fall asleep */
    }
    pool_free(pool);
    if (n % 2 && n % 5 != 4) {
      double whole = 0;
      for (int i = 0; i < MOST_PARTS; i++) whole += seconds[i];
      if (!(whole > 0 && whole < 600)) fault("seconds that cannot be");
    }
  }
}

struct meeting {
  int threads, seconds; /* of patience */
  _Atomic int there;
};

/* Ends when as many pieces have begun as there are threads: each has to take one. */
static void meet(const void *context, int64_t piece, void *scratch) {
  struct meeting *meeting = (struct meeting *)(uintptr_t)context;
  (void)piece, (void)scratch;
  atomic_fetch_add(&meeting->there, 1);
  time_t begun = time(NULL);
  while (atomic_load(&meeting->there) < meeting->threads) {
    if (time(NULL) > begun + meeting->seconds) {
      fault("a thread that does not come");
      _exit(1); /* nobody could be joined */
    }
    sleep_for(20);
  }
}

static void try_waking(int runs, int threads, int seconds) {
  struct pool *pool = pool_new(threads);
  if (pool == NULL) exit(2);
  for (int run = 0; run < runs; run++) {
    struct meeting meeting = {threads, seconds, 0};
    struct phase phase = {meet, &meeting, threads, 0};
    sleep_for((long)(run % 10 == 0 ? 20000 : draw(400))); /* asleep for certain, or just about */
    pool_run(pool, &phase, 1);
  }
  pool_free(pool);
}

static void linger(const void *context, int64_t piece, void *scratch) {
  (void)context, (void)scratch;
  sleep_for(piece == 0 ? 200 : piece == 1 ? 900 : 20);
}

/* Whoever is late with what it does behind its last piece finds another run, or none. */
static void try_late(int pools, int threads) {
  struct phase some = {linger, NULL, threads + 2, 0}, none = {linger, NULL, 0, 0};
  for (int n = 0; n < pools; n++) {
    struct pool *pool = pool_new(threads);
    if (pool == NULL) exit(2);
    for (int run = 0; run < 4; run++) pool_run(pool, run % 2 ? &none : &some, 1);
    pool_free(pool);
  }
}

static void count_up(const void *context, int64_t piece, void *scratch) {
  (void)piece, (void)scratch;
  ++*(int *)(uintptr_t)context;
}

static void try_long(int count, int threads) {
  struct pool *pool = pool_new(threads);
  struct phase *phases = malloc((size_t)count * sizeof *phases);
  int ran = 0; /* by one piece of each phase in turn */
  if (pool == NULL || phases == NULL) exit(2);
  for (int p = 0; p < count; p++) phases[p] = (struct phase){count_up, &ran, 1, 0};
  pool_run(pool, phases, count);
  if (ran != count) fault("phases that did not run");
  free(phases);
  pool_free(pool);
}

struct marked {
  char *marks;
  int64_t pieces, before; /* of the phase before */
};

/* The last piece takes its time, so that others wait for it. */
static void mark(const void *context, int64_t piece, void *scratch) {
  const struct marked *marked = context;
  (void)scratch;
  if (marked->before > 0 && marked->marks[marked->before - 1] < 1) fault("a phase begun before the end of that before it");
  if (piece == marked->pieces - 1) sleep_for(3000);
  marked->marks[piece]++;
}

/* Phases that are of one piece less, just as many, and one more, each behind the end of that before it. */
static void try_many(int64_t pieces, int threads) {
  struct pool *pool = pool_new(threads);
  char *marks = calloc((size_t)pieces + 1, 1);
  if (pool == NULL || marks == NULL) exit(2);
  struct marked marked[3];
  struct phase phases[3];
  for (int p = 0; p < 3; p++) {
    marked[p] = (struct marked){marks, pieces - 1 + p, p > 0 ? pieces - 2 + p : 0};
    phases[p] = (struct phase){mark, &marked[p], marked[p].pieces, 0};
  }
  pool_run(pool, phases, 3);
  for (int64_t i = 0; i <= pieces; i++)
    if (marks[i] != 1 + (i < pieces) + (i < pieces - 1)) fault("a piece that did not run just once in each phase");
  free(marks);
  pool_free(pool);
}

int main(int count, char **words) {
  if (count == 6 && strcmp(words[1], "any") == 0) {
    state = strtoull(words[2], NULL, 10) * 2 + 1;
    try_any(atoi(words[3]), atoi(words[4]), atoi(words[5]));
  } else if (count == 5 && strcmp(words[1], "wake") == 0) {
    state = 1;
    try_waking(atoi(words[2]), atoi(words[3]), atoi(words[4]));
  } else if (count == 4 && strcmp(words[1], "late") == 0) {
    try_late(atoi(words[2]), atoi(words[3]));
  } else if (count == 4 && strcmp(words[1], "long") == 0) {
    try_long(atoi(words[2]), atoi(words[3]));
  } else if (count == 4 && strcmp(words[1], "many") == 0) {
    try_many(atoll(words[2]), atoi(words[3]));
  } else {
    return 2;
  }
  struct pool *none = pool_new(0); /* the caller is one */
  if (none != NULL) fault("a pool of no threads");
  return faults != 0;
}
