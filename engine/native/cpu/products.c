/* Products of a few rows or many by a packed weight; sums in the order of the inputs, whatever the other rows are. */

enum { MOST_ROWS = 6 };

/* ROWS rows by COLUMNS blocks: each sum in a register, each weight read once. */
#define TILE(ROWS, COLUMNS)                                                                              \
  static void tile_##ROWS##_##COLUMNS(const unit *x, int64_t stride, const uint32_t *weight, int64_t pitch, \
                                      int64_t units, const uint32_t *later, float *sums) {               \
    floats sum[ROWS][COLUMNS * SUBS];                                                                    \
    for (int r = 0; r < ROWS; r++)                                                                       \
      for (int c = 0; c < COLUMNS * SUBS; c++) sum[r][c] = broadcast(0);                                 \
    for (int64_t k = 0; k < units; k++) {                                                                \
      words column[COLUMNS * SUBS];                                                                      \
      __builtin_prefetch(later + k * BLOCK, 0, 2);                                                       \
      for (int c = 0; c < COLUMNS * SUBS; c++) column[c] = load_words(weight + k * pitch + c * LANES);   \
      for (int r = 0; r < ROWS; r++) {                                                                   \
        uint32_t value = x[r * stride + k];                                                              \
        for (int c = 0; c < COLUMNS * SUBS; c++) sum[r][c] = multiply_add(sum[r][c], column[c], value);  \
      }                                                                                                  \
    }                                                                                                    \
    for (int r = 0; r < ROWS; r++)                                                                       \
      for (int c = 0; c < COLUMNS * SUBS; c++) store_floats(sums + r * PANEL + c * LANES, sum[r][c]);    \
  }

#define TILES(COLUMNS) \
  TILE(1, COLUMNS) TILE(2, COLUMNS) TILE(3, COLUMNS) TILE(4, COLUMNS) TILE(5, COLUMNS) TILE(6, COLUMNS)
TILES(1) TILES(2) TILES(4)

typedef void tile(const unit *x, int64_t stride, const uint32_t *weight, int64_t pitch, int64_t units,
                  const uint32_t *later, float *sums);

static tile *const TILE_OF[MOST_ROWS][3] = {
    {tile_1_1, tile_1_2, tile_1_4}, {tile_2_1, tile_2_2, tile_2_4}, {tile_3_1, tile_3_2, tile_3_4},
    {tile_4_1, tile_4_2, tile_4_4}, {tile_5_1, tile_5_2, tile_5_4}, {tile_6_1, tile_6_2, tile_6_4},
};

/* Blocks that a tile of so many rows has registers for. */
static int widest(int64_t rows) {
#if defined(__AVX512F__)
  (void)rows;
  return 4;
#elif defined(__AVX2__)
  return rows == 1 ? 4 : rows == 2 ? 2 : 1; /* sixteen registers, two a block */
#else
  return rows <= 2 ? 2 : 1; /* thirty-two, four a block */
#endif
}

/* `rows` <= MOST_ROWS rows by `blocks` of a panel; sums [rows, PANEL]. Meanwhile a block's worth of what is needed
 * `later` comes nearer. */
static void multiply_tile(const unit *x, int64_t stride, int64_t rows, const uint32_t *weight, int64_t pitch,
                          int64_t units, int64_t blocks, const uint32_t *later, float *sums) {
  for (int64_t block = 0; block < blocks;) {
    int64_t left = blocks - block, most = widest(rows);
    int64_t wide = left >= 4 && most >= 4 ? 4 : left >= 2 && most >= 2 ? 2 : 1;
    TILE_OF[rows - 1][wide == 4 ? 2 : wide - 1](x, stride, weight + block * BLOCK, pitch, units, later,
                                                 sums + block * BLOCK);
    block += wide;
  }
}

/* Columns of the panel that a block is in. */
INLINE int64_t pitch_of(const struct product *product, int64_t block) {
  int64_t blocks = product->out / BLOCK, first = block / 4 * 4;
  return (blocks - first < 4 ? blocks - first : 4) * BLOCK;
}

/* What `choose` finds, of some of a row's columns. */
static struct largest largest_among(float *sums, int64_t count, int64_t column) {
  floats top = broadcast(-INFINITY);
  ints places, first;
  for (int64_t i = count; i % LANES != 0; i++) sums[i] = NAN;
  for (int64_t i = 0; i < count; i += LANES) top = larger(load_floats(sums + i), top);
  float most = largest_of(top);
  for (int i = 0; i < LANES; i++) places[i] = i, first[i] = PANEL;
  for (int64_t i = (count - 1) / LANES * LANES; i >= 0; i -= LANES) {
    ints there = load_floats(sums + i) == most;
    first = (there & (places + (int32_t)i)) | (~there & first);
  }
  int32_t found = smallest_of(first);
  return (struct largest){most, found == PANEL ? -1 : (int32_t)column + found};
}

static void end_row(const struct multiplied *m, int64_t row, int64_t column, int64_t width, float *sums) {
  const element *bias = m->product->bias;
  if (bias != NULL)
    for (int64_t i = 0; i < width; i += LANES) store_floats(sums + i, load_floats(sums + i) + load(bias + column + i));
  int64_t out = m->product->out;
  switch (m->ending) {
    case STORE: {
      element *to = (element *)m->out + row * out + column;
      for (int64_t i = 0; i < width; i += LANES) store(to + i, load_floats(sums + i));
      break;
    }
    case ADD: {
      element *to = (element *)m->out + row * out + column;
      for (int64_t i = 0; i < width; i += LANES) store(to + i, load(to + i) + load_floats(sums + i));
      break;
    }
    case ACTIVATE: {
      element *to = (element *)m->out + row * out + column;
      for (int64_t i = 0; i < width; i += LANES) store(to + i, activated(load_floats(sums + i), m->activation));
      break;
    }
    case GATE: {
      element *to = (element *)m->out + row * (out / 2) + column / 2;
      for (int64_t pair = 0; pair < width; pair += 2 * BLOCK, to += BLOCK)
        for (int64_t i = 0; i < BLOCK; i += LANES) {
          floats left = load_floats(sums + pair + i), right = load_floats(sums + pair + BLOCK + i);
          store(to + i, activated(left, m->activation) * right);
        }
      break;
    }
    case LARGEST: {
      int64_t step = m->block_step * BLOCK, pieces = (out + step - 1) / step;
      int64_t count = m->columns - column < width ? m->columns - column : width;
      ((struct largest *)m->out)[row * pieces + column / step] = largest_among(sums, count, column);
      break;
    }
    default: {
      float *to = (float *)m->out + row * out + column;
      for (int64_t i = 0; i < width; i += LANES) store_floats(to + i, load_floats(sums + i));
    }
  }
}

#if defined(__AMX_BF16__) && defined(ELEMENT_BFLOAT16)

#include "tiles.h"

enum { ROWS_TOGETHER = 2 * TILE_ROWS }; /* two tiles of rows by two of columns: four of sums */

static void tiles_begin(void) {
  struct tile_shapes shapes = {.palette = 1};
  for (int n = 0; n < 8; n++) shapes.bytes[n] = 64, shapes.rows[n] = TILE_ROWS;
  tile_begin(&shapes);
}

/* 16 or 32 rows by one or two blocks; sums [rows, PANEL]. Of the depth only whole tiles. */
static void multiply_blocks(const unit *x, int64_t stride, int two_rows, const uint32_t *weight, int64_t pitch,
                            int64_t units, int two_columns, float *sums) {
  tile_zero(0);
  tile_zero(1);
  tile_zero(2);
  tile_zero(3);
  for (int64_t k = 0; k + TILE_UNITS <= units; k += TILE_UNITS) {
    tile_load(4, x + k, stride * 4);
    tile_load(6, weight + k * pitch, pitch * 4);
    tile_multiply(0, 4, 6);
    if (two_columns) {
      tile_load(7, weight + k * pitch + BLOCK, pitch * 4);
      tile_multiply(1, 4, 7);
    }
    if (two_rows) {
      tile_load(5, x + TILE_ROWS * stride + k, stride * 4);
      tile_multiply(2, 5, 6);
      if (two_columns) tile_multiply(3, 5, 7);
    }
  }
  tile_store(0, sums, PANEL * 4);
  if (two_columns) tile_store(1, sums + BLOCK, PANEL * 4);
  if (two_rows) tile_store(2, sums + TILE_ROWS * PANEL, PANEL * 4);
  if (two_rows && two_columns) tile_store(3, sums + TILE_ROWS * PANEL + BLOCK, PANEL * 4);
}

/* As many of the rows as make whole tiles; how many these are. */
static int64_t multiply_many(const unit *x, int64_t rows, const uint32_t *weight, int64_t pitch, int64_t units,
                             int64_t blocks, const struct multiplied *m, int64_t first_row, int64_t column) {
  _Alignas(64) float sums[ROWS_TOGETHER * PANEL], rest[MOST_ROWS * PANEL];
  int64_t done = 0, whole = units / TILE_UNITS * TILE_UNITS;
  if (rows < TILE_ROWS) return 0;
  tiles_begin();
  while (rows - done >= TILE_ROWS) {
    int64_t some = rows - done >= ROWS_TOGETHER ? ROWS_TOGETHER : TILE_ROWS;
    const unit *from = x + done * units;
    for (int64_t block = 0; block < blocks; block += 2)
      multiply_blocks(from, units, some > TILE_ROWS, weight + block * BLOCK, pitch, units, block + 1 < blocks,
                      sums + block * BLOCK);
    for (int64_t r = 0; r < some && whole < units; r += MOST_ROWS) { /* what is left of the depth */
      int64_t few = some - r < MOST_ROWS ? some - r : MOST_ROWS;
      multiply_tile(from + r * units + whole, units, few, weight + whole * pitch, pitch, units - whole, blocks, weight,
                    rest);
      for (int64_t i = 0; i < few; i++)
        for (int64_t c = 0; c < blocks * BLOCK; c += LANES) {
          float *to = sums + (r + i) * PANEL + c;
          store_floats(to, load_floats(to) + load_floats(rest + i * PANEL + c));
        }
    }
    for (int64_t r = 0; r < some; r++) end_row(m, first_row + done + r, column, blocks * BLOCK, sums + r * PANEL);
    done += some;
  }
  tile_end();
  return done;
}

#else

INLINE int64_t multiply_many(const unit *x, int64_t rows, const uint32_t *weight, int64_t pitch, int64_t units,
                             int64_t blocks, const struct multiplied *m, int64_t first_row, int64_t column) {
  (void)x, (void)rows, (void)weight, (void)pitch, (void)units, (void)blocks, (void)m, (void)first_row, (void)column;
  return 0;
}

#endif

static void multiply(const void *context, int64_t piece, void *scratch) {
  const struct multiplied *m = context;
  (void)scratch;
  int64_t all = m->product->out / BLOCK, pieces = (all + m->block_step - 1) / m->block_step;
  int64_t units = m->product->in / UNIT;
  int64_t first_row = piece / pieces * m->row_step, block = piece % pieces * m->block_step;
  int64_t last_row = first_row + m->row_step < m->rows ? first_row + m->row_step : m->rows;
  int64_t blocks = all - block < m->block_step ? all - block : m->block_step;
  int64_t pitch = pitch_of(m->product, block);
  const uint32_t *packed = m->product->packed;
  const uint32_t *weight = packed + block / 4 * 4 * BLOCK * units + block % 4 * BLOCK;
  first_row += multiply_many((const unit *)m->x + first_row * units, last_row - first_row, weight, pitch, units,
                             blocks, m, first_row, block * BLOCK);
  _Alignas(64) float sums[MOST_ROWS * PANEL];
  int64_t tiles = (last_row - first_row + MOST_ROWS - 1) / MOST_ROWS;
  /* the first tile brings the weights; while they are multiplied by others, those of the next piece come */
  int64_t next = block + m->ahead * m->block_step;
  const uint32_t *coming = next < all ? packed + next / 4 * 4 * BLOCK * units : weight;
  int64_t there = next < all ? pitch_of(m->product, next) / BLOCK : 0;
  for (int64_t t = 0, row = first_row; t < tiles; t++) { /* of sizes that differ by one row at most */
    int64_t rows = (last_row - row + tiles - t - 1) / (tiles - t);
    multiply_tile((const unit *)m->x + row * units, units, rows, weight, pitch, units, blocks,
                  t > 0 && t <= there ? coming + (t - 1) * units * BLOCK : weight, sums);
    for (int64_t r = 0; r < rows; r++) end_row(m, row + r, block * BLOCK, blocks * BLOCK, sums + r * PANEL);
    row += rows;
  }
}
