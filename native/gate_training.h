// The gate in training: logits of bfloat16 rows in float32, scores, the choice, and all gradients; and
// the losses that teach it balance. Sums over rows go through sums of a fixed number of pieces, in
// order. Next: kernels.h.

#pragma once

#include <algorithm>
#include <cmath>

#include "gate.h"
#include "pairs.h"
#include "rows_training.h"

namespace moestro::MOESTRO_ISA {

// Pieces of the sum over rows that is the weights' gradient.
constexpr int64_t GATE_PIECES = 32;
// Rows whose sums are made side by side, so that none waits for itself.
constexpr int64_t GATE_ROWS = 8;

template <class Isa>
class GateForwardWork {
  using Lanes = typename Isa::Lanes;

 public:
  GateForwardWork(const GateForward& given, Workspace& workspace, int num_threads)
      : pass_(given),
        number_(given.gate.num_experts),
        columns_(round_up(number_, PANEL)),
        turned_(workspace.take<float>(columns_ * given.gate.width)),
        rooms_(workspace.take<char>(num_threads * ChoiceRoom::size(number_))),
        rows_(workspace.take<float>(num_threads * GATE_ROWS * given.gate.width)) {
    for (int64_t c = 0; c < given.gate.width; ++c) {
      for (int64_t e = 0; e < columns_; ++e) {
        turned_[c * columns_ + e] = e < number_ ? given.gate.weight[e * given.gate.width + c] : 0.0f;
      }
    }
  }

  void run(Team& team) const {
    const ChoiceRoom room(rooms_ + team.rank() * ChoiceRoom::size(number_), number_);
    float* rows = rows_ + team.rank() * GATE_ROWS * pass_.gate.width;
    team.each(divide_up(pass_.gate.num_rows, PIECE_ROWS), [&](int64_t piece) {
      const int64_t end = smaller(pass_.gate.num_rows, (piece + 1) * PIECE_ROWS);
      for (int64_t first = piece * PIECE_ROWS; first < end; first += GATE_ROWS) {
        multiply(first, smaller(GATE_ROWS, end - first), rows);
      }
      for (int64_t t = piece * PIECE_ROWS; t < end; ++t) choose(t, room);
    });
    team.barrier();
  }

 private:
  void multiply(int64_t first, int64_t num_rows, float* rows) const {
    const int64_t width = pass_.gate.width;
    // What fills the rows up is computed and not stored.
    for (int64_t r = 0; r < GATE_ROWS; ++r) {
      const uint16_t* x = pass_.gate.x + (first + smaller(r, num_rows - 1)) * width;
      for (int64_t c = 0; c < width; c += PANEL) {
        Isa::store(Isa::load_bfloat16(x + c), rows + r * width + c);
      }
    }
    for (int64_t e = 0; e < columns_; e += PANEL) {
      Lanes sums[GATE_ROWS];
#pragma GCC unroll 8
      for (int64_t r = 0; r < GATE_ROWS; ++r) sums[r] = Isa::fill(0.0f);
      for (int64_t c = 0; c < width; ++c) {
        const Lanes weights = Isa::load(turned_ + c * columns_ + e);
#pragma GCC unroll 8
        for (int64_t r = 0; r < GATE_ROWS; ++r) {
          sums[r] = Isa::multiply_add(weights, Isa::fill(rows[r * width + c]), sums[r]);
        }
      }
#pragma GCC unroll 8
      for (int64_t r = 0; r < GATE_ROWS; ++r) {
        if (r >= num_rows) break;
        store_some<Isa>(sums[r], pass_.logits + (first + r) * number_ + e,
                        smaller(PANEL, number_ - e));
      }
    }
  }

  void choose(int64_t t, const ChoiceRoom& room) const {
    const GateRows& gate = pass_.gate;
    const ChoiceRule& rule = gate.rule;
    float *scores = pass_.scores + t * number_, *selection = pass_.selection + t * number_;
    const float* logits = pass_.logits + t * number_;
    std::copy_n(logits, number_, scores);
    fill_scores<Isa>(rule, number_, scores);
    // A sigmoid has a bound for what is no number; training must see it.
    for (int64_t e = 0; e < number_; ++e) scores[e] = std::isnan(logits[e]) ? logits[e] : scores[e];
    fill_selection(rule, gate.bias, number_, scores, selection, room.groups);
    const float fraction = gate.fractions == nullptr ? 1.0f : gate.fractions[t];
    const int64_t place = t * rule.num_slots;
    take_best(rule, find_threshold(rule, gate.thresholds, fraction), number_, scores, selection,
              room.keys,
              {pass_.slots.experts + place, pass_.slots.weights + place,
               pass_.slots.is_used + place, pass_.slots.ranked + place});
  }

  const GateForward& pass_;
  const int64_t number_, columns_;
  float* const turned_;
  char* const rooms_;
  float* const rows_;
};

template <class Isa>
class GateBackwardWork {
  using Lanes = typename Isa::Lanes;

 public:
  GateBackwardWork(const GateBackward& given, Workspace& workspace, int num_threads)
      : pass_(given),
        number_(given.gate.num_experts),
        width_(given.gate.width),
        sums_(workspace.take<float>(GATE_PIECES * number_ * width_)),
        changes_(workspace.take<float>(num_threads * GATE_ROWS * number_)) {}

  void run(Team& team) const {
    const int64_t piece_rows = divide_up(pass_.gate.num_rows, GATE_PIECES);
    float* changes = changes_ + team.rank() * GATE_ROWS * number_;
    team.each(GATE_PIECES, [&](int64_t piece) {
      float* sums = sums_ + piece * number_ * width_;
      std::fill_n(sums, number_ * width_, 0.0f);
      const int64_t end = smaller(pass_.gate.num_rows, (piece + 1) * piece_rows);
      for (int64_t first = piece * piece_rows; first < end; first += GATE_ROWS) {
        const int64_t rows = smaller(GATE_ROWS, end - first);
        std::fill_n(changes, GATE_ROWS * number_, 0.0f);
        for (int64_t r = 0; r < rows; ++r) differentiate(first + r, changes + r * number_);
        multiply(first, rows, changes, sums);
      }
    });
    team.barrier();
    // Each thread has weights of its own, whose pieces are summed in order.
    team.each(number_, [&](int64_t e) {
      for (int64_t c = 0; c < width_; c += PANEL) {
        Lanes sum = Isa::fill(0.0f);
        for (int64_t piece = 0; piece < GATE_PIECES; ++piece) {
          sum = Isa::add(sum, Isa::load(sums_ + (piece * number_ + e) * width_ + c));
        }
        Isa::store(sum, pass_.dweight + e * width_ + c);
      }
    });
    team.barrier();
  }

 private:
  // The gradient of a row's logits.
  void differentiate(int64_t t, float* changes) const {
    const ChoiceRule& rule = pass_.gate.rule;
    const float* scores = pass_.scores + t * number_;
    if (pass_.dscores != nullptr) std::copy_n(pass_.dscores + t * number_, number_, changes);
    if (pass_.dweights != nullptr) add_slots(t, scores, changes);
    float mean = 0.0f;
    if (!rule.is_sigmoid) {
      for (int64_t e = 0; e < number_; ++e) mean += changes[e] * scores[e];
    }
    for (int64_t e = 0; e < number_; ++e) {
      // Both derivatives of scores: s (1 - s) of a sigmoid, s (d - mean of d by s) of a softmax.
      changes[e] = rule.is_sigmoid ? changes[e] * scores[e] * (1.0f - scores[e])
                                   : scores[e] * (changes[e] - mean);
    }
    if (pass_.dlogits == nullptr) return;
    for (int64_t e = 0; e < number_; ++e) changes[e] += pass_.dlogits[t * number_ + e];
  }

  // From slots' weights, which are scores over their sum, to scores.
  void add_slots(int64_t t, const float* scores, float* changes) const {
    const ChoiceRule& rule = pass_.gate.rule;
    const int64_t place = t * rule.num_slots;
    const int64_t* experts = pass_.experts + place;
    const bool* is_used = pass_.is_used + place;
    float sum = 0.0f, mean = 0.0f;
    for (int64_t k = 0; k < rule.num_slots; ++k) {
      sum += is_used[k] ? scores[experts[k]] : 0.0f;
      mean += pass_.dweights[place + k] * pass_.weights[place + k];
    }
    const float scale = rule.routed_scaling_factor / (rule.is_normalized ? sum + 1e-20f : 1.0f);
    const float common = rule.is_normalized ? mean / rule.routed_scaling_factor : 0.0f;
    for (int64_t k = 0; k < rule.num_slots; ++k) {
      if (is_used[k]) changes[experts[k]] += scale * (pass_.dweights[place + k] - common);
    }
  }

  // Rows' inputs and their part of the weights' gradient; behind the last row, changes are zeros.
  void multiply(int64_t first, int64_t num_rows, const float* changes, float* sums) const {
    for (int64_t c = 0; c < width_; c += PANEL) {
      Lanes x[GATE_ROWS], dx[GATE_ROWS];
#pragma GCC unroll 8
      for (int64_t r = 0; r < GATE_ROWS; ++r) {
        x[r] = Isa::load_bfloat16(pass_.gate.x + (first + smaller(r, num_rows - 1)) * width_ + c);
        dx[r] = Isa::fill(0.0f);
      }
      for (int64_t e = 0; e < number_; ++e) {
        const Lanes weight = Isa::load(pass_.gate.weight + e * width_ + c);
        Lanes sum = Isa::load(sums + e * width_ + c);
#pragma GCC unroll 8
        for (int64_t r = 0; r < GATE_ROWS; ++r) {
          const Lanes change = Isa::fill(changes[r * number_ + e]);
          dx[r] = Isa::multiply_add(weight, change, dx[r]);
          sum = Isa::multiply_add(x[r], change, sum);
        }
        Isa::store(sum, sums + e * width_ + c);
      }
#pragma GCC unroll 8
      for (int64_t r = 0; r < GATE_ROWS; ++r) {
        if (r >= num_rows) break;
        Isa::store_bfloat16(dx[r], pass_.dx + (first + r) * width_ + c);
      }
    }
  }

  const GateBackward& pass_;
  const int64_t number_, width_;
  float *const sums_, *const changes_;
};

template <class Isa>
void forward_gate(const GateForward& pass, Workspace& workspace, int num_threads) {
  workspace.reset();
  const GateForwardWork<Isa> work(pass, workspace, num_threads);
  run_team(num_threads, [&](Team& team) { work.run(team); });
}

template <class Isa>
void backward_gate(const GateBackward& pass, Workspace& workspace, int num_threads) {
  workspace.reset();
  const GateBackwardWork<Isa> work(pass, workspace, num_threads);
  run_team(num_threads, [&](Team& team) { work.run(team); });
}

// One sequence's part of both losses.
template <class Isa>
class SequenceBalance {
 public:
  SequenceBalance(const BalanceRows& given, Workspace& workspace, int num_threads)
      : rows_(given),
        number_(given.num_experts),
        length_(given.num_rows / given.num_sequences),
        loads_(workspace.take<float>(num_threads * number_)) {}

  float run(int64_t sequence, int rank) const {
    float* loads = loads_ + rank * number_;
    fill_loads(sequence, loads);
    float share = 0.0f, squares = 0.0f;
    for (int64_t t = sequence * length_; t < (sequence + 1) * length_; ++t) {
      share += spread(t, loads);
      squares += limit(t);
    }
    return share * sequence_scale() + squares * z_scale();
  }

 private:
  // Both losses are means over rows.
  float sequence_scale() const {
    return rows_.sequence_weight * static_cast<float>(number_) / static_cast<float>(rows_.num_rows);
  }
  float z_scale() const { return rows_.z_weight / static_cast<float>(rows_.num_rows); }

  // Each expert's share of the sequence's visits.
  void fill_loads(int64_t sequence, float* loads) const {
    const int64_t slots = length_ * rows_.num_slots, first = sequence * slots;
    std::fill_n(loads, number_, 0.0f);
    float total = 0.0f;
    for (int64_t i = first; i < first + slots; ++i) {
      if (!rows_.is_used[i]) continue;
      loads[rows_.experts[i]] += 1.0f;
      total += 1.0f;
    }
    for (int64_t e = 0; e < number_; ++e) loads[e] /= total;
  }

  // Returns the row's loads, weighed by its scores over their sum.
  float spread(int64_t t, const float* loads) const {
    const float* scores = rows_.scores + t * number_;
    float total = 0.0f, weighed = 0.0f;
    for (int64_t e = 0; e < number_; ++e) {
      total += scores[e];
      weighed += scores[e] * loads[e];
    }
    const float mean = weighed / total, scale = sequence_scale() / total;
    for (int64_t e = 0; e < number_; ++e) {
      rows_.dscores[t * number_ + e] = scale * (loads[e] - mean);
    }
    return mean;
  }

  // Returns the square of log(sum(exp(logits))).
  float limit(int64_t t) const {
    const float* logits = rows_.logits + t * number_;
    float* changes = rows_.dlogits + t * number_;
    float most = logits[0], total = 0.0f;
    for (int64_t e = 1; e < number_; ++e) most = logits[e] > most ? logits[e] : most;
    by_lanes<Isa>(logits, number_, 0.0f, [&](typename Isa::Lanes a, int64_t start, int64_t count) {
      store_some<Isa>(exponential<Isa>(Isa::add(a, Isa::fill(-most))), changes + start, count);
    });
    for (int64_t e = 0; e < number_; ++e) total += changes[e];
    const float size = most + std::log(total), scale = 2.0f * z_scale() * size / total;
    for (int64_t e = 0; e < number_; ++e) changes[e] *= scale;
    return size * size;
  }

  const BalanceRows& rows_;
  const int64_t number_, length_;
  float* const loads_;
};

// Returns both losses' sum and fills the gradients.
template <class Isa>
float differentiate_balance(const BalanceRows& rows, Workspace& workspace, int num_threads) {
  check_visits({rows.experts, nullptr, rows.is_used, rows.num_rows, rows.num_slots},
               rows.num_experts);
  workspace.reset();
  const SequenceBalance<Isa> work(rows, workspace, num_threads);
  float* losses = workspace.take<float>(rows.num_sequences);
  run_team(num_threads, [&](Team& team) {
    team.each(rows.num_sequences, [&](int64_t s) { losses[s] = work.run(s, team.rank()); });
    team.barrier();
  });
  float total = 0.0f;
  for (int64_t s = 0; s < rows.num_sequences; ++s) total += losses[s];
  return total;
}

}  // namespace moestro::MOESTRO_ISA
