// Matrices of bfloat16 as training's products read them, and how they are packed. Where inference
// packs a matrix once, here weights change with every step and tokens with every layer, so packing
// is part of the product. Next: band_products.h.
//
// The inner dimension goes by twos, one word for two bfloat16. The right side's columns lie in
// bands of a tile's width (the last may be narrower, in whole panels), word after word within a
// band: column c of word w is at `band + w * width + c`. The left side is rows of words where they
// lie, or columns of rows that are summed over.

#pragma once

#include <cstring>

#include "training.h"

namespace moestro::MOESTRO_ISA {

// What widths must be multiples of, so that panels and pairs of panels are whole.
constexpr int64_t WIDTH_MULTIPLE = 32;
// What rows that are summed over are filled up to, so that their words are whole panels and tiles.
constexpr int64_t ROW_MULTIPLE = 2 * PANEL;
static_assert(PANEL == TILED_WORDS, "what fills a panel up fills a tile");

// How some columns divide into bands.
template <class Isa>
struct BandPlan {
  static constexpr int64_t WIDTH = Isa::BAND_PANELS * PANEL;

  explicit BandPlan(int64_t columns) : num_columns(columns), number(divide_up(columns, WIDTH)) {}

  int64_t first(int64_t b) const { return b * WIDTH; }
  int64_t width(int64_t b) const { return smaller(WIDTH, num_columns - first(b)); }

  int64_t num_columns, number;
};

// A matrix in bands; those of so many words begin one behind the other.
template <class Isa>
struct Bands {
  Bands(uint32_t* words, int64_t columns, int64_t number_of_words)
      : plan(columns), data(words), num_words(number_of_words) {}

  uint32_t* band(int64_t b) const { return data + plan.first(b) * num_words; }

  BandPlan<Isa> plan;
  uint32_t* data;
  int64_t num_words;
};

// Fills band b with a matrix whose rows are the product's columns: y = x W^T.
template <class Isa>
void pack_transposed(const uint16_t* matrix, const Bands<Isa>& bands, int64_t b) {
  const int64_t width = bands.plan.width(b), words = bands.num_words;
  const uint32_t* first = reinterpret_cast<const uint32_t*>(matrix) + bands.plan.first(b) * words;
  for (int64_t c = 0; c < width; c += PANEL) {
    const uint32_t* rows[PANEL];
    for (int64_t r = 0; r < PANEL; ++r) rows[r] = first + (c + r) * words;
    int64_t w = 0;
    for (; w + PANEL <= words; w += PANEL) {
      Isa::transpose(rows, w, width, bands.band(b) + w * width + c);
    }
    for (; w < words; ++w) {
      for (int64_t r = 0; r < PANEL; ++r) bands.band(b)[w * width + c + r] = rows[r][w];
    }
  }
}

// Fills words of band b, from `first_word` on, with rows taken by twos: y = x W, or a factor of a
// sum over rows.
template <class Isa>
void pack_rows(const uint16_t* rows, int64_t num_words, const Bands<Isa>& bands, int64_t b,
               int64_t first_word) {
  const int64_t width = bands.plan.width(b), step = bands.plan.num_columns;
  uint32_t* to = bands.band(b) + first_word * width;
  for (int64_t w = 0; w < num_words; ++w, to += width) {
    const uint16_t* even = rows + 2 * w * step + bands.plan.first(b);
    for (int64_t c = 0; c < width; c += PANEL) {
      Isa::interleave(even + c, even + step + c, to + c);
    }
  }
}

// Packs all bands of a matrix, either way.
template <class Isa>
Bands<Isa> pack_all_transposed(const uint16_t* matrix, int64_t columns, int64_t depth,
                               uint32_t* to) {
  const Bands<Isa> bands(to, columns, depth / 2);
  for (int64_t b = 0; b < bands.plan.number; ++b) pack_transposed<Isa>(matrix, bands, b);
  return bands;
}

template <class Isa>
Bands<Isa> pack_all_rows(const uint16_t* rows, int64_t columns, int64_t num_rows, uint32_t* to) {
  const Bands<Isa> bands(to, columns, num_rows / 2);
  for (int64_t b = 0; b < bands.plan.number; ++b) {
    pack_rows<Isa>(rows, bands.num_words, bands, b, 0);
  }
  return bands;
}

// Copies whole panels of bfloat16: rows are too short to call the library's function for each.
inline void copy_panels(const uint16_t* from, int64_t width, uint16_t* to) {
  for (int64_t c = 0; c < width; c += PANEL) std::memcpy(to + c, from + c, 2 * PANEL);
}

// Rows of words, `step` apart: the left side of a product.
struct WordRows {
  const uint32_t* words;
  int64_t step;
  const uint32_t* at(int64_t r, int64_t w) const { return words + r * step + w; }
  WordRows from(int64_t r) const { return {at(r, 0), step}; }
};

// Columns of words, word after word within a panel, panels `step` apart: the left side of a sum
// over rows. `at` is for columns of the first panel.
struct WordColumns {
  const uint32_t* words;
  int64_t step;
  // Where the first column lies in its panel.
  int64_t place;
  const uint32_t* at(int64_t c, int64_t w) const { return words + w * PANEL + place + c; }
  WordColumns from(int64_t c) const { return {words + c / PANEL * step, step, c % PANEL}; }
};

inline WordRows by_rows(const uint16_t* rows, int64_t width) {
  return {reinterpret_cast<const uint32_t*>(rows), width / 2};
}

// Turns rows into columns: number r of row c of what comes out, whose rows are `step` words apart,
// is number c of row r. The numbers of rows and columns are multiples of two panels and of one.
template <class Isa>
void turn_rows(const uint16_t* rows, int64_t row_step, int64_t num_rows, int64_t num_columns,
               uint32_t* to, int64_t step) {
  alignas(64) uint32_t block[PANEL][PANEL];
  const uint32_t* lines[PANEL];
  for (int64_t w = 0; w < PANEL; ++w) lines[w] = block[w];
  for (int64_t first = 0; first < num_rows; first += 2 * PANEL) {
    for (int64_t c = 0; c < num_columns; c += PANEL) {
      for (int64_t w = 0; w < PANEL; ++w) {
        const uint16_t* even = rows + (first + 2 * w) * row_step + c;
        Isa::interleave(even, even + row_step, block[w]);
      }
      Isa::transpose(lines, 0, step, to + c * step + first / 2);
    }
  }
}

// The left factor of a sum over rows, which are taken by twos: a word of each column for each two.
// A processor's tiles want a column's words side by side, all else those of a panel's columns.
template <class Isa>
struct ColumnFactor {
  uint32_t* words;
  int64_t num_columns;
  int64_t num_words;

  // Takes rows, `row_step` apart, as words from `first_word` on; their number is a multiple of
  // ROW_MULTIPLE.
  void put(const uint16_t* rows, int64_t row_step, int64_t num_rows, int64_t first_word) const {
    if constexpr (Isa::HAS_TILES) {
      return turn_rows<Isa>(rows, row_step, num_rows, num_columns, words + first_word, num_words);
    }
    uint32_t* to = words + first_word * PANEL;
    for (int64_t r = 0; r < num_rows; r += 2, rows += 2 * row_step, to += PANEL) {
      for (int64_t c = 0; c < num_columns; c += PANEL) {
        Isa::interleave(rows + c, rows + row_step + c, to + c * num_words);
      }
    }
  }

  // Columns from one on, as rows of a product.
  auto from(int64_t column) const {
    if constexpr (Isa::HAS_TILES) {
      return WordRows{words + column * num_words, num_words};
    } else {
      return WordColumns{words, num_words * PANEL, 0}.from(column);
    }
  }
};

}  // namespace moestro::MOESTRO_ISA
