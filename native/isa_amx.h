// AVX-512 with AMX's tiles: sixteen rows of sixteen words, of which one instruction multiplies two
// and adds to a third. Where rows are by words and columns in panels, products go by tiles; all
// else is AVX-512. Next: tile.h, band_products.h.

#pragma once

#include "isa_avx512.h"
#include "kernels.h"

namespace moestro {

struct Amx : Avx512 {
  static constexpr bool HAS_TILES = true;
  static constexpr int BAND_PANELS = TILED_PANELS;

  // A tile's rows, and its words in each of them.
  static constexpr int64_t TILE = 16;
  static_assert(TILED_ROWS == 2 * TILE && TILED_WORDS == TILE && PANEL == TILE, "whole tiles");

  // Sums of TILED_ROWS rows, side by side by row.
  using TiledSums = float[TILED_ROWS][TILED_PANELS * PANEL];

  // A thread's tiles, in shape for products for as long as this lives. Shaping them costs as much
  // as some thirty products of tiles.
  class Tiles {
   public:
    Tiles() {
      Shapes shapes;
      for (int i = 0; i < 8; ++i) {
        shapes.row_bytes[i] = sizeof(uint32_t) * TILE;
        shapes.rows[i] = TILE;
      }
      settle_memory(&shapes);
      _tile_loadconfig(&shapes);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

   private:
    // What the processor reads: palette 1, and each tile's rows and their bytes.
    struct alignas(64) Shapes {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    };
  };

  // sums[r][c] = rows times one or two panels over `num_words` words, a multiple of TILED_WORDS,
  // where this thread has Tiles. `row_step` and `step` words lie between rows and between words of
  // a panel. Reads TILE rows, or TILED_ROWS if there are more.
  static void multiply_tiles(const uint32_t* rows, int64_t row_step, int64_t num_rows,
                             const uint32_t* panels, int64_t step, int64_t num_panels,
                             int64_t num_words, TiledSums& sums) {
    settle_memory(rows);
    const bool is_wide = num_panels == TILED_PANELS;
    if (num_rows > TILE) {
      if (is_wide) return run<true, true>(rows, row_step, panels, step, num_words, sums);
      return run<true, false>(rows, row_step, panels, step, num_words, sums);
    }
    if (is_wide) return run<false, true>(rows, row_step, panels, step, num_words, sums);
    run<false, false>(rows, row_step, panels, step, num_words, sums);
  }

  static void store_words(Words a, uint32_t* to) { _mm512_storeu_si512(to, a.value); }

 private:
  // Compilers do not know what tiles' instructions read: all must be in memory before them.
  static void settle_memory(const void* read) { asm volatile("" : : "r"(read) : "memory"); }

  // How far ahead a panel's words are asked for where few rows make memory the limit.
  static constexpr int64_t AHEAD = 4 * TILED_WORDS;

  template <bool IS_TALL, bool IS_WIDE>
  static void run(const uint32_t* rows, int64_t row_step, const uint32_t* panels, int64_t step,
                  int64_t num_words, TiledSums& sums) {
    _tile_zero(0);
    if constexpr (IS_WIDE) _tile_zero(1);
    if constexpr (IS_TALL) _tile_zero(2);
    if constexpr (IS_TALL && IS_WIDE) _tile_zero(3);
    for (int64_t w = 0; w < num_words; w += TILED_WORDS) {
      const uint32_t* words = panels + w * step;
      if constexpr (!IS_TALL) {
        for (int64_t i = 0; i < TILED_WORDS; ++i) {
          // As a number: behind the last panel a pointer would have nothing to point to.
          const uintptr_t line = reinterpret_cast<uintptr_t>(words) + 4 * (AHEAD + i) * step;
          __builtin_prefetch(reinterpret_cast<const void*>(line));
          if constexpr (IS_WIDE) {
            __builtin_prefetch(reinterpret_cast<const void*>(line + 4 * PANEL));
          }
        }
      }
      _tile_loadd(4, rows + w, 4 * row_step);
      _tile_loadd(6, words, 4 * step);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (IS_WIDE) {
        _tile_loadd(7, words + PANEL, 4 * step);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (IS_TALL) {
        _tile_loadd(5, rows + TILE * row_step + w, 4 * row_step);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (IS_WIDE) _tile_dpbf16ps(3, 5, 7);
      }
    }
    constexpr int64_t SUM_STEP = sizeof(sums[0]);
    _tile_stored(0, sums[0], SUM_STEP);
    if constexpr (IS_WIDE) _tile_stored(1, sums[0] + PANEL, SUM_STEP);
    if constexpr (IS_TALL) _tile_stored(2, sums[TILE], SUM_STEP);
    if constexpr (IS_TALL && IS_WIDE) _tile_stored(3, sums[TILE] + PANEL, SUM_STEP);
  }
};

}  // namespace moestro
