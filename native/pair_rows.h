// Rows of a block's pairs of a row and an expert: gathered, filled up, and summed over slots again.
// Next: pair_gradients.h.

#pragma once

#include <cstring>

#include "bands.h"
#include "team.h"
#include "training_pairs.h"

namespace moestro::MOESTRO_ISA {

// Rows summed over their slots as one task.
constexpr int64_t SUM_ROWS = 64;

// One thread's room for a block of pairs: rows of so many bfloat16 or float32.
template <class Number>
struct BlockRows {
  BlockRows(Workspace& workspace, int64_t row_width, int num_threads)
      : width(row_width), data(workspace.take<Number>(num_threads * BLOCK_PAIRS * row_width)) {}

  Number* rows(int rank) const { return data + rank * BLOCK_PAIRS * width; }

  const int64_t width;
  Number* const data;
};

// Writes zeros behind a block's rows, up to whole panels of words.
template <class Number>
void fill_up(const TrainingPairs::Block& block, int64_t width, Number* rows) {
  const int64_t number = round_up(block.num_pairs, ROW_MULTIPLE) - block.num_pairs;
  std::memset(rows + block.num_pairs * width, 0, sizeof(Number) * number * width);
}

// Copies a block's rows of `from` to `to`, filled up.
inline void gather(const TrainingPairs& pairs, const TrainingPairs::Block& block,
                   const uint16_t* from, int64_t width, uint16_t* to) {
  for (int64_t i = 0; i < block.num_pairs; ++i) {
    copy_panels(from + pairs.row(block.first_pair + i) * width, width, to + i * width);
  }
  fill_up(block, width, to);
}

// Rows that a sum over slots is added to, as many as are not null, before it is rounded.
struct SumsBefore {
  const uint16_t* rows[2];
};

// Sums pairs' rows over each row's slots, in order, onto what is there already.
template <class Isa>
void sum_slots(Team& team, const TrainingPairs& pairs, const uint16_t* from, int64_t width,
               const SumsBefore& before, uint16_t* to) {
  const int64_t slots = pairs.visits.num_slots, rows = pairs.visits.num_rows;
  team.each(divide_up(rows, SUM_ROWS), [&](int64_t task) {
    for (int64_t t = task * SUM_ROWS; t < smaller(rows, (task + 1) * SUM_ROWS); ++t) {
      for (int64_t c = 0; c < width; c += PANEL) {
        typename Isa::Lanes sum = Isa::fill(0.0f);
        for (const uint16_t* other : before.rows) {
          if (other != nullptr) sum = Isa::add(sum, Isa::load_bfloat16(other + t * width + c));
        }
        for (int64_t k = 0; k < slots; ++k) {
          const int64_t pair = pairs.place[t * slots + k];
          if (pair >= 0) sum = Isa::add(sum, Isa::load_bfloat16(from + pair * width + c));
        }
        Isa::store_bfloat16(sum, to + t * width + c);
      }
    }
  });
}

}  // namespace moestro::MOESTRO_ISA
