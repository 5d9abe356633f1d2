/* Products by weights of integers, which become elements again without a scale, and so without rounding; what a group of
 * inputs gives is scaled in float32. Of few rows that is done in registers. By many rows some groups are multiplied that
 * lie in the first cache as elements. Either way a row's sums are of the same numbers in the same order. */

enum {
  GROUP_UNITS = GROUP / UNIT,
  TOGETHER = 4 * UNIT,  /* groups that are elements at once: 16 KiB of them */
  FEW = 4,              /* rows of a tile: as many are multiplied from registers */
  MORE = UNIT == 2 ? 16 : -8, /* a number of four bits is that much larger as an element: as such it is least work */
  LINE = 64,            /* bytes of memory that come at once */
  COMING = 2048,        /* bytes ahead of what is unpacked */
  MOST_QUANTIZED = 192, /* rows of a piece */
};

#define EIGHT_SCALE 0x1p-24f /* a number of eight bits is that much smaller than it is as an element */

/* What some groups of a few blocks are as elements, and what these mean. */
struct unpacked {
  _Alignas(64) uint32_t units[TOGETHER * GROUP_UNITS * PANEL]; /* [groups, GROUP_UNITS, width] */
  _Alignas(64) float scales[TOGETHER * 2 * PANEL];             /* [groups, scales_of, width] */
  _Alignas(64) float offsets[TOGETHER * PANEL];
};

/* Of a float16 in the lower half of each lane, times `by`. */
INLINE floats from_half(words bits, float by) {
  floats value = (floats)((bits & 0x7fff) << 13) * (0x1p112f * by);
  return (floats)((words)value | (bits & 0x8000) << 16);
}

/* Inputs in a unit. */
INLINE int64_t inputs_of(int form) { return form == INT4 ? 8 : 4; }

/* Scales of a column and group, each of as many inputs. */
INLINE int64_t scales_of(int form) { return form == INT8_HALVES ? 2 : 1; }

/* A unit's inputs as units of elements, in their order. */
INLINE void elements_of(words unit, int form, words *to) {
  if (form != INT4) {
    words bytes[4] = {unit << 24, unit << 8 & 0xff000000u, unit << 16 & 0xff000000u, unit & 0xff000000u}, value[4];
    UNROLLED for (int i = 0; i < 4; i++) value[i] = (words)__builtin_convertvector((ints)bytes[i], floats);
#if defined(ELEMENT_BFLOAT16)
    UNROLLED for (int pair = 0; pair < 2; pair++) to[pair] = value[2 * pair] >> 16 | (value[2 * pair + 1] & 0xffff0000u);
#else
    UNROLLED for (int i = 0; i < 4; i++) to[i] = value[i];
#endif
    return;
  }
#if defined(ELEMENT_BFLOAT16)
  words pairs[4] = {unit << 3, unit >> 1, unit >> 5, unit >> 9}; /* the last four bits of a fraction behind 16's */
  UNROLLED for (int pair = 0; pair < 4; pair++) to[pair] = (pairs[pair] & 0x00780078u) | 0x41804180u;
#else
  words each[8] = {unit << 19, unit << 3, unit << 15, unit >> 1, unit << 11, unit >> 5, unit << 7, unit >> 9};
  UNROLLED for (int i = 0; i < 8; i++) to[i] = (words)((floats)((each[i] & 0x00780000u) | 0x41800000u) - 24.0f);
#endif
}

INLINE words load_unit(const uint16_t *from) {
  words unit;
  memcpy(&unit, from, sizeof unit);
  return unit;
}

/* What the integers of some columns mean, those of the group's first or second scale, by their place behind its integers. */
INLINE void meaning_of(const uint16_t *meant, int64_t pitch, int64_t column, int form, int64_t of, floats *scale,
                       floats *offset) {
  if (!has_least(form)) {
    halves each;
    memcpy(&each, meant + of * pitch + column, sizeof each);
    *scale = from_half(__builtin_convertvector(each, words), EIGHT_SCALE);
    return;
  }
  words both = load_unit(meant + 2 * column);
  *scale = from_half(both & 0xffff, form == INT4 ? 1.0f : EIGHT_SCALE);
  *offset = from_half(both >> 16, 1.0f);
  if (form == INT4) *offset -= *scale * (float)MORE;
}

/* `groups` of `width` columns of a panel, from `column` on. */
INLINE void unpack(const uint16_t *panel, int64_t pitch, int64_t column, int64_t groups, int64_t width, int form,
                   struct unpacked *to) {
  int64_t inputs = inputs_of(form);
  for (int64_t g = 0; g < groups; g++, panel += pitch * group_halves(form)) {
    uint32_t *units = to->units + g * GROUP_UNITS * width;
    for (int64_t k = 0; k < GROUP / inputs; k++)
      for (int64_t c = 0; c < width; c += BLOCK) {
        const uint16_t *block = panel + 2 * (k * pitch + column + c);
        UNROLLED for (int64_t i = 0; i < BLOCK; i += LANES) {
          words found[8 / UNIT];
          elements_of(load_unit(block + 2 * i), form, found);
          for (int64_t n = 0; n < inputs / UNIT; n++)
            memcpy(units + (k * inputs / UNIT + n) * width + c + i, &found[n], sizeof found[n]);
        }
      }
    for (int64_t of = 0; of < scales_of(form); of++)
      for (int64_t c = 0; c < width; c += LANES) {
        floats scale, offset;
        meaning_of(panel + 2 * (GROUP / inputs) * pitch, pitch, column + c, form, of, &scale, &offset);
        store_floats(to->scales + (g * scales_of(form) + of) * width + c, scale);
        if (has_least(form)) store_floats(to->offsets + g * width + c, offset);
      }
  }
}

/* Some rows of a product's x, and their sums [rows, PANEL]. */
struct rows {
  const unit *x;
  int64_t stride, groups;
  const float *group_sums; /* [rows, groups] */
  float *sums;
};

typedef floats tile_sums[FEW][4 * SUBS];

/* A tile's sums from memory, and to it. */
INLINE void move_sums(int64_t rows, int64_t blocks, tile_sums all, float *sums, int out) {
  UNROLLED for (int64_t r = 0; r < rows; r++)
    UNROLLED for (int64_t c = 0; c < blocks * SUBS; c++) {
      if (out)
        store_floats(sums + r * PANEL + c * LANES, all[r][c]);
      else
        all[r][c] = load_floats(sums + r * PANEL + c * LANES);
    }
}

/* A group's sums, of one place in each row, scaled to those of all. */
INLINE void add_scaled(int64_t rows, int form, tile_sums all, tile_sums sum, int64_t place, floats scale, floats offset,
                       struct rows at, int64_t group) {
  UNROLLED for (int64_t r = 0; r < rows; r++) {
    all[r][place] = fused(sum[r][place], scale, all[r][place]);
    if (has_least(form)) all[r][place] = fused(offset, broadcast(at.group_sums[r * at.groups + group]), all[r][place]);
  }
}

/* `rows` by `blocks` of some groups, from registers. */
INLINE void multiply_few(int64_t rows, int64_t blocks, int form, const uint16_t *panel, int64_t pitch, int64_t column,
                         int64_t groups, struct rows at) {
  int64_t inputs = inputs_of(form);
  const unit *x = at.x;
  tile_sums all, sum;
  move_sums(rows, blocks, all, at.sums, 0);
  for (int64_t g = 0; g < groups; g++, panel += pitch * group_halves(form))
    for (int64_t of = 0; of < scales_of(form); of++) {
      int64_t units = GROUP / inputs / scales_of(form);
      UNROLLED for (int64_t r = 0; r < rows; r++)
        UNROLLED for (int64_t c = 0; c < blocks * SUBS; c++) sum[r][c] = broadcast(0);
      for (int64_t k = of * units; k < (of + 1) * units; k++, x += inputs / UNIT) {
        UNROLLED for (int64_t c = 0; c < blocks * SUBS; c++) {
          const uint16_t *from = panel + 2 * (k * pitch + column + c * LANES);
          words found[8 / UNIT];
          if (c % SUBS == 0) __builtin_prefetch((const char *)from + COMING, 0, 2);
          elements_of(load_unit(from), form, found);
          UNROLLED for (int64_t n = 0; n < inputs / UNIT; n++)
            UNROLLED for (int64_t r = 0; r < rows; r++) sum[r][c] = multiply_add(sum[r][c], found[n], x[r * at.stride + n]);
        }
      }
      UNROLLED for (int64_t c = 0; c < blocks * SUBS; c++) {
        floats scale, offset;
        meaning_of(panel + 2 * (GROUP / inputs) * pitch, pitch, column + c * LANES, form, of, &scale, &offset);
        add_scaled(rows, form, all, sum, c, scale, offset, at, g);
      }
    }
  move_sums(rows, blocks, all, at.sums, 1);
}

/* The same of groups that are elements. Meanwhile a line's worth for each unit comes nearer of what is needed `later`. */
INLINE void multiply_unpacked(int64_t rows, int64_t blocks, int form, const struct unpacked *from, int64_t width,
                              int64_t column, int64_t groups, struct rows at, const char *later) {
  const unit *x = at.x;
  const uint32_t *weight = from->units + column;
  tile_sums all, sum;
  move_sums(rows, blocks, all, at.sums, 0);
  for (int64_t part = 0; part < groups * scales_of(form); part++) { /* what one scale is of */
    int64_t g = part / scales_of(form);
    UNROLLED for (int64_t r = 0; r < rows; r++)
      UNROLLED for (int64_t c = 0; c < blocks * SUBS; c++) sum[r][c] = broadcast(0);
    for (int64_t k = 0; k < GROUP_UNITS / scales_of(form); k++, weight += width, x++, later += LINE) {
      __builtin_prefetch(later, 0, 2);
      words own[4 * SUBS];
      UNROLLED for (int64_t c = 0; c < blocks * SUBS; c++) own[c] = load_words(weight + c * LANES);
      UNROLLED for (int64_t r = 0; r < rows; r++) {
        uint32_t value = x[r * at.stride];
        UNROLLED for (int64_t c = 0; c < blocks * SUBS; c++) sum[r][c] = multiply_add(sum[r][c], own[c], value);
      }
    }
    const float *scales = from->scales + part * width + column, *offsets = from->offsets + g * width + column;
    UNROLLED for (int64_t c = 0; c < blocks * SUBS; c++) {
      floats offset = has_least(form) ? load_floats(offsets + c * LANES) : broadcast(0);
      add_scaled(rows, form, all, sum, c, load_floats(scales + c * LANES), offset, at, g);
    }
  }
  move_sums(rows, blocks, all, at.sums, 1);
}

/* Each shape of a tile compiled by itself, empty where there are no registers for it. */
#define FEW_TILE(ROWS, BLOCKS, FORM)                                                                                   \
  static void few_##ROWS##_##BLOCKS##_##FORM(const uint16_t *panel, int64_t pitch, int64_t column, int64_t groups,     \
                                             const struct rows *at) {                                                  \
    if (BLOCKS <= widest(ROWS)) multiply_few(ROWS, BLOCKS, FORM, panel, pitch, column, groups, *at);                    \
  }
#define UNPACKED_TILE(ROWS, BLOCKS, FORM)                                                                              \
  static void unpacked_##ROWS##_##BLOCKS##_##FORM(const struct unpacked *from, int64_t width, int64_t column,          \
                                                  int64_t groups, const struct rows *at, const char *later) {          \
    if (BLOCKS <= widest(ROWS)) multiply_unpacked(ROWS, BLOCKS, FORM, from, width, column, groups, *at, later);        \
  }
#define FORMS(TILE, ROWS, BLOCKS) \
  TILE(ROWS, BLOCKS, INT8) TILE(ROWS, BLOCKS, INT4) TILE(ROWS, BLOCKS, INT8_HALVES) TILE(ROWS, BLOCKS, INT8_LEAST)
#define SHAPES(TILE, ROWS) FORMS(TILE, ROWS, 1) FORMS(TILE, ROWS, 2) FORMS(TILE, ROWS, 4)
SHAPES(FEW_TILE, 1) SHAPES(FEW_TILE, 2) SHAPES(FEW_TILE, 3) SHAPES(FEW_TILE, 4)
SHAPES(UNPACKED_TILE, 1) SHAPES(UNPACKED_TILE, 2) SHAPES(UNPACKED_TILE, 3) SHAPES(UNPACKED_TILE, 4)

typedef void few_tile(const uint16_t *panel, int64_t pitch, int64_t column, int64_t groups, const struct rows *at);
typedef void unpacked_tile(const struct unpacked *from, int64_t width, int64_t column, int64_t groups,
                           const struct rows *at, const char *later);

#define WIDTHS_OF(NAME, ROWS, FORM) {NAME##_##ROWS##_1_##FORM, NAME##_##ROWS##_2_##FORM, NAME##_##ROWS##_4_##FORM}
#define TABLE_OF(NAME, ROWS)                                            \
  {WIDTHS_OF(NAME, ROWS, INT8), WIDTHS_OF(NAME, ROWS, INT4),            \
   WIDTHS_OF(NAME, ROWS, INT8_HALVES), WIDTHS_OF(NAME, ROWS, INT8_LEAST)}
static few_tile *const FEW_TILES[FEW][4][3] = {TABLE_OF(few, 1), TABLE_OF(few, 2), TABLE_OF(few, 3), TABLE_OF(few, 4)};
static unpacked_tile *const UNPACKED_TILES[FEW][4][3] = {TABLE_OF(unpacked, 1), TABLE_OF(unpacked, 2),
                                                         TABLE_OF(unpacked, 3), TABLE_OF(unpacked, 4)};

/* `unpack` compiled for each form. */
#define UNPACK(FORM)                                                                                            \
  static void unpack_##FORM(const uint16_t *panel, int64_t pitch, int64_t column, int64_t groups, int64_t width, \
                            struct unpacked *to) {                                                              \
    unpack(panel, pitch, column, groups, width, FORM, to);                                                      \
  }
UNPACK(INT8) UNPACK(INT4) UNPACK(INT8_HALVES) UNPACK(INT8_LEAST)

typedef void unpacking(const uint16_t *panel, int64_t pitch, int64_t column, int64_t groups, int64_t width,
                       struct unpacked *to);
static unpacking *const UNPACK_OF[4] = {unpack_INT8, unpack_INT4, unpack_INT8_HALVES, unpack_INT8_LEAST};

/* Blocks of a tile of so many rows, of those that are left. */
static int64_t tile_blocks(int64_t rows, int64_t left) {
  int64_t most = widest(rows);
  return left >= 4 && most >= 4 ? 4 : left >= 2 && most >= 2 ? 2 : 1;
}

/* What a piece reads: some blocks of a panel, and which panel comes after it. */
struct read {
  int form;
  int64_t groups, step, column, width, pitch; /* `step` in 16 bits, of a column and group */
  const uint16_t *panel, *next;
};

static void multiply_by_few(const struct read *from, struct rows first, int64_t rows) {
  for (int64_t column = 0, blocks; column < from->width; column += blocks * BLOCK) {
    struct rows at = first;
    blocks = tile_blocks(rows, (from->width - column) / BLOCK);
    at.sums += column;
    FEW_TILES[rows - 1][from->form - INT8][blocks / 2](from->panel, from->pitch, from->column + column, from->groups, &at);
  }
}

#if defined(__AMX_BF16__) && defined(ELEMENT_BFLOAT16)

/* Rows that the matrix unit takes. It sums over all of the depth, so what it multiplies has its scale, and is rounded. */
INLINE int64_t rows_of_unit(int64_t rows) { return rows / TILE_ROWS * TILE_ROWS; }

INLINE words rounded(floats value) { return (words)value + 0x7fff + ((words)value >> 16 & 1); }

static void scale_all(struct unpacked *to, int64_t groups, int64_t width, int form) {
  for (int64_t g = 0; g < groups; g++)
    for (int64_t c = 0; c < width; c += LANES) {
      floats offset = has_least(form) ? load_floats(to->offsets + g * width + c) : broadcast(0);
      for (int64_t k = 0; k < GROUP_UNITS; k++) {
        int64_t part = g * scales_of(form) + k * scales_of(form) / GROUP_UNITS;
        floats scale = load_floats(to->scales + part * width + c);
        uint32_t *at = to->units + (g * GROUP_UNITS + k) * width + c;
        words unit = load_words(at);
        words lower = rounded(fused((floats)(unit << 16), scale, offset));
        words upper = rounded(fused((floats)(unit & 0xffff0000u), scale, offset));
        words both = lower >> 16 | (upper & 0xffff0000u);
        memcpy(at, &both, sizeof both);
      }
    }
}

static void multiply_by_unit(struct unpacked *unpacked, const struct read *from, struct rows at, int64_t rows,
                             int64_t groups) {
  _Alignas(64) float found[ROWS_TOGETHER * PANEL];
  if (rows == 0) return;
  scale_all(unpacked, groups, from->width, from->form);
  tiles_begin();
  for (int64_t row = 0, some; row < rows; row += some) {
    some = rows - row >= ROWS_TOGETHER ? ROWS_TOGETHER : TILE_ROWS;
    for (int64_t c = 0; c < from->width; c += 2 * BLOCK)
      multiply_blocks(at.x + row * at.stride, at.stride, some > TILE_ROWS, unpacked->units + c, from->width,
                      groups * GROUP_UNITS, c + BLOCK < from->width, found + c);
    for (int64_t r = 0; r < some; r++)
      for (int64_t c = 0; c < from->width; c += LANES) {
        float *to = at.sums + (row + r) * PANEL + c;
        store_floats(to, load_floats(to) + load_floats(found + r * PANEL + c));
      }
  }
  tile_end();
}

#else

INLINE int64_t rows_of_unit(int64_t rows) { return 0 * rows; }

INLINE void multiply_by_unit(struct unpacked *unpacked, const struct read *from, struct rows at, int64_t rows,
                             int64_t groups) {
  (void)unpacked, (void)from, (void)at, (void)rows, (void)groups;
}

#endif

static void multiply_by_many(const struct read *from, struct rows first, int64_t rows) {
  struct unpacked unpacked;
  int64_t by_unit = rows_of_unit(rows), tiles = (rows - by_unit + FEW - 1) / FEW, bytes = from->pitch * from->step * 2;
  for (int64_t g = 0; g < from->groups; g += TOGETHER) {
    int64_t some = from->groups - g < TOGETHER ? from->groups - g : TOGETHER;
    const uint16_t *panel = from->panel + g * from->pitch * from->step;
    UNPACK_OF[from->form - INT8](panel, from->pitch, from->column, some, from->width, &unpacked);
    const char *coming = (const char *)(g + some < from->groups ? panel + some * from->pitch * from->step : from->next);
    const char *end = coming + (from->width == from->pitch ? some * bytes : 0);
    for (int64_t t = 0, row = by_unit; t < tiles; t++) { /* of sizes that differ by one row at most */
      int64_t together = (rows - row + tiles - t - 1) / (tiles - t);
      for (int64_t column = 0, blocks; column < from->width; column += blocks * BLOCK) {
        struct rows at = first;
        blocks = tile_blocks(together, (from->width - column) / BLOCK);
        at.x += row * at.stride + g * GROUP_UNITS;
        at.sums += row * PANEL + column;
        if (has_least(from->form)) at.group_sums += row * at.groups + g;
        UNPACKED_TILES[together - 1][from->form - INT8][blocks / 2](&unpacked, from->width, column, some, &at,
                                                                  coming < end ? coming : (const char *)&unpacked);
        coming += some * GROUP_UNITS * LINE;
      }
      row += together;
    }
    struct rows at = first;
    at.x += g * GROUP_UNITS;
    multiply_by_unit(&unpacked, from, at, by_unit, some);
  }
}

/* Some rows by blocks of one panel: of a segment that begins with the product's block `begin`. */
static void multiply_panel(const struct multiplied *m, const struct segment *segment, int64_t begin, int64_t block,
                           int64_t blocks, int64_t first_row, int64_t rows) {
  int64_t units = m->product->in / UNIT, groups = m->product->in / GROUP, step = group_halves(segment->form);
  int64_t all = segment->out / BLOCK, within = block - begin, left = all - within / 4 * 4;
  int64_t next = within + m->ahead * m->block_step;
  const uint16_t *panels = segment->packed;
  struct read from = {(int)segment->form, groups, step, within % 4 * BLOCK, blocks * BLOCK, (left < 4 ? left : 4) * BLOCK,
                      panels + within / 4 * 4 * BLOCK * groups * step, panels};
  if (next < all) from.next += next / 4 * 4 * BLOCK * groups * step;
  _Alignas(64) float sums[MOST_QUANTIZED * PANEL];
  struct rows first = {(const unit *)m->x + first_row * units, units, groups, m->group_sums, sums};
  if (has_least(segment->form)) first.group_sums += first_row * groups;
  memset(sums, 0, (size_t)rows * PANEL * sizeof *sums);
  if (rows <= FEW)
    multiply_by_few(&from, first, rows);
  else
    multiply_by_many(&from, first, rows);
  for (int64_t r = 0; r < rows; r++) end_row(m, first_row + r, block * BLOCK, from.width, sums + r * PANEL);
}

static void multiply_quantized(const void *context, int64_t piece, void *scratch) {
  const struct multiplied *m = context;
  const struct product *product = m->product;
  const struct segment whole = {product->packed, product->out, product->form};
  const struct segment *segment = product->form == SEGMENTS ? product->packed : &whole;
  (void)scratch;
  int64_t all = product->out / BLOCK, pieces = (all + m->block_step - 1) / m->block_step, begin = 0;
  int64_t first_row = piece / pieces * m->row_step, block = piece % pieces * m->block_step;
  int64_t rows = first_row + m->row_step < m->rows ? m->row_step : m->rows - first_row;
  int64_t end = all - block < m->block_step ? all : block + m->block_step;
  for (int64_t some; block < end; block += some) { /* segments may begin anywhere */
    for (; block - begin >= segment->out / BLOCK; segment++) begin += segment->out / BLOCK;
    int64_t of_panel = 4 - (block - begin) % 4, of_segment = segment->out / BLOCK - (block - begin);
    some = of_panel < of_segment ? of_panel : of_segment;
    if (some > end - block) some = end - block;
    multiply_panel(m, segment, begin, block, some, first_row, rows);
  }
}

static void sum_groups(const void *context, int64_t piece, void *scratch) {
  const struct summed *s = context;
  (void)scratch;
  int64_t first = piece * s->step, last = first + s->step < s->rows ? first + s->step : s->rows;
  const element *x = (const element *)s->x + first * s->groups * GROUP;
  for (float *to = s->sums + first * s->groups; to < s->sums + last * s->groups; to++, x += GROUP) {
    floats sum = load(x);
    for (int64_t i = LANES; i < GROUP; i += LANES) sum += load(x + i);
    *to = sum_of(sum);
  }
}
