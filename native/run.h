// READ FIRST of the kernels: one step through the layers, phase by phase, all threads together.
//
// Phases end with a barrier. What a phase computes for one row depends on that row (and on its
// sequence's cached latents), never on its neighbours. Next: layer_attention.h,
// layer_feed_forward.h.

#pragma once

#include "layer_attention.h"
#include "layer_feed_forward.h"
#include "memory.h"
#include "step_rows.h"

namespace moestro::MOESTRO_ISA {

template <class Isa>
class Run {
 public:
  Run(const Stack& stack, const Step& step, Workspace& workspace, int num_threads)
      : shape_(stack.shape),
        layers_(stack.layers),
        step_(step),
        rows_(step.num_rows),
        plan_(workspace, step, stack.shape, num_threads),
        memory_(workspace, stack, step, plan_, num_threads),
        attention_(shape_, step, rows_, plan_, memory_, workspace, num_threads),
        feed_forward_(shape_, step, rows_, memory_) {}

  // What each of a team's threads does.
  void run(Team& team) {
    attention_.fill_angles(team);
    int64_t num_sparse = 0;
    for (int64_t i = step_.first_layer; i < step_.last_layer; ++i) {
      const Layer& layer = layers_[i];
      if (layer.mtp.eh_proj.data != nullptr) join(team, layer.mtp);
      attention_.run(team, layer, cached(i));
      feed_forward_.run(team, layer, num_sparse);
      num_sparse += layer.routed.down.data != nullptr;
    }
    const Norm& norm = final_norm();
    if (norm.weight != nullptr) {
      team.each(step_.num_rows,
                [&](int64_t t) { normalize_row<Isa>(norm, step_.x, shape_.hidden, t, step_.x); });
    }
    team.barrier();
  }

 private:
  // A layer's part of the pages.
  Cached cached(int64_t layer) const {
    const int64_t width = shape_.cache_width();
    const int64_t bytes = step_.layer_slots * width * bytes_per_number(step_.cache_format);
    return {step_.pages + layer * bytes, step_.cache_format, step_.block_size, width};
  }

  const Norm& final_norm() const {
    if (step_.first_layer == step_.last_layer) return step_.final_norm;
    const Norm& own = layers_[step_.last_layer - 1].mtp.norm;
    return own.weight == nullptr ? step_.final_norm : own;
  }

  // A token's embedding and the state of the token before it to an MTP module's stream.
  void join(Team& team, const Mtp& mtp) const {
    const int64_t width = shape_.hidden;
    const Inputs inputs = rows_.inputs(memory_.mtp_inputs, mtp.eh_proj);
    const Blocks& blocks = rows_.blocks(mtp.eh_proj);
    team.each(blocks.number, [&](int64_t b) {
      for (int64_t t = blocks.first(b); t < blocks.first(b) + blocks.rows(b); ++t) {
        float* row = memory_.joined + 2 * t * width;
        const Norm &first = mtp.enorm, &second = mtp.hnorm;
        normalize<Isa>(step_.x + t * width, first.weight, first.epsilon, width, row);
        normalize<Isa>(step_.hidden + t * width, second.weight, second.epsilon, width, row + width);
      }
      rows_.put_block(memory_.joined, 2 * width, mtp.eh_proj, b, inputs);
    });
    team.barrier();
    rows_.multiply_to(team, mtp.eh_proj, inputs, step_.x);
  }

  const Shape& shape_;
  const Layer* const layers_;
  const Step& step_;
  const StepRows<Isa> rows_;
  const AttentionPlan plan_;
  Memory memory_;
  const LayerAttention<Isa> attention_;
  LayerFeedForward<Isa> feed_forward_;
};

template <class Isa>
void run(const Stack& stack, const Step& step, Workspace& workspace, int num_threads) {
  if (step.num_rows == 0) return;
  workspace.reset();
  Run<Isa> work(stack, step, workspace, num_threads);
  run_with_tiles<Isa>(num_threads, [&](Team& team) { work.run(team); });
}

}  // namespace moestro::MOESTRO_ISA
