// A model's layers as Python holds them, and what its calls have in common: one step for any rows,
// or several steps of answers at once. Next: stack.h.

#pragma once

#include <vector>

#include "picking.h"
#include "stack.h"

namespace moestro {

// A step as Python has it. `sequences` holds first row, number of rows and where in `tables` its
// blocks begin, for each; all else is as in Step.
struct StepParts {
  float* x;
  int64_t num_rows;
  int64_t* positions;
  int64_t* slots;
  const float* fractions;
  const int64_t* sequences;
  int64_t num_sequences;
  const int64_t* tables;
  int64_t num_table_entries;
  char* pages;
  Format cache_format;
  int64_t layer_slots;
  int64_t block_size;
  bool may_expand;
  // Those of all steps of a call, one step's rows behind the other's.
  Choices choices;
};

// What is before the layers and behind them: tokens' embeddings, (token, hidden), in float32 or
// bfloat16, and the matrix that makes logits, one for each of these tokens.
struct Ends {
  const char* embeddings;
  Format format;
  Matrices head;
};

// Answers that go on, a row each, as many steps as they may; see OwnStack::decode.
struct Answers {
  // Each row's newest token, in and out.
  int64_t* tokens;
  // How each row picks; positions go along with the steps.
  std::vector<PickRow> picks;
  // A row that picks one of these ends all rows' steps.
  std::vector<std::vector<int64_t>> stops;
  // A file that ends them when it can be read, since somebody waits; -1 for none.
  int wake_file;
};

// A model's layers. Where the latents lie is a run's matter: engines share a model, not pages.
class OwnStack {
 public:
  OwnStack(const Kernels& kernels, const Shape& shape, const std::vector<Layer>& layers)
      : kernels_(kernels), layers_(layers), stack_{shape, layers_.data()} {}
  // A copy's layers would be the original's; moved ones stay where they are.
  OwnStack(const OwnStack&) = delete;
  OwnStack(OwnStack&&) = default;

  void set_final_norm(const Norm& norm) { final_norm_ = norm; }

  void set_ends(const Ends& ends) { ends_ = ends; }

  // Gives a layer what expands its latents.
  void set_expansion(int64_t layer, const Matrices& keys, const Matrices& values) {
    layers_.at(layer).expanded_keys = keys;
    layers_.at(layer).expanded_values = values;
  }

  // Sends rows through the layers from `first_layer` to before `last_layer`, in place. `hidden` are
  // the states that an MTP module joins with them, else null.
  void run(int64_t first_layer, int64_t last_layer, const StepParts& parts, const float* hidden,
           bool has_final_norm, int num_threads) const;

  // Lets answers go on for up to `num_steps` tokens each: what a row picks is its
  // next step's token. Positions and slots go along and stay where the last step
  // left them, as do the states in x. Choices are (layer, step, row, slot), picks
  // (step, row). Ends early behind a step in which a row picked a token that
  // stops it, or none, or somebody came to wait; returns the number of steps.
  int64_t decode(int64_t num_layers, int64_t num_steps, const StepParts& parts, Answers& answers,
                 float* logits, Pick* picks, int num_threads) const;

 private:
  Step describe(const StepParts& parts, int64_t num_steps, std::vector<Sequence>& sequences) const;
  void embed(const int64_t* tokens, int64_t num_rows, float* x) const;

  const Kernels& kernels_;
  std::vector<Layer> layers_;
  const Stack stack_;
  Norm final_norm_;
  Ends ends_{};
};

}  // namespace moestro
