// Latent attention of a layer, phase by phase: projections, latents to their pages, the attention
// itself, and its outputs onto the stream. Next: attention.h, expanded.h.

#pragma once

#include <new>

#include "memory.h"
#include "step_rows.h"

namespace moestro::MOESTRO_ISA {

template <class Isa>
class LayerAttention {
 public:
  LayerAttention(const Shape& shape, const Step& step, const StepRows<Isa>& rows,
                 const AttentionPlan& plan, const Memory& memory, Workspace& workspace,
                 int num_threads)
      : shape_(shape),
        step_(step),
        rows_(rows),
        plan_(plan),
        memory_(memory),
        spans_(workspace.take<Span>(num_threads)),
        head_rooms_(workspace.take<HeadRoom>(num_threads)) {
    for (int i = 0; i < num_threads; ++i) {
      new (spans_ + i) Span(workspace, step.cache_format, shape.cache_width(),
                            memory.mixture_width, Isa::HAS_TILES);
      if (plan.most_expanded() == 0) continue;
      new (head_rooms_ + i)
          HeadRoom(workspace, shape, step.cache_format, plan.most_expanded(), Isa::HAS_TILES);
    }
  }

  // What positions turn queries and keys by, once for all layers.
  void fill_angles(Team& team) const {
    team.each(step_.num_rows, [&](int64_t t) { fill_angles_of(t); });
    team.barrier();
  }

  // Adds to each row of the stream what it takes from its sequence, whose pages get its own latent
  // first.
  void run(Team& team, const Layer& layer, const Cached& cached) const {
    project(team, layer);
    cache(team, layer, cached);
    absorb(team, layer);
    const Attention<Isa> attention(plan_, step_, shape_, cached, memory_.carried,
                                   memory_.mixture_width, memory_.parts, memory_.mixtures);
    attend(team, attention);
    take_out(team, layer, cached, attention);
    add_attended(team, layer);
  }

 private:
  void fill_angles_of(int64_t t) const {
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

  // The stream's normed rows to the query (or its compression) and to the latent.
  void project(Team& team, const Layer& layer) const {
    const bool is_compressed = layer.query_a.data != nullptr;
    const Matrices& first = is_compressed ? layer.query_a : layer.query;
    const Inputs inputs = rows_.inputs(memory_.inputs, first);
    team.each(rows_.blocks(first).number, [&](int64_t b) {
      rows_.put_normed(layer.input_norm, step_.x, first, b, inputs, memory_.normed);
    });
    team.barrier();
    rows_.multiply_to(team, first, inputs, is_compressed ? memory_.compressed : memory_.query);
    rows_.multiply_to(team, layer.latent, inputs, memory_.latent);
  }

  // Normed latents and rotated keys to their slots; the query out of its compression.
  void cache(Team& team, const Layer& layer, const Cached& cached) const {
    const bool is_compressed = layer.query_a.data != nullptr;
    const Inputs inputs = rows_.inputs(memory_.query_inputs, layer.query);
    const Blocks& blocks = rows_.blocks(layer.query);
    team.each(blocks.number, [&](int64_t b) {
      for (int64_t t = blocks.first(b); t < blocks.first(b) + blocks.rows(b); ++t) {
        cache_row(layer, cached, t);
      }
      if (is_compressed) {
        rows_.put_normed(layer.query_norm, memory_.compressed, layer.query, b, inputs,
                         memory_.compressed);
      }
    });
    team.barrier();
    if (is_compressed) rows_.multiply_to(team, layer.query, inputs, memory_.query);
  }

  void cache_row(const Layer& layer, const Cached& cached, int64_t t) const {
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
  void absorb(Team& team, const Layer& layer) const {
    const Matrices& w_uk = layer.w_uk;
    const int64_t heads = shape_.num_heads, width = shape_.cache_width();
    const Inputs inputs = rows_.inputs(memory_.head_inputs[team.rank()], w_uk);
    team.each(heads, [&](int64_t h) {
      const float* query = memory_.query + h * shape_.query_width();
      float* carried = memory_.carried + h * width;
      for (int64_t b = 0; b < rows_.blocks(w_uk).number; ++b) {
        if (!has_absorbed(rows_.blocks(w_uk), b)) continue;
        rows_.put_block(query, heads * shape_.query_width(), w_uk, b, inputs);
        multiply_head(w_uk, h, b, inputs, carried, heads * width);
      }
      for (int64_t t = 0; t < step_.num_rows; ++t) {
        rotate(t, query + t * heads * shape_.query_width() + shape_.nope,
               carried + t * heads * width + shape_.latent);
      }
    });
    team.barrier();
  }

  void multiply_head(const Matrices& weights, int64_t h, int64_t b, const Inputs& inputs, float* y,
                     int64_t stride) const {
    const int64_t first = rows_.blocks(weights).first(b);
    with_format(weights.format, [&](auto format) {
      multiply_block<Isa, decltype(format)::value>(
          weights, h, 0, weights.num_panels, inputs.block(first, rows_.blocks(weights).rows(b)),
          [&](const Outputs& outputs) {
            store_outputs<Isa>(outputs, weights, y + first * stride, stride);
          });
    });
  }

  // Queries meet the cached latents, task by task.
  void attend(Team& team, const Attention<Isa>& attention) const {
    team.each(plan_.num_tasks(), [&](int64_t i) {
      attention.run(plan_.task(i), spans_[team.rank()]);
    });
    team.barrier();
  }

  // Mixtures out of the latent space, head by head (W^UV absorbed). Prompts whose latents are
  // expanded attend here, and have none.
  void take_out(Team& team, const Layer& layer, const Cached& cached,
                const Attention<Isa>& attention) const {
    const Expanded<Isa> expanded(step_, shape_, layer, cached);
    team.each(shape_.num_heads, [&](int64_t h) {
      take_out_head(team, layer.w_uv, attention, h);
      // Behind those: a block of rows may have some of both kinds.
      for (int64_t s = 0; s < step_.num_sequences; ++s) {
        if (plan_.is_expanded(s)) attend_expanded(expanded, s, h, head_rooms_[team.rank()]);
      }
    });
    team.barrier();
  }

  // All heads' outputs, projected, onto the stream.
  void add_attended(Team& team, const Layer& layer) const {
    const Inputs inputs = rows_.inputs(memory_.out_inputs, layer.out);
    const Blocks& blocks = rows_.blocks(layer.out);
    team.each(blocks.number, [&](int64_t b) {
      rows_.put_block(memory_.attended, layer.out.depth, layer.out, b, inputs);
    });
    team.barrier();
    multiply_shared<Isa>(
        team, layer.out, blocks, inputs, [&](int64_t first, const Outputs& outputs) {
          for (int64_t r = 0; r < outputs.num_rows; ++r) {
            add_row(layer.out, outputs, r, step_.x + (first + r) * shape_.hidden);
          }
        });
    team.barrier();
  }

  // A tile's outputs and their bias onto one row.
  void add_row(const Matrices& weights, const Outputs& outputs, int64_t r, float* row) const {
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

  void take_out_head(const Team& team, const Matrices& values, const Attention<Isa>& attention,
                     int64_t h) const {
    const int64_t heads = shape_.num_heads;
    const Inputs inputs = rows_.inputs(memory_.head_inputs[team.rank()], values);
    const Blocks& blocks = rows_.blocks(values);
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

  const Shape& shape_;
  const Step& step_;
  const StepRows<Isa>& rows_;
  const AttentionPlan& plan_;
  const Memory& memory_;
  Span* const spans_;
  HeadRoom* const head_rooms_;
};

}  // namespace moestro::MOESTRO_ISA
