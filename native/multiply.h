// Blocks of rows times some panels of a matrix, in whichever format it is stored. Next: experts.h.

#pragma once

#include "tile.h"
#include "tiles.h"

namespace moestro::MOESTRO_ISA {

// The outputs of one tile: row r's columns begin at values + r * stride.
struct Outputs {
  const float* values;
  int64_t stride;
  int64_t num_rows;
  // The panel of the first column, and how many panels there are.
  int64_t panel;
  int64_t num_panels;

  const float* row(int64_t r) const { return values + r * stride; }
};

template <class Isa, Format F, int ROWS, class Emit>
void multiply_rows(const Matrices& weights, int64_t matrix, int64_t panel, int64_t num_panels,
                   const Block& block, Emit& emit) {
  constexpr int PANELS = Isa::tile_panels(is_quantized(F), ROWS);
  // What is left is whole strips, unless panels are taken one by one.
  constexpr int REST = PANELS < STRIP ? 1 : STRIP;
  alignas(64) float values[ROWS * PANELS * PANEL];
  const int64_t stride = weights.stride(), last = panel + num_panels;
  for (; PANELS > REST && panel + PANELS <= last; panel += PANELS) {
    Tile<Isa, F, ROWS, PANELS>::run(block, weights.strip(matrix, panel), 0, stride, weights.depth,
                                    values);
    emit(Outputs{values, PANELS * PANEL, ROWS, panel, PANELS});
  }
  for (; panel < last; panel += REST) {
    Tile<Isa, F, ROWS, REST>::run(block, weights.strip(matrix, panel), panel % STRIP, stride,
                                  weights.depth, values);
    emit(Outputs{values, REST * PANEL, ROWS, panel, REST});
  }
}

// The same by a processor's tiles, strip by strip.
template <class Isa, class Emit>
void multiply_strips(const Matrices& weights, int64_t matrix, int64_t panel, int64_t num_panels,
                     const Block& block, Emit& emit) {
  static_assert(STRIP == TILED_PANELS, "a strip is what tiles multiply at once");
  alignas(64) typename Isa::TiledSums sums;
  for (const int64_t last = panel + num_panels; panel < last; panel += STRIP) {
    const char* strip = weights.strip(matrix, panel);
    Isa::multiply_tiles(block.words, block.row_words, block.num_rows,
                        reinterpret_cast<const uint32_t*>(strip), STRIP * PANEL, STRIP,
                        block.row_words, sums);
    emit(Outputs{sums[0], STRIP * PANEL, block.num_rows, panel, STRIP});
  }
}

// Multiplies one block by some panels, the first of them first in its strip, and hands the outputs
// to emit(Outputs), tile by tile.
template <class Isa, Format F, class Emit>
void multiply_block(const Matrices& weights, int64_t matrix, int64_t panel, int64_t num_panels,
                    const Block& block, Emit emit) {
  static_assert(BLOCK_ROWS == 6, "one case for each number of rows");
  if constexpr (Isa::HAS_TILES && F == Format::bfloat16) {
    if (block.row_words != 0) {
      return multiply_strips<Isa>(weights, matrix, panel, num_panels, block, emit);
    }
  }
  switch (block.num_rows) {
    case 1: return multiply_rows<Isa, F, 1>(weights, matrix, panel, num_panels, block, emit);
    case 2: return multiply_rows<Isa, F, 2>(weights, matrix, panel, num_panels, block, emit);
    case 3: return multiply_rows<Isa, F, 3>(weights, matrix, panel, num_panels, block, emit);
    case 4: return multiply_rows<Isa, F, 4>(weights, matrix, panel, num_panels, block, emit);
    case 5: return multiply_rows<Isa, F, 5>(weights, matrix, panel, num_panels, block, emit);
    default: return multiply_rows<Isa, F, 6>(weights, matrix, panel, num_panels, block, emit);
  }
}

// A format as a type, so that a lambda can be compiled for each.
template <Format F>
struct FormatTag {
  static constexpr Format value = F;
};

template <class Work>
void with_format(Format format, Work work) {
  switch (format) {
    case Format::float32: return work(FormatTag<Format::float32>());
    case Format::bfloat16: return work(FormatTag<Format::bfloat16>());
    case Format::int8: return work(FormatTag<Format::int8>());
    case Format::int4: return work(FormatTag<Format::int4>());
  }
}

// How rows divide into blocks.
struct Blocks {
  Blocks(int64_t rows, int64_t most_rows)
      : num_rows(rows),
        size(even_rows(rows, most_rows)),
        number(rows == 0 ? 0 : divide_up(rows, size)) {}

  int64_t first(int64_t b) const { return b * size; }
  int64_t rows(int64_t b) const { return smaller(size, num_rows - first(b)); }

  int64_t num_rows, size, number;
};

// Panels are shared out in groups: as many as pay, unless that leaves threads without work.
// `most` is more than usual where a task goes from matrix to matrix and long reads pay.
struct PanelGroups {
  PanelGroups(int64_t panels, int64_t num_rows, int num_threads, int64_t most = TASK_PANELS)
      : num_panels(panels),
        size(find_size(panels, num_rows, num_threads, most)),
        number(divide_up(panels, size)) {}

  static int64_t find_size(int64_t panels, int64_t num_rows, int num_threads, int64_t most) {
    while (most > TASK_PANELS && panels < 2 * most * num_threads) most /= 2;
    return panels >= 4 * TASK_PANELS * num_threads || num_rows <= 3 ? most : STRIP;
  }

  int64_t first(int64_t g) const { return g * size; }
  int64_t count(int64_t g) const { return smaller(size, num_panels - first(g)); }

  int64_t num_panels, size, number;
};

// Writes a tile's outputs, with their bias, to columns of `y`, whose rows are `row_size` apart.
template <class Isa>
void store_outputs(const Outputs& outputs, const Matrices& weights, float* y, int64_t row_size) {
  for (int64_t p = 0; p < outputs.num_panels; ++p) {
    const int64_t column = (outputs.panel + p) * PANEL;
    const int64_t count = smaller(PANEL, weights.num_outputs - column);
    for (int64_t r = 0; r < outputs.num_rows; ++r) {
      typename Isa::Lanes value = Isa::load(outputs.row(r) + p * PANEL);
      if (weights.bias != nullptr) {
        float some[PANEL] = {};
        for (int64_t c = 0; c < count; ++c) some[c] = weights.bias[column + c];
        value = Isa::add(value, Isa::load(some));
      }
      store_some<Isa>(value, y + r * row_size + column, count);
    }
  }
}

// Multiplies all blocks of a team's rows by a matrix, panels shared out among the threads, and
// calls emit(a block's first row, outputs).
template <class Isa, class Emit>
void multiply_shared(Team& team, const Matrices& weights, const Blocks& blocks,
                     const Inputs& inputs, Emit emit) {
  const PanelGroups groups(weights.num_panels, blocks.num_rows, team.size());
  with_format(weights.format, [&](auto format) {
    team.each(groups.number, [&](int64_t g) {
      for (int64_t b = 0; b < blocks.number; ++b) {
        multiply_block<Isa, decltype(format)::value>(
            weights, 0, groups.first(g), groups.count(g),
            inputs.block(blocks.first(b), blocks.rows(b)),
            [&](const Outputs& outputs) { emit(blocks.first(b), outputs); });
      }
    });
  });
}

template <class Isa>
void multiply(const Product& product, Workspace& workspace, int num_threads) {
  const Matrices& weights = product.weights;
  const int64_t heads = weights.num_matrices, depth = weights.depth, rows = product.num_rows;
  const bool are_tiled = takes_tiles<Isa>(weights);
  const Blocks blocks(rows, block_rows(are_tiled));
  workspace.reset();
  const InputMemory memory(workspace, depth, rows * heads, weights.format);
  const Inputs inputs(memory, weights, are_tiled);
  const PanelGroups groups(weights.num_panels, rows, num_threads);
  run_with_tiles<Isa>(num_threads, [&](Team& team) {
    team.each(heads * blocks.number, [&](int64_t i) {
      const int64_t h = i / blocks.number, b = i % blocks.number, first = blocks.first(b);
      const Block block = inputs.block(h * rows + first, blocks.rows(b));
      for (int64_t r = 0; r < block.num_rows; ++r) {
        const float* x = product.x + ((first + r) * heads + h) * depth;
        put_row<Isa>(x, weights.format, depth, r, block);
      }
    });
    team.barrier();
    with_format(weights.format, [&](auto format) {
      team.each(heads * groups.number, [&](int64_t i) {
        const int64_t h = i / groups.number, g = i % groups.number;
        for (int64_t b = 0; b < blocks.number; ++b) {
          float* y = product.y + (blocks.first(b) * heads + h) * weights.num_outputs;
          multiply_block<Isa, decltype(format)::value>(
              weights, h, groups.first(g), groups.count(g),
              inputs.block(h * rows + blocks.first(b), blocks.rows(b)),
              [&](const Outputs& outputs) {
                store_outputs<Isa>(outputs, weights, y, heads * weights.num_outputs);
              });
        }
      });
    });
    team.barrier();
  });
}

}  // namespace moestro::MOESTRO_ISA
