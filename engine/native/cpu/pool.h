/* Threads that claim small pieces of work: one that is taken off its core costs a piece, not a barrier. */
#ifndef APPLIANCE_POOL_H
#define APPLIANCE_POOL_H

#include <stddef.h>
#include <stdint.h>

enum { MOST_PHASES = 4096, MOST_PARTS = 8 };

/* Pieces that do not depend on each other; those of the next phase depend on all of them. */
struct phase {
  void (*work)(const void *context, int64_t piece, void *scratch);
  const void *context;
  int64_t pieces; /* less than 2^32: as many have no room for what they leave */
  int part; /* of a step, whose time is taken: less than MOST_PARTS */
};

struct pool;

/* `threads` with the caller's, so one at least. NULL when memory or threads are refused. */
struct pool *pool_new(int threads);
/* Memory of each thread's own, of at least so many bytes, for the runs that follow; 0 when it is refused. */
int pool_reserve(struct pool *pool, size_t bytes);
void pool_free(struct pool *pool);
int pool_threads(const struct pool *pool);
/* Works through the phases; the caller works too. One caller at a time. */
void pool_run(struct pool *pool, const struct phase *phases, int count);
/* Where to add the seconds that the caller spends in phases of each part, [MOST_PARTS]; NULL: nowhere. */
void pool_time(struct pool *pool, double *seconds);

#endif
