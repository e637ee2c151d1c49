// What comes of rows of logits, from C++ to Python. Next: picking.cpp.

#pragma once

#include <vector>

#include "../picking.h"
#include "bindings.h"

namespace moestro {

// Room for what comes of rows, which take turns: (step, row).
class Picks {
 public:
  // For `num_steps` steps of rows of `size` logits each.
  Picks(const std::vector<PickRow>& rows, int64_t num_steps, int64_t size);

  Pick* data() { return picks_.data(); }

  // For each of the first steps, for each row: token, log-probability, alternatives.
  nb::list told(const std::vector<PickRow>& rows, int64_t num_steps) const;

 private:
  std::vector<Pick> picks_;
  std::vector<int64_t> alternatives_;
  std::vector<double> logprobs_;
};

}  // namespace moestro
