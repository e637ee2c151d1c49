// A model's layers as Python holds them, and what its calls have in common: one step for any rows, or
// several steps of answers at once. Next: stack.h.

#pragma once

#include <poll.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "picking.h"
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

// Where a step's parts lie, as Python has them. `sequences` holds first row, number of rows and where
// in `tables` its blocks begin, for each.
struct StepParts {
  Address x;
  int64_t num_rows;
  Address positions;
  Address slots;
  Address fractions;
  Address sequences;
  int64_t num_sequences;
  Address tables;
  int64_t num_table_entries;
  Address pages;
  int cache_format;
  int64_t layer_slots;
  int64_t block_size;
  bool may_expand;
  Address experts;
  Address weights;
  Address is_used;
};

// What is before the layers and behind them: tokens' embeddings, (token, hidden), in float32 or
// bfloat16, and the matrix that makes logits.
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

  void set_final_norm(const Norm& norm) { final_norm_ = norm; }

  void set_ends(const Ends& ends) { ends_ = ends; }

  // Gives a layer what expands its latents.
  void set_expansion(int64_t layer, const Matrices& keys, const Matrices& values) {
    layers_.at(layer).expanded_keys = keys;
    layers_.at(layer).expanded_values = values;
  }

  void run(int64_t first_layer, int64_t last_layer, const StepParts& parts, Address hidden,
           bool has_final_norm, int num_threads) const {
    std::vector<Sequence> sequences;
    Step step = describe(parts, 1, sequences);
    step.first_layer = first_layer;
    step.last_layer = last_layer;
    step.hidden = at<const float>(hidden);
    if (has_final_norm) step.final_norm = final_norm_;
    kernels_.run(stack_, step, workspace(), num_threads);
  }

  // Lets answers go on for up to `num_steps` tokens each: what a row picks is its next step's token.
  // Positions and slots go along and stay where the last step left them, as do the states in x.
  // Choices are (layer, step, row, slot), picks (step, row). Ends early behind a step in which a row
  // picked a token that stops it, or none, or somebody came to wait; returns the number of steps.
  int64_t decode(int64_t num_layers, int64_t num_steps, const StepParts& parts, Answers& answers,
                 float* logits, Pick* picks, int num_threads) const {
    std::vector<Sequence> sequences;
    Step step = describe(parts, num_steps, sequences);
    const int64_t rows = step.num_rows;
    if (step.num_sequences != rows) throw std::invalid_argument("each row must be one answer");
    step.first_layer = 0;
    step.last_layer = num_layers;
    step.final_norm = final_norm_;
    const int64_t places = rows * stack_.shape.num_slots;
    auto* positions = at<int64_t>(parts.positions);
    auto* slots = at<int64_t>(parts.slots);
    for (int64_t s = 0;; ++s) {
      for (int64_t t = 0; t < rows; ++t) embed(answers.tokens[t], step.x + t * stack_.shape.hidden);
      kernels_.run(stack_, step, workspace(), num_threads);
      kernels_.multiply({step.x, rows, ends_.head, logits}, workspace(), num_threads);
      Pick* picked = picks + s * rows;
      kernels_.pick_tokens(answers.picks.data(), rows, ends_.head.num_outputs, picked, workspace(),
                           num_threads);
      if (s + 1 == num_steps || has_end(answers, picked)) return s + 1;
      for (const Sequence& sequence : sequences) {
        const int64_t t = sequence.first_row, position = ++positions[t];
        answers.tokens[t] = picked[t].token;
        ++answers.picks[t].position;
        slots[t] = sequence.table[position / step.block_size] * step.block_size +
                   position % step.block_size;
      }
      step.choices.experts += places;
      step.choices.weights += places;
      step.choices.is_used += places;
    }
  }

 private:
  Step describe(const StepParts& parts, int64_t num_steps,
                std::vector<Sequence>& sequences) const {
    Step step{};
    step.x = at<float>(parts.x);
    step.num_rows = parts.num_rows;
    step.positions = at<const int64_t>(parts.positions);
    step.slots = at<const int64_t>(parts.slots);
    step.fractions = at<const float>(parts.fractions);
    int64_t num_owned = 0;
    for (int64_t s = 0; s < parts.num_sequences; ++s) {
      const int64_t* numbers = at<const int64_t>(parts.sequences) + 3 * s;
      // A sequence without rows has nobody who attends.
      if (numbers[1] == 0) continue;
      num_owned += numbers[1];
      check_sequence(parts, numbers, num_steps);
      sequences.push_back({numbers[0], numbers[1], at<const int64_t>(parts.tables) + numbers[2]});
    }
    if (num_owned != parts.num_rows) throw std::invalid_argument("each row must be one sequence's");
    step.sequences = sequences.data();
    step.num_sequences = static_cast<int64_t>(sequences.size());
    step.pages = at<char>(parts.pages);
    step.cache_format = static_cast<Format>(parts.cache_format);
    step.layer_slots = parts.layer_slots;
    step.block_size = parts.block_size;
    step.may_expand = parts.may_expand;
    step.choices = {at<int64_t>(parts.experts), at<float>(parts.weights), at<bool>(parts.is_used),
                    num_steps * parts.num_rows};
    return step;
  }

  // What a scheduler gets wrong must not be read or written elsewhere in memory.
  static void check_sequence(const StepParts& parts, const int64_t* numbers, int64_t num_steps) {
    const int64_t first = numbers[0], end = first + numbers[1], table = numbers[2];
    if (first < 0 || numbers[1] < 0 || end > parts.num_rows) {
      throw std::invalid_argument("a sequence has rows that are not there");
    }
    const auto* positions = at<const int64_t>(parts.positions);
    const auto* slots = at<const int64_t>(parts.slots);
    int64_t last = 0;
    for (int64_t t = first; t < end; ++t) {
      if (positions[t] < 0) throw std::invalid_argument("a position is below zero");
      if (slots[t] < 0 || slots[t] >= parts.layer_slots) {
        throw std::invalid_argument("a slot is outside the pages");
      }
      last = larger(last, positions[t]);
    }
    const int64_t num_blocks = (last + num_steps - 1) / parts.block_size + 1;
    if (table < 0 || table + num_blocks > parts.num_table_entries) {
      throw std::invalid_argument("a sequence's table is too short");
    }
    const auto* blocks = at<const int64_t>(parts.tables) + table;
    const int64_t num_pages = parts.layer_slots / parts.block_size;
    for (int64_t i = 0; i < num_blocks; ++i) {
      if (blocks[i] < 0 || blocks[i] >= num_pages) {
        throw std::invalid_argument("a table names a page that is not there");
      }
    }
  }

  void embed(int64_t token, float* to) const {
    const int64_t width = stack_.shape.hidden;
    if (ends_.format == Format::float32) {
      std::memcpy(to, ends_.embeddings + token * width * 4, width * 4);
      return;
    }
    const auto* from = reinterpret_cast<const uint16_t*>(ends_.embeddings) + token * width;
    for (int64_t i = 0; i < width; ++i) {
      const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
      std::memcpy(to + i, &bits, sizeof bits);
    }
  }

  // Whether a row has picked nothing, or what stops it, or somebody waits.
  static bool has_end(const Answers& answers, const Pick* picks) {
    pollfd wake{answers.wake_file, POLLIN, 0};
    if (answers.wake_file >= 0 && poll(&wake, 1, 0) > 0) return true;
    for (size_t t = 0; t < answers.stops.size(); ++t) {
      const std::vector<int64_t>& stops = answers.stops[t];
      const int64_t token = picks[t].token;
      if (token < 0 || std::find(stops.begin(), stops.end(), token) != stops.end()) return true;
    }
    return false;
  }

  const Kernels& kernels_;
  std::vector<Layer> layers_;
  const Stack stack_;
  Norm final_norm_;
  Ends ends_{};
};

}  // namespace moestro
