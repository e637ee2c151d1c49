// Scratch memory of one step through the layers. Knows sizes, not what is computed. Next: run.h.

#pragma once

#include "expanded.h"
#include "experts.h"
#include "gate.h"

namespace moestro::MOESTRO_ISA {

// The largest of what layers have of each size.
struct LayerSizes {
  LayerSizes(const Stack& stack, const Step& step) {
    for (int64_t i = step.first_layer; i < step.last_layer; ++i) {
      const Layer& layer = stack.layers[i];
      rank = larger(rank, layer.query_a.num_outputs);
      if (layer.mtp.eh_proj.data != nullptr) joined = 2 * stack.shape.hidden;
      experts = larger(experts, layer.routed.down.num_matrices);
      routed = larger(routed, layer.routed.down.depth);
      shared = larger(shared, layer.shared.down.depth);
    }
  }

  // Widths of the query's compression, of what an MTP module joins, and of experts.
  int64_t rank = 0, joined = 0, routed = 1, shared = 1;
  int64_t experts = 1;
};

// Memory of one step, for the largest of its layers.
struct Memory {
  Memory(Workspace& workspace, const Stack& stack, const Step& step, const AttentionPlan& plan,
         int num_threads)
      : mixture_width(num_panels(stack.shape.latent) * PANEL) {
    const Shape& shape = stack.shape;
    const int64_t rows = step.num_rows, heads = shape.num_heads;
    const LayerSizes sizes(stack, step);
    const int64_t pairs = rows * shape.num_slots;
    angles = workspace.take<float>(rows * shape.rotary);
    normed = workspace.take<float>(rows * shape.hidden);
    joined = workspace.take<float>(rows * sizes.joined);
    mtp_inputs = InputMemory(workspace, sizes.joined, rows);
    compressed = workspace.take<float>(rows * sizes.rank);
    query = workspace.take<float>(rows * heads * shape.query_width());
    latent = workspace.take<float>(rows * shape.cache_width());
    carried = workspace.take<float>(rows * heads * shape.cache_width());
    attended = workspace.take<float>(rows * heads * shape.value);
    logits = workspace.take<float>(rows * sizes.experts);
    choice_room = workspace.take<char>(num_threads * ChoiceRoom::size(sizes.experts));
    mixed = workspace.take<float>(num_threads * shape.latent);
    parts = workspace.take<Part>(plan.num_all_parts());
    mixtures = workspace.take<float>(plan.num_all_parts() * mixture_width);
    most_experts = sizes.experts;
    inputs = InputMemory(workspace, shape.hidden, rows);
    query_inputs = InputMemory(workspace, sizes.rank, rows);
    out_inputs = InputMemory(workspace, heads * shape.value, rows);
    head_inputs = workspace.take<InputMemory>(num_threads);
    for (int i = 0; i < num_threads; ++i) {
      head_inputs[i] = InputMemory(workspace, larger(shape.nope, shape.latent), rows);
    }
    routed_pairs = Pairs(workspace, pairs, sizes.experts);
    shared_pairs = Pairs(workspace, rows, 1);
    routed_inputs = InputMemory(workspace, shape.hidden, pairs);
    routed_hidden = InputMemory(workspace, sizes.routed, pairs);
    shared_inputs = InputMemory(workspace, shape.hidden, rows);
    shared_hidden = InputMemory(workspace, sizes.shared, rows);
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
