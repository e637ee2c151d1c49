// Pairs of a row and an expert that it visits, sorted by expert, rows in order within an expert.
// Knows no weights. Next: experts.h.

#pragma once

#include "workspace.h"
#include "kernels.h"

namespace moestro {

// Some pairs of one expert.
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

struct Pairs {
  Pairs() = default;
  // Makes room for as many pairs and experts as there can be, in memory of the workspace.
  Pairs(Workspace& workspace, int64_t most_pairs, int64_t most_experts);

  // Sorts visits, into blocks of at most so many; all of them must name experts that there are.
  void sort(const Visits& visits, int64_t most_rows);
  // Lets every row visit expert 0 with weight 1.
  void visit_one(int64_t num_rows, int64_t most_rows);

  int64_t num_pairs = 0;
  int64_t num_blocks = 0;
  int64_t num_visited = 0;
  int64_t* row = nullptr;
  float* weight = nullptr;
  PairBlock* blocks = nullptr;
  Visited* visited = nullptr;

 private:
  void add_expert(int64_t expert, int64_t start, int64_t end, int64_t most_rows);

  int64_t most_experts_ = 0;
  int64_t* next_ = nullptr;
};

// Throws if a visit names an expert that there is not.
void check_visits(const Visits& visits, int64_t num_experts);

}  // namespace moestro
