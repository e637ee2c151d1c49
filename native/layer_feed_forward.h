// The feed-forward of a layer, phase by phase: the gate's choice, then experts, routed and shared,
// onto the stream. Next: experts.h, gate.h.

#pragma once

#include "memory.h"
#include "step_rows.h"

namespace moestro::MOESTRO_ISA {

template <class Isa>
class LayerFeedForward {
 public:
  LayerFeedForward(const Shape& shape, const Step& step, const StepRows<Isa>& rows, Memory& memory)
      : shape_(shape), step_(step), rows_(rows), memory_(memory) {}

  // Adds a layer's experts' outputs to the stream. Before
  // it are `sparse` sparse layers of the step.
  void run(Team& team, const Layer& layer, int64_t sparse) {
    const bool is_sparse = layer.routed.down.data != nullptr;
    if (team.rank() == 0) {
      memory_.shared_pairs.visit_one(step_.num_rows, block_rows(takes_tiles<Isa>(layer.shared)));
    }
    if (is_sparse) {
      const Matrices& gate = layer.gate.weight;
      const Inputs inputs = rows_.inputs(memory_.inputs, gate);
      team.each(rows_.blocks(gate).number, [&](int64_t b) {
        rows_.put_normed(layer.post_norm, step_.x, gate, b, inputs, memory_.normed);
      });
      team.barrier();
      rows_.multiply_to(team, gate, inputs, memory_.logits);
      choose_experts(team, layer, sparse);
    } else {
      team.each(step_.num_rows, [&](int64_t t) {
        normalize_row<Isa>(layer.post_norm, step_.x, shape_.hidden, t, memory_.normed);
      });
      team.barrier();
    }
    visit(team, layer);
  }

 private:
  void choose_experts(Team& team, const Layer& layer, int64_t sparse) {
    const Gate& gate = layer.gate;
    const Choices& choices = step_.choices;
    const int64_t first = sparse * choices.layer_rows * shape_.num_slots;
    const int64_t number = gate.weight.num_outputs;
    const int64_t most = memory_.most_experts;
    const ChoiceRoom room(memory_.choice_room + team.rank() * ChoiceRoom::size(most), most);
    team.each(step_.num_rows, [&](int64_t t) {
      const int64_t place = first + t * shape_.num_slots;
      const float fraction = step_.fractions == nullptr ? 1.0f : step_.fractions[t];
      float* scores = memory_.logits + t * number;
      fill_scores<Isa>(shape_, number, scores);
      fill_selection(shape_, gate.selection_bias, number, scores, room.selection, room.groups);
      take_best(shape_, find_threshold(shape_, gate.thresholds, fraction), number, scores,
                room.selection, room.keys,
                {choices.experts + place, choices.weights + place, choices.is_used + place,
                 nullptr});
    });
    team.barrier();
    if (team.rank() == 0) {
      memory_.routed_pairs.sort({choices.experts + first, choices.weights + first,
                                 choices.is_used + first, step_.num_rows, shape_.num_slots},
                                block_rows(takes_tiles<Isa>(layer.routed)));
    }
    team.barrier();
  }

  void visit(Team& team, const Layer& layer) {
    const ExpertWork routed(layer.routed, memory_.routed_pairs, memory_.routed_inputs,
                            memory_.routed_hidden, takes_tiles<Isa>(layer.routed));
    const ExpertWork shared(layer.shared, memory_.shared_pairs, memory_.shared_inputs,
                            memory_.shared_hidden, takes_tiles<Isa>(layer.shared));
    const bool has_routed = layer.routed.down.data != nullptr;
    const bool has_shared = layer.shared.down.data != nullptr;
    const int64_t routed_blocks = has_routed ? routed.pairs.num_blocks : 0;
    const int64_t shared_blocks = has_shared ? shared.pairs.num_blocks : 0;
    team.each(routed_blocks + shared_blocks, [&](int64_t b) {
      put_pairs<Isa>(b < routed_blocks ? routed : shared, b < routed_blocks ? b : b - routed_blocks,
                     memory_.normed);
    });
    team.barrier();
    const int64_t routed_tasks = has_routed ? routed.num_tasks() : 0;
    const int64_t shared_tasks = has_shared ? shared.num_tasks() : 0;
    team.each(routed_tasks + shared_tasks, [&](int64_t i) {
      fill_hidden<Isa>(i < routed_tasks ? routed : shared, i < routed_tasks ? i : i - routed_tasks);
    });
    team.barrier();
    const PanelGroups groups(num_panels(shape_.hidden), step_.num_rows, team.size(),
                             step_.num_rows <= FEW_ROWS ? LONG_PANELS : TASK_PANELS);
    team.each(groups.number, [&](int64_t g) {
      if (has_routed) add_down<Isa>(routed, groups.first(g), groups.count(g), step_.x);
      if (has_shared) add_down<Isa>(shared, groups.first(g), groups.count(g), step_.x);
    });
    team.barrier();
  }

  const Shape& shape_;
  const Step& step_;
  const StepRows<Isa>& rows_;
  Memory& memory_;
};

}  // namespace moestro::MOESTRO_ISA
