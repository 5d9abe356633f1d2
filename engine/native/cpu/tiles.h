/* The processor's matrix unit: eight registers of 16 rows of 64 bytes. EMULATE_TILES puts plain C in its place, so that
 * what uses it can be tried where there is none. */
#ifndef APPLIANCE_TILES_H
#define APPLIANCE_TILES_H

#include <stdint.h>
#include <string.h>

enum { TILE_ROWS = 16, TILE_UNITS = 16 }; /* of sums, rows; of a row, units of 32 bits */

struct tile_shapes {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16]; /* of a row */
  uint8_t rows[16];
};

#if defined(EMULATE_TILES)

static _Thread_local uint32_t tiles[8][TILE_ROWS][TILE_UNITS];

static inline float tile_half(uint32_t unit, int upper) {
  uint32_t bits = upper ? unit & 0xffff0000u : unit << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

#define tile_begin(shapes) (void)(shapes)
#define tile_end() memset(tiles, 0xff, sizeof tiles)
#define tile_zero(n) memset(tiles[n], 0, sizeof tiles[n])

static inline void tile_load(int n, const void *from, int64_t stride) {
  for (int row = 0; row < TILE_ROWS; row++) memcpy(tiles[n][row], (const char *)from + row * stride, 64);
}

static inline void tile_store(int n, void *to, int64_t stride) {
  for (int row = 0; row < TILE_ROWS; row++) memcpy((char *)to + row * stride, tiles[n][row], 64);
}

static inline void tile_multiply(int sum, int rows, int columns) {
  for (int row = 0; row < TILE_ROWS; row++)
    for (int column = 0; column < TILE_UNITS; column++) {
      float even = 0, odd = 0, value;
      for (int k = 0; k < TILE_UNITS; k++) {
        even += tile_half(tiles[rows][row][k], 0) * tile_half(tiles[columns][k][column], 0);
        odd += tile_half(tiles[rows][row][k], 1) * tile_half(tiles[columns][k][column], 1);
      }
      memcpy(&value, &tiles[sum][row][column], 4);
      value += even + odd;
      memcpy(&tiles[sum][row][column], &value, 4);
    }
}

#else

#include <immintrin.h>

#define tile_begin(shapes) _tile_loadconfig(shapes)
#define tile_end() _tile_release()
#define tile_zero(n) _tile_zero(n)
#define tile_load(n, from, stride) _tile_loadd(n, from, stride)
#define tile_store(n, to, stride) _tile_stored(n, to, stride)
#define tile_multiply(sum, rows, columns) _tile_dpbf16ps(sum, rows, columns)

#endif
#endif
