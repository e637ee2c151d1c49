#include "own_stack.h"

#include <poll.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "workspace.h"

namespace moestro {

namespace {

// What a scheduler gets wrong must not be read or written elsewhere in memory.
void check_sequence(const StepParts& parts, const int64_t* numbers, int64_t num_steps) {
  const int64_t first = numbers[0], end = first + numbers[1], table = numbers[2];
  if (first < 0 || numbers[1] < 0 || end > parts.num_rows) {
    throw std::invalid_argument("a sequence has rows that are not there");
  }
  int64_t last = 0;
  for (int64_t t = first; t < end; ++t) {
    if (parts.positions[t] < 0) throw std::invalid_argument("a position is below zero");
    if (parts.slots[t] < 0 || parts.slots[t] >= parts.layer_slots) {
      throw std::invalid_argument("a slot is outside the pages");
    }
    last = larger(last, parts.positions[t]);
  }
  const int64_t num_blocks = (last + num_steps - 1) / parts.block_size + 1;
  if (table < 0 || table + num_blocks > parts.num_table_entries) {
    throw std::invalid_argument("a sequence's table is too short");
  }
  const int64_t* blocks = parts.tables + table;
  const int64_t num_pages = parts.layer_slots / parts.block_size;
  for (int64_t i = 0; i < num_blocks; ++i) {
    if (blocks[i] < 0 || blocks[i] >= num_pages) {
      throw std::invalid_argument("a table names a page that is not there");
    }
  }
}

// Whether a row has picked nothing, or what stops it, or somebody waits.
bool has_end(const Answers& answers, const Pick* picks) {
  pollfd wake{answers.wake_file, POLLIN, 0};
  if (answers.wake_file >= 0 && poll(&wake, 1, 0) > 0) return true;
  for (size_t t = 0; t < answers.stops.size(); ++t) {
    const std::vector<int64_t>& stops = answers.stops[t];
    const int64_t token = picks[t].token;
    if (token < 0 || std::find(stops.begin(), stops.end(), token) != stops.end()) return true;
  }
  return false;
}

}  // namespace

void OwnStack::run(int64_t first_layer, int64_t last_layer, const StepParts& parts,
                   const float* hidden, bool has_final_norm, int num_threads) const {
  std::vector<Sequence> sequences;
  Step step = describe(parts, 1, sequences);
  step.first_layer = first_layer;
  step.last_layer = last_layer;
  step.hidden = hidden;
  if (has_final_norm) step.final_norm = final_norm_;
  kernels_.run(stack_, step, own_workspace(), num_threads);
}

int64_t OwnStack::decode(int64_t num_layers, int64_t num_steps, const StepParts& parts,
                         Answers& answers, float* logits, Pick* picks, int num_threads) const {
  if (num_steps < 1) throw std::invalid_argument("answers must go on by a step at least");
  std::vector<Sequence> sequences;
  Step step = describe(parts, num_steps, sequences);
  const int64_t rows = step.num_rows;
  if (step.num_sequences != rows) throw std::invalid_argument("each row must be one answer");
  step.first_layer = 0;
  step.last_layer = num_layers;
  step.final_norm = final_norm_;
  const int64_t places = rows * stack_.shape.num_slots;
  for (int64_t s = 0;; ++s) {
    embed(answers.tokens, rows, step.x);
    kernels_.run(stack_, step, own_workspace(), num_threads);
    kernels_.multiply({step.x, rows, ends_.head, logits}, own_workspace(), num_threads);
    Pick* picked = picks + s * rows;
    kernels_.pick_tokens(answers.picks.data(), rows, ends_.head.num_outputs, picked,
                         own_workspace(), num_threads);
    if (s + 1 == num_steps || has_end(answers, picked)) return s + 1;
    for (const Sequence& sequence : sequences) {
      const int64_t t = sequence.first_row, position = ++parts.positions[t];
      answers.tokens[t] = picked[t].token;
      ++answers.picks[t].position;
      parts.slots[t] = sequence.table[position / step.block_size] * step.block_size +
                       position % step.block_size;
    }
    step.choices.experts += places;
    step.choices.weights += places;
    step.choices.is_used += places;
  }
}

Step OwnStack::describe(const StepParts& parts, int64_t num_steps,
                        std::vector<Sequence>& sequences) const {
  Step step{};
  step.x = parts.x;
  step.num_rows = parts.num_rows;
  step.positions = parts.positions;
  step.slots = parts.slots;
  step.fractions = parts.fractions;
  int64_t num_owned = 0;
  for (int64_t s = 0; s < parts.num_sequences; ++s) {
    const int64_t* numbers = parts.sequences + 3 * s;
    // A sequence without rows has nobody who attends.
    if (numbers[1] == 0) continue;
    num_owned += numbers[1];
    check_sequence(parts, numbers, num_steps);
    sequences.push_back({numbers[0], numbers[1], parts.tables + numbers[2]});
  }
  if (num_owned != parts.num_rows) throw std::invalid_argument("each row must be one sequence's");
  step.sequences = sequences.data();
  step.num_sequences = static_cast<int64_t>(sequences.size());
  step.pages = parts.pages;
  step.cache_format = parts.cache_format;
  step.layer_slots = parts.layer_slots;
  step.block_size = parts.block_size;
  step.choices = parts.choices;
  step.may_expand = parts.may_expand;
  return step;
}

void OwnStack::embed(const int64_t* tokens, int64_t num_rows, float* x) const {
  const int64_t width = stack_.shape.hidden;
  for (int64_t t = 0; t < num_rows; ++t, x += width) {
    if (tokens[t] < 0 || tokens[t] >= ends_.head.num_outputs) {
      throw std::out_of_range("no such token");
    }
    if (ends_.format == Format::float32) {
      std::memcpy(x, ends_.embeddings + tokens[t] * width * 4, width * 4);
      continue;
    }
    const auto* from = reinterpret_cast<const uint16_t*>(ends_.embeddings) + tokens[t] * width;
    for (int64_t i = 0; i < width; ++i) {
      const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
      std::memcpy(x + i, &bits, sizeof bits);
    }
  }
}

}  // namespace moestro
