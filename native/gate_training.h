// The gate in training: logits of bfloat16 rows in float32, scores, the choice, and all gradients.
// Sums over rows go through sums of a fixed number of pieces, in order. Next: balance_training.h.

#pragma once

#include <algorithm>
#include <cmath>

#include "gate.h"
#include "rows_training.h"
#include "training.h"
#include "workspace.h"

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
        turned_[c * columns_ + e] =
            e < number_ ? given.gate.weight[e * given.gate.width + c] : 0.0f;
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
    const float scale = weight_scale(rule, sum);
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

}  // namespace moestro::MOESTRO_ISA
