// READ FIRST of the kernels: one step through the layers, phase by phase, all threads together.
//
// Phases end with a barrier. What a phase computes for one row depends on that row (and on its
// sequence's cached latents), never on its neighbours. Next: attention.h, expanded.h,
// experts.h, gate.h.

#pragma once

#include <new>

#include "gate.h"
#include "memory.h"

namespace moestro::MOESTRO_ISA {

template <class Isa>
class Run {
 public:
  Run(const Stack& stack, const Step& step, Workspace& workspace, int num_threads)
      : shape_(stack.shape),
        layers_(stack.layers),
        step_(step),
        rows_(step.num_rows),
        blocks_(step.num_rows, block_rows(false)),
        tiled_blocks_(step.num_rows, block_rows(true)),
        num_threads_(num_threads),
        plan_(workspace, step, stack.shape, num_threads),
        memory_(workspace, stack, step, plan_, num_threads),
        spans_(workspace.take<Span>(num_threads)),
        head_rooms_(workspace.take<HeadRoom>(num_threads)) {
    for (int i = 0; i < num_threads; ++i) {
      new (spans_ + i)
          Span(workspace, step.cache_format, shape_.cache_width(), memory_.mixture_width,
               Isa::HAS_TILES);
      if (plan_.most_expanded() == 0) continue;
      new (head_rooms_ + i) HeadRoom(workspace, shape_, step.cache_format, plan_.most_expanded(),
                                     Isa::HAS_TILES);
    }
  }

  void run() {
    run_with_tiles<Isa>(num_threads_, [&](Team& team) {
      team.each(rows_, [&](int64_t t) { fill_angles(t); });
      team.barrier();
      int64_t num_sparse = 0;
      for (int64_t i = step_.first_layer; i < step_.last_layer; ++i) {
        const Layer& layer = layers_[i];
        const int64_t bytes = step_.cache_format == Format::float32 ? 4 : 2;
        const Cached cached{
            step_.pages + i * step_.layer_slots * shape_.cache_width() * bytes,
            step_.cache_format, step_.block_size, shape_.cache_width()};
        if (layer.mtp.eh_proj.data != nullptr) join(team, layer.mtp);
        project(team, layer);
        cache(team, layer, cached);
        absorb(team, layer);
        mix(team, layer, cached);
        feed_forward(team, layer, num_sparse);
        num_sparse += layer.routed.down.data != nullptr;
      }
      const Norm& own = layers_[step_.last_layer - 1].mtp.norm;
      const Norm& norm = own.weight == nullptr ? step_.final_norm : own;
      if (norm.weight != nullptr) {
        team.each(rows_, [&](int64_t t) { normalize_row(norm, step_.x, shape_.hidden, t, step_.x); });
      }
      team.barrier();
    });
  }

 private:
  float* x(int64_t t) const { return step_.x + t * shape_.hidden; }

  void fill_angles(int64_t t) {
    const int64_t pairs = shape_.rotary / 2;
    for (int64_t i = 0; i < pairs; ++i) {
      // The angle is a float32, as the reference has it.
      const float angle = static_cast<float>(step_.positions[t]) * shape_.frequencies[i];
      float* row = memory_.angles + t * shape_.rotary;
      row[i] = static_cast<float>(std::cos(static_cast<double>(angle))) * shape_.rotary_factor;
      row[pairs + i] =
          static_cast<float>(std::sin(static_cast<double>(angle))) * shape_.rotary_factor;
    }
  }

  void rotate(int64_t t, const float* from, float* to) const {
    const int64_t pairs = shape_.rotary / 2;
    const float* cosines = memory_.angles + t * shape_.rotary;
    const float* sines = cosines + pairs;
    for (int64_t i = 0; i < pairs; ++i) {
      const float first = shape_.is_interleaved ? from[2 * i] : from[i];
      const float second = shape_.is_interleaved ? from[2 * i + 1] : from[pairs + i];
      to[i] = first * cosines[i] - second * sines[i];
      to[pairs + i] = second * cosines[i] + first * sines[i];
    }
  }

  const Blocks& blocks(const Matrices& weights) const {
    return takes_tiles<Isa>(weights) ? tiled_blocks_ : blocks_;
  }
  Inputs inputs(const InputMemory& memory, const Matrices& weights) const {
    return {memory, weights, takes_tiles<Isa>(weights)};
  }

  // Rounds a block's rows of `from`, which are `stride` apart.
  void put_block(const float* from, int64_t stride, const Matrices& weights, int64_t b,
                 const Inputs& inputs) const {
    const Blocks& blocks = this->blocks(weights);
    const Block block = inputs.block(blocks.first(b), blocks.rows(b));
    for (int64_t r = 0; r < block.num_rows; ++r) {
      put_row<Isa>(from + (blocks.first(b) + r) * stride, weights.format, weights.depth, r, block);
    }
  }

  void normalize_row(const Norm& norm, const float* from, int64_t number, int64_t t,
                     float* to) const {
    normalize<Isa>(from + t * number, norm.weight, norm.epsilon, number, to + t * number);
  }

  // A block's rows normed to `to`, and rounded for a matrix.
  void put_normed(const Norm& norm, const float* from, const Matrices& weights, int64_t b,
                  const Inputs& inputs, float* to) const {
    const Blocks& blocks = this->blocks(weights);
    for (int64_t t = blocks.first(b); t < blocks.first(b) + blocks.rows(b); ++t) {
      normalize_row(norm, from, weights.depth, t, to);
    }
    put_block(to, weights.depth, weights, b, inputs);
  }

  // All rows times a matrix, stored to `y`.
  void multiply_to(Team& team, const Matrices& weights, const Inputs& inputs, float* y) const {
    multiply_shared<Isa>(team, weights, blocks(weights), inputs,
                         [&](int64_t first, const Outputs& outputs) {
                           store_outputs<Isa>(outputs, weights, y + first * weights.num_outputs,
                                              weights.num_outputs);
                         });
    team.barrier();
  }

  // A token's embedding and the state of the token before it to an MTP module's stream.
  void join(Team& team, const Mtp& mtp) {
    const int64_t width = shape_.hidden;
    const Inputs inputs = this->inputs(memory_.mtp_inputs, mtp.eh_proj);
    const Blocks& blocks = this->blocks(mtp.eh_proj);
    team.each(blocks.number, [&](int64_t b) {
      for (int64_t t = blocks.first(b); t < blocks.first(b) + blocks.rows(b); ++t) {
        float* row = memory_.joined + 2 * t * width;
        const Norm &first = mtp.enorm, &second = mtp.hnorm;
        normalize<Isa>(x(t), first.weight, first.epsilon, width, row);
        normalize<Isa>(step_.hidden + t * width, second.weight, second.epsilon, width, row + width);
      }
      put_block(memory_.joined, 2 * width, mtp.eh_proj, b, inputs);
    });
    team.barrier();
    multiply_to(team, mtp.eh_proj, inputs, step_.x);
  }

  // The stream's normed rows to the query (or its compression) and to the latent.
  void project(Team& team, const Layer& layer) {
    const bool is_compressed = layer.query_a.data != nullptr;
    const Matrices& first = is_compressed ? layer.query_a : layer.query;
    const Inputs inputs = this->inputs(memory_.inputs, first);
    team.each(blocks(first).number, [&](int64_t b) {
      put_normed(layer.input_norm, step_.x, first, b, inputs, memory_.normed);
    });
    team.barrier();
    multiply_to(team, first, inputs, is_compressed ? memory_.compressed : memory_.query);
    multiply_to(team, layer.latent, inputs, memory_.latent);
  }

  // Normed latents and rotated keys to their slots; the query out of its compression.
  void cache(Team& team, const Layer& layer, const Cached& cached) {
    const bool is_compressed = layer.query_a.data != nullptr;
    const Inputs inputs = this->inputs(memory_.query_inputs, layer.query);
    const Blocks& blocks = this->blocks(layer.query);
    team.each(blocks.number, [&](int64_t b) {
      for (int64_t t = blocks.first(b); t < blocks.first(b) + blocks.rows(b); ++t) {
        cache_row(layer, cached, t);
      }
      if (is_compressed) {
        put_normed(layer.query_norm, memory_.compressed, layer.query, b, inputs, memory_.compressed);
      }
    });
    team.barrier();
    if (is_compressed) multiply_to(team, layer.query, inputs, memory_.query);
  }

  void cache_row(const Layer& layer, const Cached& cached, int64_t t) {
    float* row = memory_.latent + t * shape_.cache_width();
    normalize<Isa>(row, layer.latent_norm.weight, layer.latent_norm.epsilon, shape_.latent, row);
    float* rotary = row + shape_.latent;
    // Room that the row has no use for until its queries are carried.
    float* turned = memory_.carried + t * shape_.num_heads * shape_.cache_width();
    rotate(t, rotary, turned);
    std::memcpy(rotary, turned, sizeof(float) * shape_.rotary);
    char* slot = cached.slot(step_.slots[t]);
    if (cached.format == Format::float32) {
      std::memcpy(slot, row, cached.slot_bytes());
      return;
    }
    by_lanes<Isa>(row, cached.width, 0.0f, [&](auto a, int64_t start, int64_t count) {
      uint16_t some[PANEL];
      Isa::store_bfloat16(a, some);
      std::memcpy(slot + 2 * start, some, 2 * count);
    });
  }

  // Queries to the latent space, head by head (W^UK absorbed), with their rotated part behind.
  void absorb(Team& team, const Layer& layer) {
    const Matrices& w_uk = layer.w_uk;
    const int64_t heads = shape_.num_heads, width = shape_.cache_width();
    const Inputs inputs = this->inputs(memory_.head_inputs[team.rank()], w_uk);
    team.each(heads, [&](int64_t h) {
      const float* query = memory_.query + h * shape_.query_width();
      float* carried = memory_.carried + h * width;
      for (int64_t b = 0; b < blocks(w_uk).number; ++b) {
        if (!has_absorbed(blocks(w_uk), b)) continue;
        put_block(query, heads * shape_.query_width(), w_uk, b, inputs);
        multiply_head(w_uk, h, b, inputs, carried, heads * width);
      }
      for (int64_t t = 0; t < rows_; ++t) {
        rotate(t, query + t * heads * shape_.query_width() + shape_.nope,
               carried + t * heads * width + shape_.latent);
      }
    });
    team.barrier();
  }

  void multiply_head(const Matrices& weights, int64_t h, int64_t b, const Inputs& inputs, float* y,
                     int64_t stride) const {
    const int64_t first = blocks(weights).first(b);
    with_format(weights.format, [&](auto format) {
      multiply_block<Isa, decltype(format)::value>(
          weights, h, 0, weights.num_panels, inputs.block(first, blocks(weights).rows(b)),
          [&](const Outputs& outputs) {
            store_outputs<Isa>(outputs, weights, y + first * stride, stride);
          });
    });
  }

  // Attends, takes mixtures out of the latent space (W^UV absorbed), and adds them to the stream.
  // Prompts whose latents are expanded attend head by head, and need neither.
  void mix(Team& team, const Layer& layer, const Cached& cached) {
    const Attention<Isa> attention(plan_, step_, shape_, cached, memory_.carried,
                                   memory_.mixture_width, memory_.parts, memory_.mixtures);
    team.each(plan_.num_tasks(), [&](int64_t i) {
      attention.run(plan_.task(i), spans_[team.rank()]);
    });
    team.barrier();
    const Expanded<Isa> expanded(step_, shape_, layer, cached);
    team.each(shape_.num_heads, [&](int64_t h) {
      take_out(team, layer.w_uv, attention, h);
      // Behind those: a block of rows may have some of both kinds.
      for (int64_t s = 0; s < step_.num_sequences; ++s) {
        if (plan_.is_expanded(s)) attend_expanded(expanded, s, h, head_rooms_[team.rank()]);
      }
    });
    team.barrier();
    const Inputs inputs = this->inputs(memory_.out_inputs, layer.out);
    const Blocks& blocks = this->blocks(layer.out);
    team.each(blocks.number, [&](int64_t b) {
      put_block(memory_.attended, layer.out.depth, layer.out, b, inputs);
    });
    team.barrier();
    multiply_shared<Isa>(team, layer.out, blocks, inputs, [&](int64_t first, const Outputs& outputs) {
      for (int64_t r = 0; r < outputs.num_rows; ++r) add_attended(layer.out, outputs, r, x(first + r));
    });
    team.barrier();
  }

  void add_attended(const Matrices& weights, const Outputs& outputs, int64_t r, float* row) const {
    add_outputs<Isa>(outputs, shape_.hidden, r, row);
    if (weights.bias == nullptr) return;
    const int64_t first = outputs.panel * PANEL;
    const int64_t last = smaller(first + outputs.num_panels * PANEL, shape_.hidden);
    for (int64_t c = first; c < last; ++c) row[c] += weights.bias[c];
  }

  // Whether any of a block's rows attends in the latent space.
  bool has_absorbed(const Blocks& blocks, int64_t b) const {
    if (plan_.most_expanded() == 0) return true;
    const int64_t first = blocks.first(b), last = first + blocks.rows(b);
    for (int64_t s = 0; s < step_.num_sequences; ++s) {
      const Sequence& sequence = step_.sequences[s];
      const bool is_apart = sequence.first_row >= last ||
                            sequence.first_row + sequence.num_rows <= first;
      if (!is_apart && !plan_.is_expanded(s)) return true;
    }
    return false;
  }

  void attend_expanded(const Expanded<Isa>& expanded, int64_t s, int64_t h, HeadRoom& room) const {
    const int64_t heads = shape_.num_heads, width = shape_.query_width();
    expanded.run(
        step_.sequences[s], h, room,
        [&](int64_t t, float* to) {
          const float* query = memory_.query + (t * heads + h) * width;
          std::memcpy(to, query, sizeof(float) * shape_.nope);
          rotate(t, query + shape_.nope, to + shape_.nope);
        },
        [&](int64_t t) { return memory_.attended + (t * heads + h) * shape_.value; });
  }

  // One head's mixtures out of the latent space.
  void take_out(const Team& team, const Matrices& values, const Attention<Isa>& attention,
              int64_t h) const {
    const int64_t heads = shape_.num_heads;
    const Inputs inputs = this->inputs(memory_.head_inputs[team.rank()], values);
    const Blocks& blocks = this->blocks(values);
    float* mixed = memory_.mixed + team.rank() * shape_.latent;
    for (int64_t s = 0; s < step_.num_sequences; ++s) {
      const Sequence& sequence = step_.sequences[s];
      if (plan_.is_expanded(s)) continue;
      for (int64_t i = 0; i < sequence.num_rows; ++i) {
        const int64_t t = sequence.first_row + i, b = t / blocks.size;
        attention.finish(s, i * heads + h, mixed);
        put_row<Isa>(mixed, values.format, values.depth, t - blocks.first(b),
                     inputs.block(blocks.first(b), blocks.rows(b)));
      }
    }
    for (int64_t b = 0; b < blocks.number; ++b) {
      if (!has_absorbed(blocks, b)) continue;
      multiply_head(values, h, b, inputs, memory_.attended + h * shape_.value,
                    heads * shape_.value);
    }
  }

  void feed_forward(Team& team, const Layer& layer, int64_t sparse) {
    const bool is_sparse = layer.routed.down.data != nullptr;
    if (team.rank() == 0) memory_.shared_pairs.visit_one(rows_, block_rows(takes_tiles<Isa>(layer.shared)));
    if (is_sparse) {
      const Matrices& gate = layer.gate.weight;
      const Inputs inputs = this->inputs(memory_.inputs, gate);
      team.each(blocks(gate).number, [&](int64_t b) {
        put_normed(layer.post_norm, step_.x, gate, b, inputs, memory_.normed);
      });
      team.barrier();
      multiply_to(team, gate, inputs, memory_.logits);
      choose_experts(team, layer, sparse);
    } else {
      team.each(rows_, [&](int64_t t) {
        normalize_row(layer.post_norm, step_.x, shape_.hidden, t, memory_.normed);
      });
      team.barrier();
    }
    visit(team, layer);
  }

  void choose_experts(Team& team, const Layer& layer, int64_t sparse) {
    const Gate& gate = layer.gate;
    const Choices& choices = step_.choices;
    const int64_t first = sparse * choices.layer_rows * shape_.num_slots;
    const int64_t number = gate.weight.num_outputs;
    const ChoiceRoom room(memory_.choice_room + team.rank() * ChoiceRoom::size(memory_.most_experts),
                          memory_.most_experts);
    team.each(rows_, [&](int64_t t) {
      const int64_t place = first + t * shape_.num_slots;
      const float fraction = step_.fractions == nullptr ? 1.0f : step_.fractions[t];
      float* scores = memory_.logits + t * number;
      fill_scores<Isa>(shape_, number, scores);
      fill_selection(shape_, gate.selection_bias, number, scores, room.selection, room.groups);
      take_best(shape_, find_threshold(shape_, gate.thresholds, fraction), number, scores,
                room.selection, room.keys,
                {choices.experts + place, choices.weights + place, choices.is_used + place, nullptr});
    });
    team.barrier();
    if (team.rank() == 0) {
      memory_.routed_pairs.sort({choices.experts + first, choices.weights + first,
                                 choices.is_used + first, rows_, shape_.num_slots},
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
    const PanelGroups groups(num_panels(shape_.hidden), rows_, team.size(),
                             rows_ <= FEW_ROWS ? LONG_PANELS : TASK_PANELS);
    team.each(groups.number, [&](int64_t g) {
      if (has_routed) add_down<Isa>(routed, groups.first(g), groups.count(g), step_.x);
      if (has_shared) add_down<Isa>(shared, groups.first(g), groups.count(g), step_.x);
    });
    team.barrier();
  }

  const Shape& shape_;
  const Layer* layers_;
  const Step& step_;
  const int64_t rows_;
  // Of rows for products in registers, and for products in tiles.
  const Blocks blocks_, tiled_blocks_;
  const int num_threads_;
  const AttentionPlan plan_;
  Memory memory_;
  Span* spans_;
  HeadRoom* head_rooms_;
};

template <class Isa>
void run(const Stack& stack, const Step& step, Workspace& workspace, int num_threads) {
  if (step.num_rows == 0) return;
  workspace.reset();
  Run<Isa>(stack, step, workspace, num_threads).run();
}

}  // namespace moestro::MOESTRO_ISA
