// One head of one sequence in training's attention: its rows gathered, and its scores a block of
// queries at a time. Next: attention_training.h.

#pragma once

#include "band_products.h"
#include "workspace.h"

namespace moestro::MOESTRO_ISA {

// Queries of a block: their scores of all keys are held at once. 64 were slower (docs/log.md, "A
// training step of the demo's shape").
constexpr int64_t BLOCK_QUERIES = 32;

// One head's rows of a part of queries, keys, values or their gradients, from token `t` on.
inline uint16_t* head_rows(const HeadRows& part, const AttentionShape& shape, int64_t task,
                           int64_t t = 0) {
  return part.row(task / shape.num_heads * shape.length + t, task % shape.num_heads);
}

// Copies one head's rows of a part to columns of rows that are `to_step` numbers apart.
inline void gather_head(const HeadRows& part, const AttentionShape& shape, int64_t task,
                        int64_t width, uint16_t* to, int64_t to_step) {
  const uint16_t* from = head_rows(part, shape, task);
  for (int64_t t = 0; t < shape.length; ++t) {
    copy_panels(from + t * part.row_step, width, to + t * to_step);
  }
}

// What a thread holds of the head that it is at, and its scores of a block of queries.
template <class Isa>
class HeadWork {
 public:
  using Lanes = typename Isa::Lanes;

  HeadWork(Workspace& workspace, const AttentionShape& given)
      : shape(given),
        query(take_rows(workspace, shape.query_width())),
        key(take_rows(workspace, shape.query_width())),
        value(take_rows(workspace, shape.value)),
        scores(workspace.take<float>(BLOCK_QUERIES * shape.length)),
        weights(workspace.take<uint16_t>(BLOCK_QUERIES * shape.length)),
        key_columns_(take_words(workspace, shape.query_width())) {}

  void load(const AttentionParts& inputs, int64_t task) {
    const int64_t width = shape.query_width();
    gather_head(inputs.query_nope, shape, task, shape.nope, query, width);
    gather_head(inputs.query_rope, shape, task, shape.rotary, query + shape.nope, width);
    gather_head(inputs.key_nope, shape, task, shape.nope, key, width);
    gather_head(inputs.key_rope, shape, task, shape.rotary, key + shape.nope, width);
    gather_head(inputs.value, shape, task, shape.value, value, shape.value);
    pack_all_transposed<Isa>(key, shape.length, width, key_columns_);
  }

  // Scores of queries from `first` on, of all keys up to the last query's own.
  void fill_scores(int64_t first, int64_t count) const {
    const int64_t width = shape.query_width();
    const Bands<Isa> keys(key_columns_, shape.length, width / 2);
    multiply_bands<Isa>(by_rows(query + first * width, width), count, keys, first + count,
                        width / 2, to_rows<Isa>(scores, shape.length));
  }

  uint16_t* take_rows(Workspace& workspace, int64_t width) const {
    return workspace.take<uint16_t>(shape.length * width);
  }
  uint32_t* take_words(Workspace& workspace, int64_t width) const {
    return workspace.take<uint32_t>(shape.length * width / 2);
  }

  const AttentionShape& shape;
  uint16_t *const query, *const key, *const value;
  float* const scores;
  uint16_t* const weights;

 private:
  uint32_t* const key_columns_;
};

}  // namespace moestro::MOESTRO_ISA
