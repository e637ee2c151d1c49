// The losses that teach a gate balance, and their gradients: how a sequence's tokens spread over
// experts (DeepSeek-V3's eq. 17-20), and the size of logits (ST-MoE's z-loss). Next: kernels.h.

#pragma once

#include <algorithm>
#include <cmath>

#include "numbers.h"
#include "pairs.h"
#include "team.h"
#include "training.h"
#include "workspace.h"

namespace moestro::MOESTRO_ISA {

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
    const float most = fill_exponentials<Isa>(logits, number_, changes);
    float total = 0.0f;
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
