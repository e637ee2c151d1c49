// How a gate's scores become a choice of experts (eq. 12-16 of arXiv 2412.19437), and how a budget
// limits it. Knows one row. Next: gate.h.

#pragma once

#include "kernels.h"

namespace moestro {

struct ChoiceRule {
  int64_t num_slots;
  // Slots that are in use whatever the budget.
  int64_t fewest;
  int64_t num_expert_groups;
  int64_t topk_group;
  // How many of its best experts score a group.
  int64_t best_of_group;
  bool is_sigmoid;
  bool is_normalized;
  float routed_scaling_factor;
  // The grid of thresholds: shares of the way from the fewest experts to the most.
  int64_t num_fractions;
  const float* fractions;
};

// One row's slots, best first. `ranked` has the scores that they were chosen by, unless it is null.
struct ChoiceSlots {
  int64_t* experts;
  float* weights;
  bool* is_used;
  float* ranked;
};

}  // namespace moestro
