// The gate in training: float32 logits of bfloat16 rows, their gradients, and the choice of the best.
// Sums over rows go through sums of a fixed number of pieces, in order. Next: kernels.h.

#pragma once

#include <algorithm>
#include <limits>

#include "rows_training.h"

namespace moestro::MOESTRO_ISA {

// Pieces of the sum over rows that is the weights' gradient.
constexpr int64_t GATE_PIECES = 32;
// Rows whose sums are made side by side, so that none waits for itself.
constexpr int64_t GATE_ROWS = 4;

template <class Isa>
void forward_gate(const GateRows& gate, float* logits, Workspace& workspace, int num_threads) {
  using Lanes = typename Isa::Lanes;
  workspace.reset();
  const int64_t number = gate.num_experts, columns = round_up(number, PANEL), width = gate.width;
  float* turned = workspace.take<float>(columns * width);
  for (int64_t c = 0; c < width; ++c) {
    for (int64_t e = 0; e < columns; ++e) {
      turned[c * columns + e] = e < number ? gate.weight[e * width + c] : 0.0f;
    }
  }
  run_team(num_threads, [&](Team& team) {
    team.each(divide_up(gate.num_rows, PIECE_ROWS), [&](int64_t piece) {
      const int64_t end = smaller(gate.num_rows, (piece + 1) * PIECE_ROWS);
      for (int64_t first = piece * PIECE_ROWS; first < end; first += GATE_ROWS) {
        const uint16_t* rows[GATE_ROWS];
        // What fills four rows up is computed and not stored.
        for (int64_t r = 0; r < GATE_ROWS; ++r) {
          rows[r] = gate.x + smaller(first + r, end - 1) * width;
        }
        for (int64_t e = 0; e < columns; e += PANEL) {
          Lanes sums[GATE_ROWS];
          for (Lanes& sum : sums) sum = Isa::fill(0.0f);
          for (int64_t c = 0; c < width; ++c) {
            const Lanes weights = Isa::load(turned + c * columns + e);
            for (int64_t r = 0; r < GATE_ROWS; ++r) {
              const Lanes x = Isa::fill(from_bfloat16(rows[r][c]));
              sums[r] = Isa::multiply_add(weights, x, sums[r]);
            }
          }
          for (int64_t r = 0; r < smaller(GATE_ROWS, end - first); ++r) {
            store_some<Isa>(sums[r], logits + (first + r) * number + e, smaller(PANEL, number - e));
          }
        }
      }
    });
    team.barrier();
  });
}

template <class Isa>
void backward_gate(const GateRows& gate, const float* dlogits, uint16_t* dx, float* dweight,
                   Workspace& workspace, int num_threads) {
  using Lanes = typename Isa::Lanes;
  workspace.reset();
  const int64_t number = gate.num_experts, width = gate.width, size = number * width;
  const int64_t piece_rows = divide_up(gate.num_rows, GATE_PIECES);
  float* sums = workspace.take<float>(GATE_PIECES * size);
  std::fill_n(sums, GATE_PIECES * size, 0.0f);
  run_team(num_threads, [&](Team& team) {
    team.each(GATE_PIECES, [&](int64_t piece) {
      const int64_t end = smaller(gate.num_rows, (piece + 1) * piece_rows);
      for (int64_t t = piece * piece_rows; t < end; ++t) {
        const float* changes = dlogits + t * number;
        for (int64_t c = 0; c < width; c += PANEL) {
          const Lanes x = Isa::load_bfloat16(gate.x + t * width + c);
          Lanes sum = Isa::fill(0.0f);
          for (int64_t e = 0; e < number; ++e) {
            const Lanes change = Isa::fill(changes[e]);
            float* own = sums + piece * size + e * width + c;
            sum = Isa::multiply_add(Isa::load(gate.weight + e * width + c), change, sum);
            Isa::store(Isa::multiply_add(x, change, Isa::load(own)), own);
          }
          Isa::store_bfloat16(sum, dx + t * width + c);
        }
      }
    });
    team.barrier();
  });
  std::fill_n(dweight, size, 0.0f);
  for (int64_t piece = 0; piece < GATE_PIECES; ++piece) {
    for (int64_t i = 0; i < size; ++i) dweight[i] += sums[piece * size + i];
  }
}

// Takes each row's largest scores in order, the lower column first among equals. A NaN is the least.
template <class Isa>
void take_largest(const float* scores, int64_t num_rows, int64_t num_columns, int64_t number,
                  float* largest, int64_t* columns, int num_threads) {
  run_team(num_threads, [&](Team& team) {
    each_row(team, num_rows, [&](int64_t t, int64_t) {
      const float* row = scores + t * num_columns;
      // Sorted in as they come: few of them pass the last.
      float* best = largest + t * number;
      int64_t* place = columns + t * number;
      int64_t count = 0;
      for (int64_t c = 0; c < num_columns; ++c) {
        const float score =
            row[c] == row[c] ? row[c] : -std::numeric_limits<float>::infinity();
        if (count == number && !(score > best[count - 1])) continue;
        int64_t k = count < number ? count++ : count - 1;
        for (; k > 0 && score > best[k - 1]; --k) {
          best[k] = best[k - 1];
          place[k] = place[k - 1];
        }
        best[k] = score;
        place[k] = c;
      }
    });
  });
}

}  // namespace moestro::MOESTRO_ISA
