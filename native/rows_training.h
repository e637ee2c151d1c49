// Rows that training takes each by itself, shared out in pieces: sums
// over rows go through sums of these pieces, in order, so that no
// result depends on threads. Next: norm_training.h, rotate_training.h.

#pragma once

#include "kernels.h"
#include "team.h"

namespace moestro::MOESTRO_ISA {

// Rows of a task, and of a piece of a sum over rows.
constexpr int64_t PIECE_ROWS = 64;

// Calls work(row, piece) for all rows, shared out among threads in pieces.
template <class Work>
void each_row(Team& team, int64_t num_rows, Work work) {
  team.each(divide_up(num_rows, PIECE_ROWS), [&](int64_t piece) {
    const int64_t last = smaller(num_rows, (piece + 1) * PIECE_ROWS);
    for (int64_t t = piece * PIECE_ROWS; t < last; ++t) work(t, piece);
  });
  team.barrier();
}

}  // namespace moestro::MOESTRO_ISA
