// The innermost product: a few rows times a few panels, sums in registers.
// V is a vector type (vector_avx2.h), W a weight as it is stored. Next: block.h.

#pragma once

#include "kernels.h"

namespace moestro {

// out[r][columns] += x[:, r] W, for `depth` inputs; `x` has the rows of one input side by side.
template <class V, class W, int ROWS, int PANELS>
void add_tile(const float* x, const W* panels, int64_t panel_size, int64_t depth,
              float* const* out, int64_t column) {
  constexpr int PER_PANEL = PANEL / V::WIDTH;
  constexpr int VECTORS = PANELS * PER_PANEL;
  V sums[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = V::load(out[r] + column + v * V::WIDTH);
  }
  for (int64_t d = 0; d < depth; ++d) {
    V inputs[ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) inputs[r] = V::broadcast(x + d * ROWS + r);
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) {
      const W* place = panels + (v / PER_PANEL) * panel_size + d * PANEL;
      const V weight = V::load(place + (v % PER_PANEL) * V::WIDTH);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) sums[r][v] = V::multiply_add(inputs[r], weight, sums[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) sums[r][v].store(out[r] + column + v * V::WIDTH);
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
