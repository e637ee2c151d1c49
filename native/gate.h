// The gate: which experts a row visits, how many, and with what weights (eq. 12-16).
// Functions of one row alone. Next: attention.h.

#pragma once

#include <cstring>
#include <limits>

#include "choice.h"
#include "numbers.h"

namespace moestro::MOESTRO_ISA {

// What a further expert's score less the last certain one's must pass: linear between grid points.
inline float find_threshold(const ChoiceRule& rule, const float* thresholds, float fraction) {
  if (fraction <= 0.0f) return INFINITY;
  if (thresholds == nullptr || fraction >= 1.0f) return -INFINITY;
  int64_t above = 1;
  while (above < rule.num_fractions - 1 && rule.fractions[above] < fraction) ++above;
  const float low = rule.fractions[above - 1], high = rule.fractions[above];
  const float share = (fraction - low) / (high - low);
  return thresholds[above - 1] + share * (thresholds[above] - thresholds[above - 1]);
}

// Leaves out the experts of all but a row's best groups, the lower number first among equals.
// `scores` has room for one number for each group.
inline void limit_groups(const ChoiceRule& rule, int64_t num_experts, float* selection,
                         float* scores) {
  const int64_t number = rule.num_expert_groups, size = num_experts / number;
  if (number == 1 || rule.topk_group == number) return;
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
    scores[g] = rule.best_of_group == 2 ? best + second : best;
  }
  for (int64_t g = 0; g < number; ++g) {
    int64_t num_better = 0;
    for (int64_t i = 0; i < number; ++i) {
      num_better += scores[i] > scores[g] || (scores[i] == scores[g] && i < g);
    }
    const bool is_kept = num_better < rule.topk_group;
    for (int64_t i = 0; i < size && !is_kept; ++i) selection[g * size + i] = -INFINITY;
  }
}

// Turns logits into affinities, in place.
template <class Isa>
void fill_scores(const ChoiceRule& rule, int64_t number, float* scores) {
  if (rule.is_sigmoid) return fill_sigmoids<Isa>(scores, number, scores);
  fill_exponentials<Isa>(scores, number, scores);
  float sum = 0.0f;
  for (int64_t e = 0; e < number; ++e) sum += scores[e];
  for (int64_t e = 0; e < number; ++e) scores[e] /= sum;
}

// What experts are chosen by: their scores and biases,
// which may be null. `room` has a number for each group.
inline void fill_selection(const ChoiceRule& rule, const float* bias, int64_t number,
                           const float* scores, float* selection, float* room) {
  for (int64_t e = 0; e < number; ++e) {
    const float score = scores[e] + (bias == nullptr ? 0.0f : bias[e]);
    // A NaN is the worst there is.
    selection[e] = std::isnan(score) ? std::numeric_limits<float>::lowest() : score;
  }
  limit_groups(rule, number, selection, room);
}

// Numbers of experts count down from here in the lower half of a key, whose upper half is a score.
constexpr int64_t LAST_EXPERT = 0x7fffffff;

// Orders experts as integers: the better score, then the lower number, is the larger key.
inline int64_t choice_key(float score, int64_t expert) {
  // Zero has two signs and one rank.
  score += 0.0f;
  int32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  // Negative floats order backwards as integers: all bits but the sign are turned.
  const int64_t rank = bits ^ ((bits >> 31) & 0x7fffffff);
  return rank * (int64_t{1} << 32) + (LAST_EXPERT - expert);
}

inline int64_t expert_of(int64_t key) { return LAST_EXPERT - (key & 0xffffffff); }

// Keeps the largest keys, in order. Each in its turn goes down the best ones so far, and the lesser
// of two goes on: no branch that a processor could guess wrongly.
[[gnu::always_inline]] inline void keep_best(int64_t num_slots, int64_t number,
                                             const float* selection, int64_t* keys) {
  std::fill_n(keys, num_slots, std::numeric_limits<int64_t>::min());
  for (int64_t e = 0; e < number; ++e) {
    int64_t key = choice_key(selection[e], e);
    for (int64_t k = 0; k < num_slots; ++k) {
      const int64_t kept = keys[k];
      keys[k] = larger(kept, key);
      key = smaller(kept, key);
    }
  }
}

// The same for a number of slots that is known, which keeps the best ones in registers.
template <int SLOTS>
void keep_best(int64_t number, const float* selection, int64_t* keys) {
  int64_t best[SLOTS];
  keep_best(SLOTS, number, selection, best);
  std::copy_n(best, SLOTS, keys);
}

// What scores of a row's slots are multiplied by to be weights, where they have such a sum.
inline float weight_scale(const ChoiceRule& rule, float sum) {
  // Keeps scores of zero from being divided by zero, as the twin does.
  constexpr float LEAST_SUM = 1e-20f;
  return rule.routed_scaling_factor / (rule.is_normalized ? sum + LEAST_SUM : 1.0f);
}

// Fills a row's slots with the best of `selection`; further ones are in use if their score, less
// the last certain one's, passes the threshold. `keys` has room for one for each expert.
inline void take_best(const ChoiceRule& rule, float threshold, int64_t number, const float* scores,
                      const float* selection, int64_t* keys, const ChoiceSlots& slots) {
  switch (rule.num_slots) {
    case 2: keep_best<2>(number, selection, keys); break;
    case 4: keep_best<4>(number, selection, keys); break;
    case 6: keep_best<6>(number, selection, keys); break;
    case 8: keep_best<8>(number, selection, keys); break;
    default: keep_best(rule.num_slots, number, selection, keys);
  }
  float certain = 0.0f, sum = 0.0f;
  for (int64_t k = 0; k < rule.num_slots; ++k) {
    const int64_t expert = expert_of(keys[k]);
    const float score = selection[expert];
    if (k == rule.fewest - 1) certain = score;
    slots.is_used[k] = k < rule.fewest || score - certain > threshold;
    slots.experts[k] = expert;
    slots.weights[k] = slots.is_used[k] ? scores[expert] : 0.0f;
    if (slots.ranked != nullptr) slots.ranked[k] = score;
    sum += slots.weights[k];
  }
  const float scale = weight_scale(rule, sum);
  for (int64_t k = 0; k < rule.num_slots; ++k) slots.weights[k] *= scale;
}

// What a thread needs for one row's choice.
struct ChoiceRoom {
  // Bytes for so many experts, in whole numbers of each kind.
  static constexpr int64_t size(int64_t experts) {
    return experts * static_cast<int64_t>(sizeof(int64_t) + 2 * sizeof(float));
  }
  ChoiceRoom(char* data, int64_t experts)
      : keys(reinterpret_cast<int64_t*>(data)),
        selection(reinterpret_cast<float*>(keys + experts)),
        groups(selection + experts) {}

  int64_t* keys;
  float *selection, *groups;
};

}  // namespace moestro::MOESTRO_ISA
