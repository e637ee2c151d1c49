// The gate: which experts a row visits, how many, and with what weights (eq. 12-16).
// Functions of one row alone. Next: attention.h.

#pragma once

#include <limits>

#include "numbers.h"
#include "stack.h"

namespace moestro::MOESTRO_ISA {

// What a further expert's score less the last certain one's must pass: linear between grid points.
inline float find_threshold(const Shape& shape, const float* thresholds, float fraction) {
  if (fraction <= 0.0f) return INFINITY;
  if (thresholds == nullptr || fraction >= 1.0f) return -INFINITY;
  int64_t above = 1;
  while (above < shape.num_fractions - 1 && shape.fractions[above] < fraction) ++above;
  const float low = shape.fractions[above - 1], high = shape.fractions[above];
  const float share = (fraction - low) / (high - low);
  return thresholds[above - 1] + share * (thresholds[above] - thresholds[above - 1]);
}

// Leaves out the experts of all but a row's best groups, the lower number first among equals.
// `scores` has room for one number for each group.
inline void limit_groups(const Shape& shape, int64_t num_experts, float* selection, float* scores) {
  const int64_t number = shape.num_expert_groups, size = num_experts / number;
  if (number == 1 || shape.kept_groups == number) return;
  for (int64_t g = 0; g < number; ++g) {
    float best = -INFINITY, second = -INFINITY;
    for (int64_t i = 0; i < size; ++i) {
      const float score = selection[g * size + i];
      if (score > best) {
        second = best;
        best = score;
      } else if (score > second) {
        second = score;
      }
    }
    scores[g] = shape.best_of_group == 2 ? best + second : best;
  }
  for (int64_t g = 0; g < number; ++g) {
    int64_t num_better = 0;
    for (int64_t i = 0; i < number; ++i) {
      num_better += scores[i] > scores[g] || (scores[i] == scores[g] && i < g);
    }
    const bool is_kept = num_better < shape.kept_groups;
    for (int64_t i = 0; i < size && !is_kept; ++i) selection[g * size + i] = -INFINITY;
  }
}

// Turns logits into affinities, in place.
template <class Isa>
void fill_scores(const Shape& shape, int64_t number, float* scores) {
  if (shape.is_sigmoid) return fill_sigmoids<Isa>(scores, number, scores);
  float most = scores[0], sum = 0.0f;
  for (int64_t e = 1; e < number; ++e) most = scores[e] > most ? scores[e] : most;
  by_lanes<Isa>(scores, number, 0.0f, [&](typename Isa::Lanes a, int64_t start, int64_t count) {
    const auto below = Isa::add(a, Isa::fill(-most));
    store_some<Isa>(exponential<Isa>(below), scores + start, count);
  });
  for (int64_t e = 0; e < number; ++e) sum += scores[e];
  for (int64_t e = 0; e < number; ++e) scores[e] /= sum;
}

// Takes the best experts by selection score, the lower number first among equals. Overwrites
// `logits` and `selection`, which have room for one and for two numbers for each expert.
template <class Isa>
void choose(const Shape& shape, const Gate& gate, float fraction, float* logits, float* selection,
            int64_t* experts, float* weights, bool* is_used) {
  const int64_t number = gate.weight.num_outputs;
  fill_scores<Isa>(shape, number, logits);
  for (int64_t e = 0; e < number; ++e) {
    const float score =
        logits[e] + (gate.selection_bias == nullptr ? 0.0f : gate.selection_bias[e]);
    // A NaN is the worst there is, and still better than what was taken before: no expert twice.
    selection[e] = std::isnan(score) ? std::numeric_limits<float>::lowest() : score;
  }
  limit_groups(shape, number, selection, selection + number);
  const float threshold = find_threshold(shape, gate.thresholds, fraction);
  float certain = 0.0f, sum = 0.0f;
  for (int64_t k = 0; k < shape.num_slots; ++k) {
    int64_t best = 0;
    for (int64_t e = 1; e < number; ++e) best = selection[e] > selection[best] ? e : best;
    const float score = selection[best];
    selection[best] = -INFINITY;
    if (k == shape.fewest - 1) certain = score;
    is_used[k] = k < shape.fewest || score - certain > threshold;
    experts[k] = best;
    weights[k] = is_used[k] ? logits[best] : 0.0f;
    sum += weights[k];
  }
  const float scale = shape.routed_scale / (shape.is_normalized ? sum + 1e-20f : 1.0f);
  for (int64_t k = 0; k < shape.num_slots; ++k) weights[k] *= scale;
}

}  // namespace moestro::MOESTRO_ISA
