// A block's inputs as its product reads them: rounded as the weights' format asks, and the words of
// its rows side by side; or row by row, for a processor's tiles. Next: tile.h.

#pragma once

#include <cstring>

#include "numbers.h"
#include "workspace.h"

namespace moestro::MOESTRO_ISA {

// Whether products with a matrix go by a processor's tiles. It depends on the matrix alone: sums in
// tiles have an order of their own, and a row must get it in any company.
template <class Isa>
bool takes_tiles(const Matrices& weights) {
  return Isa::HAS_TILES && weights.format == Format::bfloat16 &&
         weights.depth % (2 * TILED_WORDS) == 0;
}

// How many rows a block of inputs has at most.
constexpr int64_t block_rows(bool are_tiled) { return are_tiled ? TILED_ROWS : BLOCK_ROWS; }

// Some rows: words[w * num_rows + r], or words[r * row_words + w] if that
// is not zero. Quantized ones have a scale for each group, and where the
// group's count starts, which makes up for weights stored without a sign.
struct Block {
  uint32_t* words;
  float* scales;
  int32_t* starts;
  int64_t num_rows;
  int64_t row_words = 0;
};

// Memory for the inputs of so many rows, in a format or in whichever needs most; tiles read on
// behind the last of them.
struct InputMemory {
  InputMemory() = default;
  InputMemory(Workspace& workspace, int64_t depth, int64_t num_rows,
              Format format = Format::float32)
      : words(workspace.take<uint32_t>((num_rows + TILED_ROWS - 1) *
                                       num_words(format, round_up(depth, GROUP)))),
        scales(workspace.take<float>(num_rows * num_groups(depth))),
        starts(workspace.take<int32_t>(num_rows * num_groups(depth))) {}

  uint32_t* words = nullptr;
  float* scales = nullptr;
  int32_t* starts = nullptr;
};

// Inputs for one matrix, or for several that are alike; a block begins at its first row.
class Inputs {
 public:
  Inputs(const InputMemory& memory, const Matrices& weights, bool are_tiled)
      : memory_(memory),
        num_words_(num_words(weights.format, weights.depth)),
        num_groups_(is_quantized(weights.format) ? num_groups(weights.depth) : 0),
        row_words_(are_tiled ? num_words_ : 0) {}

  Block block(int64_t first_row, int64_t rows) const {
    return {memory_.words + first_row * num_words_, memory_.scales + first_row * num_groups_,
            memory_.starts + first_row * num_groups_, rows, row_words_};
  }

 private:
  InputMemory memory_;
  int64_t num_words_, num_groups_, row_words_;
};

// Adds the products of one word of weights with one of a row: of a float32, or of two bfloat16.
template <class Isa, Format F, class Panel, class Passing>
typename Isa::Lanes add_word(typename Isa::Lanes sum, Panel panel, Passing passing) {
  if constexpr (F == Format::float32) {
    return Isa::add_floats(sum, panel, passing);
  } else {
    return Isa::add_pairs(sum, panel, passing);
  }
}

// The largest code of a quantized input, either sign: -128 would have no counterpart.
constexpr float MOST_CODE = 127.0f;

// How much larger than they are weights are multiplied.
template <class Isa>
constexpr int32_t offset(Format format) {
  return format == Format::int4 ? 8 : Isa::BYTE_OFFSET;
}

// Puts GROUP numbers of row `r` into group `g` of a block of quantized inputs.
template <class Isa>
void quantize_group(const float* x, Format format, int64_t g, int64_t r, const Block& block) {
  using Lanes = typename Isa::Lanes;
  const Lanes low = Isa::load(x), high = Isa::load(x + PANEL);
  const float most = Isa::largest(Isa::larger(Isa::absolute(low), Isa::absolute(high)));
  // Zero, unless a number is infinite or none: then the group is NaN, whatever `largest` says.
  const float fault = Isa::sum(Isa::multiply(Isa::add(low, high), Isa::fill(0.0f)));
  const Lanes inverse = Isa::fill(most > 0.0f ? MOST_CODE / most : 0.0f);
  alignas(16) int8_t codes[GROUP];
  Isa::store_int8(Isa::multiply(low, inverse), codes);
  Isa::store_int8(Isa::multiply(high, inverse), codes + PANEL);
  int32_t sum = 0;
  for (int i = 0; i < GROUP; ++i) sum += codes[i];
  const int64_t rows = block.num_rows, place = g * rows + r;
  block.scales[place] = most / MOST_CODE + fault;
  block.starts[place] = -offset<Isa>(format) * sum;
  uint32_t* to = block.words + g * GROUP_WORDS * rows + r;
  for (int w = 0; w < GROUP_WORDS; ++w, to += rows) std::memcpy(to, codes + 4 * w, 4);
}

// Puts PANEL numbers of row `r`, from input `start` on, into a block of inputs without scales.
template <class Isa>
void round_lanes(typename Isa::Lanes a, Format format, int64_t start, int64_t count, int64_t r,
                 const Block& block) {
  const int64_t rows = block.num_rows;
  if (format == Format::float32) {
    float some[PANEL];
    Isa::store(a, some);
    for (int64_t c = 0; c < count; ++c) {
      std::memcpy(block.words + (start + c) * rows + r, some + c, 4);
    }
  } else {
    alignas(32) uint16_t some[PANEL];
    Isa::store_bfloat16(a, some);
    if (block.row_words != 0) {
      std::memcpy(block.words + r * block.row_words + start / 2, some, 2 * count);
      return;
    }
    for (int64_t c = 0; c < count; c += 2) {
      std::memcpy(block.words + (start + c) / 2 * rows + r, some + c, 4);
    }
  }
}

// Puts a row of numbers in as row `r` of a block.
template <class Isa>
void put_row(const float* x, Format format, int64_t depth, int64_t r, const Block& block) {
  if (!is_quantized(format)) {
    return by_lanes<Isa>(x, depth, 0.0f, [&](typename Isa::Lanes a, int64_t start, int64_t count) {
      round_lanes<Isa>(a, format, start, count, r, block);
    });
  }
  int64_t g = 0;
  for (; (g + 1) * GROUP <= depth; ++g) quantize_group<Isa>(x + g * GROUP, format, g, r, block);
  if (g * GROUP == depth) return;
  float some[GROUP];
  for (int64_t i = 0; i < GROUP; ++i) some[i] = g * GROUP + i < depth ? x[g * GROUP + i] : 0.0f;
  quantize_group<Isa>(some, format, g, r, block);
}

}  // namespace moestro::MOESTRO_ISA
