// A model's layers as Python holds them, and what its calls have in common. Next: stack.h.

#pragma once

#include <stdexcept>
#include <vector>

#include "stack.h"
#include "workspace.h"

namespace moestro {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// One for each thread that calls: two engines of one process do not share scratch memory.
inline Workspace& workspace() {
  thread_local Workspace own;
  return own;
}

// A model's layers. Where the latents lie is a run's matter: engines share a model, not pages.
class OwnStack {
 public:
  OwnStack(const Kernels& kernels, const Shape& shape, const std::vector<Layer>& layers)
      : kernels_(kernels), layers_(layers), stack_{shape, layers_.data()} {}

  void set_final_norm(const Norm& norm) { final_norm_ = norm; }

  // `sequences` holds first row, number of rows and where in `tables` its blocks begin, for each.
  void run(int64_t first_layer, int64_t last_layer, Address x, int64_t num_rows, Address positions,
           Address slots, Address fractions, Address sequences, int64_t num_sequences,
           Address hidden, Address tables, Address pages, int cache_format, int64_t layer_slots,
           int64_t block_size, Address experts, Address weights, Address is_used,
           bool has_final_norm, int num_threads) const {
    Step step{};
    step.first_layer = first_layer;
    step.last_layer = last_layer;
    step.x = at<float>(x);
    step.hidden = at<const float>(hidden);
    step.num_rows = num_rows;
    step.positions = at<const int64_t>(positions);
    step.slots = at<const int64_t>(slots);
    step.fractions = at<const float>(fractions);
    std::vector<Sequence> own_sequences;
    int64_t num_owned = 0;
    for (int64_t s = 0; s < num_sequences; ++s) {
      const int64_t* numbers = at<const int64_t>(sequences) + 3 * s;
      // A sequence without rows has nobody who attends.
      if (numbers[1] == 0) continue;
      num_owned += numbers[1];
      own_sequences.push_back({numbers[0], numbers[1], at<const int64_t>(tables) + numbers[2]});
    }
    if (num_owned != num_rows) throw std::invalid_argument("each row must be one sequence's");
    step.sequences = own_sequences.data();
    step.num_sequences = static_cast<int64_t>(own_sequences.size());
    step.pages = at<char>(pages);
    step.cache_format = static_cast<Format>(cache_format);
    step.layer_slots = layer_slots;
    step.block_size = block_size;
    step.choices = {at<int64_t>(experts), at<float>(weights), at<bool>(is_used)};
    if (has_final_norm) step.final_norm = final_norm_;
    kernels_.run(stack_, step, workspace(), num_threads);
  }

 private:
  const Kernels& kernels_;
  const std::vector<Layer> layers_;
  const Stack stack_;
  Norm final_norm_;
};

}  // namespace moestro
