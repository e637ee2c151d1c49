// The innermost product: a few rows times a few panels, sums in registers.
// V is a vector type (vector_avx2.h), W a weight as it is stored. Next: block.h.

#pragma once

#include "kernels.h"

namespace moestro {

// How far ahead of its use a weight is asked for: processors stop their own reading ahead at the
// end of a page.
constexpr int64_t PREFETCH_BYTES = 4096;

// The sums of one tile, for as long as they stay in registers.
template <class V, class W, int ROWS, int PANELS>
struct Tile {
  static constexpr int PER_PANEL = PANEL / V::WIDTH;
  static constexpr int VECTORS = PANELS * PER_PANEL;
  V sums[ROWS][VECTORS];

  static V weight(const W* panels, int64_t panel_size, int v) {
    return V::load(panels + (v / PER_PANEL) * panel_size + (v % PER_PANEL) * V::WIDTH);
  }

  // Adds one input's products. Of inputs and weights the fewer are held, the others pass by:
  // a register more, and sums would spill.
  void add(const float* x, const W* panels, int64_t panel_size) {
    if constexpr (ROWS < VECTORS) {
      V inputs[ROWS];
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) inputs[r] = V::broadcast(x + r);
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v) {
        const V passing = weight(panels, panel_size, v);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) sums[r][v] = V::multiply_add(inputs[r], passing, sums[r][v]);
      }
    } else {
      V weights[VECTORS];
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v) weights[v] = weight(panels, panel_size, v);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const V passing = V::broadcast(x + r);
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) {
          sums[r][v] = V::multiply_add(passing, weights[v], sums[r][v]);
        }
      }
    }
  }
};

// out[r][columns] += x[:, r] W, for `depth` inputs; `x` has the rows of one input side by side.
template <class V, class W, int ROWS, int PANELS>
void add_tile(const float* x, const W* panels, int64_t panel_size, int64_t depth,
              float* const* out, int64_t column) {
  Tile<V, W, ROWS, PANELS> tile;
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < tile.VECTORS; ++v) {
      tile.sums[r][v] = V::load(out[r] + column + v * V::WIDTH);
    }
  }
  for (int64_t d = 0; d < depth; ++d) {
    for (int p = 0; p < PANELS; ++p) {
      __builtin_prefetch(panels + d * PANEL + p * panel_size + PREFETCH_BYTES / sizeof(W));
    }
    tile.add(x + d * ROWS, panels + d * PANEL, panel_size);
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < tile.VECTORS; ++v) tile.sums[r][v].store(out[r] + column + v * V::WIDTH);
  }
}

// The panels that a tile of so many rows takes: sums fill the registers, and no more.
constexpr int tile_panels(int num_rows) { return num_rows == 1 ? 4 : num_rows <= 3 ? 2 : 1; }

// All panels of a group, as many at a time as the registers allow.
template <class V, class W, int ROWS>
void add_group(const float* x, const W* panels, int64_t panel_size, int64_t depth,
               int64_t num_panels, float* const* out, int64_t column) {
  constexpr int PANELS = tile_panels(ROWS);
  int64_t p = 0;
  for (; p + PANELS <= num_panels; p += PANELS) {
    add_tile<V, W, ROWS, PANELS>(x, panels + p * panel_size, panel_size, depth, out,
                                 column + p * PANEL);
  }
  for (; p < num_panels; ++p) {
    add_tile<V, W, ROWS, 1>(x, panels + p * panel_size, panel_size, depth, out,
                            column + p * PANEL);
  }
}

// The same for a number of rows that is known only now.
template <class V, class W>
void add_rows(int64_t num_rows, const float* x, const W* panels, int64_t panel_size, int64_t depth,
              int64_t num_panels, float* const* out, int64_t column) {
  static_assert(BLOCK_ROWS == 6, "one case for each number of rows");
  switch (num_rows) {
    case 1: return add_group<V, W, 1>(x, panels, panel_size, depth, num_panels, out, column);
    case 2: return add_group<V, W, 2>(x, panels, panel_size, depth, num_panels, out, column);
    case 3: return add_group<V, W, 3>(x, panels, panel_size, depth, num_panels, out, column);
    case 4: return add_group<V, W, 4>(x, panels, panel_size, depth, num_panels, out, column);
    case 5: return add_group<V, W, 5>(x, panels, panel_size, depth, num_panels, out, column);
    default: return add_group<V, W, 6>(x, panels, panel_size, depth, num_panels, out, column);
  }
}

}  // namespace moestro
