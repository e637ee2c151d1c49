// A step's rows as products take them: in blocks, rounded as each matrix asks.
// Next: layer_attention.h, layer_feed_forward.h.

#pragma once

#include "multiply.h"
#include "stack.h"
#include "team.h"

namespace moestro::MOESTRO_ISA {

// Row `t` of `from`, of `number` numbers, normed to row `t` of `to`.
template <class Isa>
void normalize_row(const Norm& norm, const float* from, int64_t number, int64_t t, float* to) {
  normalize<Isa>(from + t * number, norm.weight, norm.epsilon, number, to + t * number);
}

template <class Isa>
class StepRows {
 public:
  explicit StepRows(int64_t num_rows)
      : blocks_(num_rows, block_rows(false)), tiled_blocks_(num_rows, block_rows(true)) {}

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

  // A block's rows normed to `to`, and rounded for a matrix.
  void put_normed(const Norm& norm, const float* from, const Matrices& weights, int64_t b,
                  const Inputs& inputs, float* to) const {
    const Blocks& blocks = this->blocks(weights);
    for (int64_t t = blocks.first(b); t < blocks.first(b) + blocks.rows(b); ++t) {
      normalize_row<Isa>(norm, from, weights.depth, t, to);
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

 private:
  // Of rows for products in registers, and for products in tiles.
  const Blocks blocks_, tiled_blocks_;
};

}  // namespace moestro::MOESTRO_ISA
