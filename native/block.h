// Up to BLOCK_ROWS rows that go through the weights together, their inputs side by side.
// All is static: files for different processors include this, and must not share compiled code.
// Next: multiply.h.

#pragma once

#include "tile.h"

namespace moestro {

// How many inputs of each row to take before the next block's turn.
static inline int64_t chunk_size(int64_t num_rows, int64_t depth) {
  return num_rows > BLOCK_ROWS ? DEPTH_CHUNK : depth;
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Panels of one task: as many as pay, unless that leaves threads without work.
static inline int64_t group_size(int64_t num_panels, int64_t num_rows, int num_threads) {
  const bool is_scarce = num_panels < 4 * GROUP_PANELS * num_threads;
  return num_rows > 3 && is_scarce ? 1 : GROUP_PANELS;
}

static inline void gather(const float* const* rows, int64_t num_rows, int64_t depth, float* to) {
  for (int64_t d = 0; d < depth; ++d) {
    for (int64_t r = 0; r < num_rows; ++r) to[d * num_rows + r] = rows[r][d];
  }
}

static inline void clear(float* from, int64_t number) {
  for (int64_t i = 0; i < number; ++i) from[i] = 0.0f;
}

}  // namespace moestro
