// Pairs of a row and an expert that it visits, sorted by expert, rows in order within an expert.
// Knows no weights. Next: experts.h.

#pragma once

#include <cstdint>
#include <memory>

#include "kernels.h"

namespace moestro {

// Up to BLOCK_ROWS pairs of one expert.
struct PairBlock {
  int64_t first_pair;
  int64_t num_rows;
};

// An expert that somebody visits, and its blocks.
struct Visited {
  int64_t expert;
  int64_t num_pairs;
  int64_t first_block;
  int64_t num_blocks;
};

// Arrays, not vectors: files for different processors include this, and must not share compiled
// code.
struct Pairs {
  explicit Pairs(const ExpertProduct& product);
  ~Pairs();

  int64_t num_pairs = 0;
  int64_t num_blocks = 0;
  int64_t num_visited = 0;
  int64_t most_pairs = 0;
  std::unique_ptr<int64_t[]> row;
  std::unique_ptr<float[]> scale;
  std::unique_ptr<PairBlock[]> blocks;
  std::unique_ptr<Visited[]> visited;
};

}  // namespace moestro
