// Rows through the experts that they visit: gate and up with SiLU, then down, summed by weight.
// One phase over (expert, group of panels), then one over groups of outputs: each expert's weights
// are read once, however many rows share it. Next: gate.h.

#pragma once

#include "multiply.h"
#include "pairs.h"

namespace moestro::MOESTRO_ISA {

// Both products of experts take the same blocks.
template <class Isa>
bool takes_tiles(const Experts& experts) {
  return takes_tiles<Isa>(experts.gate_up) && takes_tiles<Isa>(experts.down);
}

// Some experts, who visits them, and room for what they take and pass on.
struct ExpertWork {
  ExpertWork(const Experts& given, const Pairs& visits, const InputMemory& taken,
             const InputMemory& passed_on, bool are_tiled)
      : experts(given),
        pairs(visits),
        inputs(taken, given.gate_up, are_tiled),
        hidden(passed_on, given.down, are_tiled) {}

  int64_t groups() const { return divide_up(experts.gate_up.num_panels, TASK_PANELS); }
  int64_t num_tasks() const { return pairs.num_visited * groups(); }

  const Experts& experts;
  const Pairs& pairs;
  const Inputs inputs, hidden;
};

// Rounds the rows of one block of pairs as the experts' weights ask.
template <class Isa>
void put_pairs(const ExpertWork& work, int64_t b, const float* x) {
  const PairBlock& pairs = work.pairs.blocks[b];
  const Matrices& weights = work.experts.gate_up;
  const Block block = work.inputs.block(pairs.first_pair, pairs.num_rows);
  for (int64_t r = 0; r < block.num_rows; ++r) {
    const float* row = x + work.pairs.row[pairs.first_pair + r] * weights.depth;
    put_row<Isa>(row, weights.format, weights.depth, r, block);
  }
}

// Turns a row's gate and up panels, in turn, into hidden columns from `first` on.
template <class Isa>
void activate(const float* raw, int64_t num_panels, float weight, const Matrices& down,
              int64_t first, int64_t r, const Block& hidden) {
  using Lanes = typename Isa::Lanes;
  const int64_t half = num_panels / 2;
  float active[GROUP] = {};
  for (int64_t p = 0; p < half; ++p) {
    const Lanes gate = Isa::load(raw + 2 * p * PANEL), up = Isa::load(raw + (2 * p + 1) * PANEL);
    const Lanes scaled = Isa::multiply(up, Isa::fill(weight));
    Isa::store(Isa::multiply(silu<Isa>(gate), scaled), active + p * PANEL);
  }
  if (is_quantized(down.format)) {
    return quantize_group<Isa>(active, down.format, first / GROUP, r, hidden);
  }
  for (int64_t p = 0; p < half; ++p) {
    const int64_t column = first + p * PANEL, count = smaller(PANEL, down.depth - column);
    round_lanes<Isa>(Isa::load(active + p * PANEL), down.format, column, count, r, hidden);
  }
}

// One task of the first phase: a visited expert's next four panels, for all who visit it.
template <class Isa>
void fill_hidden(const ExpertWork& work, int64_t task) {
  const Matrices& weights = work.experts.gate_up;
  const Visited& visited = work.pairs.visited[task / work.groups()];
  const int64_t panel = task % work.groups() * TASK_PANELS;
  const int64_t num_panels = smaller(TASK_PANELS, weights.num_panels - panel);
  with_format(weights.format, [&](auto format) {
    for (int64_t b = 0; b < visited.num_blocks; ++b) {
      const PairBlock& pairs = work.pairs.blocks[visited.first_block + b];
      alignas(64) float raw[TILED_ROWS][TASK_PANELS * PANEL];
      multiply_block<Isa, decltype(format)::value>(
          weights, visited.expert, panel, num_panels,
          work.inputs.block(pairs.first_pair, pairs.num_rows), [&](const Outputs& outputs) {
            for (int64_t r = 0; r < outputs.num_rows; ++r) {
              std::memcpy(raw[r] + (outputs.panel - panel) * PANEL, outputs.row(r),
                          outputs.num_panels * PANEL * sizeof(float));
            }
          });
      const Block hidden = work.hidden.block(pairs.first_pair, pairs.num_rows);
      for (int64_t r = 0; r < pairs.num_rows; ++r) {
        activate<Isa>(raw[r], num_panels, work.pairs.weight[pairs.first_pair + r],
                      work.experts.down, panel / 2 * PANEL, r, hidden);
      }
    }
  });
}

template <class Isa>
void add_outputs(const Outputs& outputs, int64_t num_outputs, int64_t r, float* y) {
  for (int64_t p = 0; p < outputs.num_panels; ++p) {
    const int64_t column = (outputs.panel + p) * PANEL;
    const float* values = outputs.row(r) + p * PANEL;
    const int64_t count = smaller(PANEL, num_outputs - column);
    if (count == PANEL) {
      Isa::store(Isa::add(Isa::load(y + column), Isa::load(values)), y + column);
    } else {
      for (int64_t c = 0; c < count; ++c) y[column + c] += values[c];
    }
  }
}

// A group of outputs from all experts. A row's experts are summed in the order of their numbers,
// whoever else visits them.
template <class Isa>
void add_down(const ExpertWork& work, int64_t panel, int64_t num_panels, float* out) {
  const Matrices& weights = work.experts.down;
  with_format(weights.format, [&](auto format) {
    for (int64_t v = 0; v < work.pairs.num_visited; ++v) {
      const Visited& visited = work.pairs.visited[v];
      for (int64_t b = 0; b < visited.num_blocks; ++b) {
        const PairBlock& pairs = work.pairs.blocks[visited.first_block + b];
        multiply_block<Isa, decltype(format)::value>(
            weights, visited.expert, panel, num_panels,
            work.hidden.block(pairs.first_pair, pairs.num_rows), [&](const Outputs& outputs) {
              for (int64_t r = 0; r < outputs.num_rows; ++r) {
                float* y = out + work.pairs.row[pairs.first_pair + r] * weights.num_outputs;
                add_outputs<Isa>(outputs, weights.num_outputs, r, y);
              }
            });
      }
    }
  });
}

template <class Isa>
void apply_experts(const ExpertProduct& product, Workspace& workspace, int num_threads) {
  const Visits& visits = product.visits;
  const Matrices& down = product.experts.down;
  check_visits(visits, down.num_matrices);
  workspace.reset();
  const Matrices& gate_up = product.experts.gate_up;
  const int64_t most_pairs = visits.num_rows * visits.num_slots;
  Pairs pairs(workspace, most_pairs, down.num_matrices);
  const bool are_tiled = takes_tiles<Isa>(product.experts);
  pairs.sort(visits, block_rows(are_tiled));
  const InputMemory inputs(workspace, gate_up.depth, most_pairs, gate_up.format);
  const InputMemory hidden(workspace, down.depth, most_pairs, down.format);
  const ExpertWork work(product.experts, pairs, inputs, hidden, are_tiled);
  const PanelGroups groups(down.num_panels, visits.num_rows, num_threads);
  // No rows may come without an address.
  if (visits.num_rows == 0) return;
  std::memset(product.out, 0, sizeof(float) * visits.num_rows * down.num_outputs);
  run_with_tiles<Isa>(num_threads, [&](Team& team) {
    team.each(work.pairs.num_blocks, [&](int64_t b) { put_pairs<Isa>(work, b, product.x); });
    team.barrier();
    team.each(work.num_tasks(), [&](int64_t task) { fill_hidden<Isa>(work, task); });
    team.barrier();
    team.each(groups.number, [&](int64_t g) {
      add_down<Isa>(work, groups.first(g), groups.count(g), product.out);
    });
    team.barrier();
  });
}

}  // namespace moestro::MOESTRO_ISA
