// Scratch memory of one step through the layers. Knows sizes, not what is computed. Next: run.h.

#pragma once

#include "expanded.h"
#include "experts.h"
#include "gate.h"

namespace moestro::MOESTRO_ISA {

// Memory of one step, for the largest of its layers.
struct Memory {
  Memory(Workspace& workspace, const Stack& stack, const Step& step, const AttentionPlan& plan,
         int num_threads)
      : mixture_width(num_panels(stack.shape.latent) * PANEL) {
    const Shape& shape = stack.shape;
    const int64_t rows = step.num_rows, heads = shape.num_heads;
    int64_t rank = 0, experts = 1, width = 1, shared_width = 1, joined_width = 0;
    for (int64_t i = step.first_layer; i < step.last_layer; ++i) {
      const Layer& layer = stack.layers[i];
      rank = larger(rank, layer.query_a.num_outputs);
      if (layer.mtp.eh_proj.data != nullptr) joined_width = 2 * shape.hidden;
      experts = larger(experts, layer.routed.down.num_matrices);
      width = larger(width, layer.routed.down.depth);
      shared_width = larger(shared_width, layer.shared.down.depth);
    }
    const int64_t pairs = rows * shape.num_slots;
    angles = workspace.take<float>(rows * shape.rotary);
    normed = workspace.take<float>(rows * shape.hidden);
    joined = workspace.take<float>(rows * joined_width);
    mtp_inputs = InputMemory(workspace, joined_width, rows);
    compressed = workspace.take<float>(rows * rank);
    query = workspace.take<float>(rows * heads * shape.query_width());
    latent = workspace.take<float>(rows * shape.cache_width());
    carried = workspace.take<float>(rows * heads * shape.cache_width());
    attended = workspace.take<float>(rows * heads * shape.value);
    logits = workspace.take<float>(rows * experts);
    choice_room = workspace.take<char>(num_threads * ChoiceRoom::size(experts));
    mixed = workspace.take<float>(num_threads * shape.latent);
    parts = workspace.take<Part>(plan.num_all_parts());
    mixtures = workspace.take<float>(plan.num_all_parts() * mixture_width);
    most_experts = experts;
    inputs = InputMemory(workspace, shape.hidden, rows);
    query_inputs = InputMemory(workspace, rank, rows);
    out_inputs = InputMemory(workspace, heads * shape.value, rows);
    head_inputs = workspace.take<InputMemory>(num_threads);
    for (int i = 0; i < num_threads; ++i) {
      head_inputs[i] = InputMemory(workspace, larger(shape.nope, shape.latent), rows);
    }
    routed_pairs = Pairs(workspace, pairs, experts);
    shared_pairs = Pairs(workspace, rows, 1);
    routed_inputs = InputMemory(workspace, shape.hidden, pairs);
    routed_hidden = InputMemory(workspace, width, pairs);
    shared_inputs = InputMemory(workspace, shape.hidden, rows);
    shared_hidden = InputMemory(workspace, shared_width, rows);
  }

  const int64_t mixture_width;
  int64_t most_experts;
  float *angles, *normed, *joined, *compressed, *query, *latent, *carried, *attended, *logits;
  char* choice_room;
  float *mixed, *mixtures;
  Part* parts;
  InputMemory inputs, mtp_inputs, query_inputs, out_inputs;
  InputMemory* head_inputs;
  Pairs routed_pairs, shared_pairs;
  InputMemory routed_inputs, routed_hidden, shared_inputs, shared_hidden;
};

}  // namespace moestro::MOESTRO_ISA
