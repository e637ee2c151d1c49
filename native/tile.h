// The innermost product: a few rows times a few panels, sums in registers. Next: multiply.h.

#pragma once

#include "inputs.h"
#include "processor.h"

namespace moestro::MOESTRO_ISA {

// How far ahead of its use a weight is asked for: processors stop their own
// reading ahead at the end of a page. Behind a strip lies the next one, so
// this also serves short strips. Twice as far was slower, three times as far
// no better (docs/log.md, "Weights in the order in which they are read").
constexpr int64_t PREFETCH_BYTES = 2304;

template <class Isa, Format F, int ROWS, int PANELS>
struct Tile {
  using Lanes = typename Isa::Lanes;
  using Words = typename Isa::Words;

  // out[r * PANELS * PANEL + c] = the product of row r with column c of the panels: whole strips'
  // from `strip` on, or the one panel of it on a `side`.
  static void run(const Block& block, const char* strip, int64_t side, int64_t stride,
                  int64_t depth, float* out) {
    static_assert(PANELS == 1 || PANELS % STRIP == 0, "whole strips");
    Lanes sums[ROWS][PANELS];
    fill(sums, Isa::fill(0.0f));
    const char* panels = strip + side * LINE;
    if constexpr (is_quantized(F)) {
      const char* halves = strip + code_bytes(F) + side * PANEL * 2;
      add_groups(block, panels, halves, stride, num_groups(depth), sums);
    } else {
      add_words(block, panels, stride, num_words(F, depth), sums);
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
      for (int p = 0; p < PANELS; ++p) Isa::store(sums[r][p], out + (r * PANELS + p) * PANEL);
    }
  }

 private:
  // One word of a panel's outputs, and of a strip's.
  static constexpr int64_t LINE = PANEL * 4, STEP = STRIP * LINE;

  // A block of so few rows is its matrix's only one: what it reads comes again with the next token,
  // if at all. Other blocks read it again.
  static void ask_ahead(const char* line) {
    if constexpr (ROWS > BLOCK_ROWS / 2) {
      __builtin_prefetch(line + PREFETCH_BYTES, 0, 3);
    } else if (PASSES_WEIGHTS_BY) {
      __builtin_prefetch(line + PREFETCH_BYTES, 0, 0);
    } else {
      __builtin_prefetch(line + PREFETCH_BYTES, 0, 2);
    }
  }

  static const char* panel(const char* first, int64_t stride, int p, int64_t size) {
    return first + p / STRIP * stride + p % STRIP * size;
  }

  template <class Sum>
  static void fill(Sum (&sums)[ROWS][PANELS], Sum value) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
      for (int p = 0; p < PANELS; ++p) sums[r][p] = value;
    }
  }

  static void add_words(const Block& block, const char* panels, int64_t stride, int64_t count,
                        Lanes (&sums)[ROWS][PANELS]) {
    const uint32_t* x = block.words;
    for (int64_t w = 0; w < count; ++w, x += ROWS, panels += STEP) {
      Words weights[PANELS];
#pragma GCC unroll 16
      for (int p = 0; p < PANELS; ++p) {
        const char* line = panel(panels, stride, p, LINE);
        ask_ahead(line);
        weights[p] = Isa::load(line);
      }
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const Words passing = Isa::fill_word(x + r);
#pragma GCC unroll 16
        for (int p = 0; p < PANELS; ++p) {
          sums[r][p] = add_word<Isa, F>(sums[r][p], weights[p], passing);
        }
      }
    }
  }

  static void add_groups(const Block& block, const char* panels, const char* halves,
                         int64_t stride, int64_t number, Lanes (&sums)[ROWS][PANELS]) {
    const float* scales = block.scales;
    for (int64_t g = 0; g < number; ++g, scales += ROWS) {
      Words counts[ROWS][PANELS];
      add_counts(block, panels + group_bytes(F) * g, stride, g, counts);
      Lanes weight_scales[PANELS];
#pragma GCC unroll 16
      for (int p = 0; p < PANELS; ++p) {
        const char* from = panel(halves + group_bytes(F) * g, stride, p, PANEL * 2);
        if (p % STRIP == 0) ask_ahead(from);
        weight_scales[p] = Isa::load_half(reinterpret_cast<const uint16_t*>(from));
      }
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const Lanes scale = Isa::fill(scales[r]);
#pragma GCC unroll 16
        for (int p = 0; p < PANELS; ++p) {
          sums[r][p] = Isa::multiply_add(Isa::to_lanes(counts[r][p]),
                                         Isa::multiply(weight_scales[p], scale), sums[r][p]);
        }
      }
    }
  }

  static Words add_count(Words count, Words weights, Words x) {
    if constexpr (F == Format::int4) return Isa::add_nibbles(count, weights, x);
    return Isa::add_bytes(count, weights, x);
  }

  // Counts are whole numbers: their sums are exact in any order.
  static void add_counts(const Block& block, const char* panels, int64_t stride, int64_t g,
                         Words (&counts)[ROWS][PANELS]) {
    // A byte of int4 holds inputs half a group apart.
    constexpr int COUNT = F == Format::int4 ? GROUP_WORDS / 2 : GROUP_WORDS;
    const uint32_t* x = block.words + g * GROUP_WORDS * ROWS;
    begin_counts(block, g, counts);
#pragma GCC unroll 8
    for (int w = 0; w < COUNT; ++w, panels += STEP, x += ROWS) {
      Words low[PANELS], high[PANELS];
#pragma GCC unroll 16
      for (int p = 0; p < PANELS; ++p) {
        const char* line = panel(panels, stride, p, LINE);
        ask_ahead(line);
        low[p] = Isa::load(line);
        if constexpr (F == Format::int4) {
          high[p] = Isa::high_nibbles(low[p]);
          low[p] = Isa::low_nibbles(low[p]);
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const Words first = Isa::fill_word(x + r);
#pragma GCC unroll 16
        for (int p = 0; p < PANELS; ++p) counts[r][p] = add_count(counts[r][p], low[p], first);
        if constexpr (F == Format::int4) {
          const Words second = Isa::fill_word(x + COUNT * ROWS + r);
#pragma GCC unroll 16
          for (int p = 0; p < PANELS; ++p) counts[r][p] = add_count(counts[r][p], high[p], second);
        }
      }
    }
    if constexpr (F == Format::int4) end_counts(block, g, counts);
  }

  [[gnu::always_inline]] static void begin_counts(const Block& block, int64_t g,
                                                  Words (&counts)[ROWS][PANELS]) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const int32_t start = block.starts[g * ROWS + r];
      const Words count = F == Format::int4 ? Isa::begin_nibbles(start) : Isa::fill(start);
#pragma GCC unroll 16
      for (int p = 0; p < PANELS; ++p) counts[r][p] = count;
    }
  }

  [[gnu::always_inline]] static void end_counts(const Block& block, int64_t g,
                                                Words (&counts)[ROWS][PANELS]) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
      for (int p = 0; p < PANELS; ++p) {
        counts[r][p] = Isa::end_nibbles(counts[r][p], block.starts[g * ROWS + r]);
      }
    }
  }
};

}  // namespace moestro::MOESTRO_ISA
