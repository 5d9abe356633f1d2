/* How a batch's attention is shared out: within the memory that is taken for it, and each query's keys once.
 *
 *   shares_trial SEED BATCHES
 */
#include <stdio.h>

#include "stack.c"

const struct kernels *kernels_of(const char *variant, int element) {
  (void)variant, (void)element;
  return NULL;
}

enum { MOST_SEQUENCES = 20, MOST_LENGTH = 3000 };

static uint64_t state;

static int64_t draw(int64_t below) { /* xorshift* of Marsaglia and Vigna */
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return (int64_t)((state * 2685821657736338717u >> 11) % (uint64_t)below);
}

static int fault(const char *what) {
  fprintf(stderr, "fault: %s\n", what);
  return 1;
}

static int64_t grouped; /* tokens whose keys were shared out with another's */

/* How often each key of a single token was given to each head, and each row of a prompt. */
static int32_t given[MOST_SEQUENCES][64][MOST_LENGTH];

static int try_one(void) {
  static int32_t page_indices[MOST_SEQUENCES * (MOST_LENGTH / 16 + 2)], seen;
  int32_t query_start[MOST_SEQUENCES + 1] = {0}, lengths[MOST_SEQUENCES], page_start[MOST_SEQUENCES + 1] = {0};
  int64_t groups[] = {1, 2, 3, 7, 12, 48, 193}, kept[] = {1, 2, 3, 8, 32}, windows[] = {-1, 0, 1, 255, 256, 257, 1000};
  int64_t group = groups[draw(7)], heads = kept[draw(5)];
  struct stack d = {.count = 1 + draw(3), .hidden = 64, .intermediate = 64, .heads = group * heads, .kv_heads = heads,
                      .head_dim = 16, .value_dim = 32, .page_size = 16};
  struct batch batch = {.sequences = 1 + draw(MOST_SEQUENCES), .query_start = query_start, .page_start = page_start,
                        .page_indices = page_indices, .lengths = lengths};
  for (int64_t s = 0; s < batch.sequences; s++) {
    int64_t most = draw(3) == 0 ? MOST_LENGTH : 600;
    lengths[s] = (int32_t)(1 + draw(most));
    if (draw(4) == 0) lengths[s] = (int32_t)(PART_KEYS * (1 + draw(3)) + draw(3) - 1); /* about a part's end */
    int64_t rows = draw(2) ? 1 : 1 + draw(lengths[s]);
    int draft = s > 0 && draw(2) && lengths[s - 1] < MOST_LENGTH && query_start[s] == query_start[s - 1] + 1;
    if (draft) rows = 1, lengths[s] = lengths[s - 1] + 1; /* one key more on the same pages */
    query_start[s + 1] = query_start[s] + (int32_t)rows;
    page_start[s + 1] = page_start[s] + (lengths[s] + 15) / 16;
    for (int32_t page = 0; page < page_start[s + 1] - page_start[s]; page++) {
      int32_t before = s > 0 ? page_start[s] - page_start[s - 1] : 0;
      page_indices[page_start[s] + page] = draft && page < before ? page_indices[page_start[s - 1] + page] : ++seen;
    }
    if (draft && draw(4) == 0) page_indices[page_start[s + 1] - 1] = ++seen; /* or on another last one */
  }
  batch.tokens = query_start[batch.sequences];
  struct places none = places_of(&d, &batch, NULL);
  char *memory = malloc((size_t)none.bytes);
  if (memory == NULL) return fault("no memory");
  struct places p = places_of(&d, &batch, memory);
  int64_t half = ((char *)p.joins - (char *)p.shares) / (int64_t)sizeof *p.shares / 2; /* as appliance_compute has it */
  int64_t joined_half = ((char *)p.layers - (char *)p.joins) / (int64_t)sizeof *p.joins - half;
  int64_t parts = ((char *)p.shares - (char *)p.parts) / 4 / part_floats(&d);
  int bad = 0;
  for (int kind = 0; kind < 2 && !bad; kind++) {
    int64_t window = windows[draw(7)], count = -1, joined = -1;
    int threads = 1 + (int)draw(9);
    share_out(&d, &batch, window, threads, p.shares + kind * half, &count, p.joins + kind * half, &joined);
    if (count > half) bad |= fault("more shares than there is memory for");
    if (joined > half || joined > joined_half) bad |= fault("more joins than there is memory for");
    memset(given, 0, sizeof given);
    for (int64_t i = 0; i < count && !bad; i++) {
      const struct share *share = &p.shares[kind * half + i];
      int64_t s = share->sequence;
      if (share->head < 0 || share->heads < 1 || share->head + share->heads > heads) bad |= fault("heads that are none");
      for (int64_t h = share->head; h < share->head + share->heads && !bad; h++) {
        if (share->key >= 0) {
          if (share->part >= parts) bad |= fault("more parts than there is memory for");
          if (share->keys < 1 || share->key + share->keys > lengths[s]) bad |= fault("keys that are none");
          if (share->keys > PART_KEYS) bad |= fault("a part larger than one");
          int64_t rows = share->last - share->first;
          if (rows * d.heads > most(QUERY_ROWS, d.heads)) bad |= fault("more rows than a thread has");
          for (int64_t n = s - rows + 1; n <= s && !bad; n++) {
            if (memcmp(page_indices + page_start[n], page_indices + page_start[s],
                       (size_t)(page_start[n + 1] - page_start[n]) * sizeof *page_indices) != 0)
              bad |= fault("keys on the pages of another");
            for (int64_t k = share->key; k < share->key + share->keys && k < lengths[n]; k++) given[n][h][k]++;
            grouped += n < s;
          }
        } else {
          if ((share->last - share->first) * group > most(QUERY_ROWS, group)) bad |= fault("more rows than a thread has");
          for (int64_t r = share->first; r < share->last; r++) given[s][h][r - query_start[s]]++;
        }
      }
    }
    for (int64_t s = 0; s < batch.sequences && !bad; s++) {
      int64_t rows = query_start[s + 1] - query_start[s];
      int64_t first = rows > 1 || window < 0 || lengths[s] - 1 <= window ? 0 : lengths[s] - 1 - window;
      for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < MOST_LENGTH; i++) {
          int wanted = rows > 1 ? i < rows : i >= first && i < lengths[s];
          if (given[s][h][i] != wanted) {
            bad |= fault("keys or rows that are not given once");
            break;
          }
        }
    }
    int64_t next = 0;
    for (int64_t j = 0; j < joined && !bad; j++) { /* parts side by side, none in two joins */
      const struct join *join = &p.joins[kind * half + j];
      if (join->part != next || join->count < 2) bad |= fault("parts that are not joined");
      next = join->part + join->count;
      for (int64_t i = 0; i < count; i++) {
        const struct share *share = &p.shares[kind * half + i];
        for (int32_t row = share->first; row < share->last; row++) {
          int64_t part = share->part + (row - share->first) * share->stride;
          int own = row == join->row, its = share->part >= 0 && part >= join->part && part < next;
          if (own != its) bad |= fault("a part of another token");
        }
      }
    }
    if (next > parts) bad |= fault("more parts than there is memory for");
  }
  free(memory);
  return bad;
}

int main(int count, char **words) {
  if (count != 3) return 2;
  state = strtoull(words[1], NULL, 10) * 2 + 1;
  for (int i = 0; i < 20; i++) draw(2);
  for (int n = atoi(words[2]); n > 0; n--)
    if (try_one()) return 1;
  if (atoi(words[2]) > 500 && grouped < 100) return fault("no drafts");
  return 0;
}
