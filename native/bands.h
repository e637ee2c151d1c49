// Products of bfloat16 matrices as training needs them: forward, and both ways back. Where inference
// packs a matrix once, here weights change with every step and tokens with every layer, so packing
// is part of the product. Next: experts_training.h.
//
// The inner dimension goes by twos, one word for two bfloat16. A matrix's columns lie in bands of a
// tile's width (the last may be narrower, in whole panels), word after word within a band: column c
// of word w is at `band + w * width + c`. Every output is one chain of sums.

#pragma once

#include <cstring>

#include "numbers.h"
#include "tiles.h"
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

// Columns of words, word after word within a panel, panels `step` apart: the left side of a sum over
// rows. `at` is for columns of the first panel.
struct WordColumns {
  const uint32_t* words;
  int64_t step;
  // Where the first column lies in its panel.
  int64_t place;
  const uint32_t* at(int64_t c, int64_t w) const { return words + w * PANEL + place + c; }
  WordColumns from(int64_t c) const { return {words + c / PANEL * step, step, c % PANEL}; }
};

// Words of a tile's rows or columns as floats, for processors that do not multiply bfloat16: each of
// them passes all panels of a tile, and is split once.
template <class Isa>
class SplitWords {
 public:
  // Reads whole rows' words; what is behind a row's last one is not asked for.
  void take(const WordRows& rows, int64_t first, int64_t count) {
    first_ = 0;
    row_step_ = MOST;
    word_step_ = 1;
    for (int r = 0; r < Isa::BAND_ROWS; ++r) {
      const uint32_t* words = rows.at(r, first);
      int64_t w = 0;
      for (; w + PANEL <= count; w += PANEL) put(words + w, r * MOST + w);
      uint32_t last[PANEL] = {};
      if (w == count) continue;
      std::memcpy(last, words + w, sizeof(uint32_t) * (count - w));
      put(last, r * MOST + w);
    }
  }
  // Reads whole panels, whose columns of a tile are some.
  void take(const WordColumns& columns, int64_t first, int64_t count) {
    row_step_ = 1;
    word_step_ = PANEL;
    first_ = columns.place;
    for (int64_t w = 0; w < count; ++w) put(columns.words + (first + w) * PANEL, w * PANEL);
  }

  typename Isa::Paired at(int r, int64_t w) const {
    const int64_t place = first_ + r * row_step_ + w * word_step_;
    return {Isa::fill(even_[place]), Isa::fill(odd_[place])};
  }

  // As many as stay in the nearest cache beside what they are multiplied with.
  static constexpr int64_t MOST = 64;

 private:
  void put(const uint32_t* words, int64_t place) {
    const typename Isa::Paired split = Isa::split(Isa::load(words));
    Isa::store(split.even, even_ + place);
    Isa::store(split.odd, odd_ + place);
  }

  int64_t first_ = 0, row_step_ = 0, word_step_ = 0;
  alignas(64) float even_[PANEL * MOST], odd_[PANEL * MOST];
};

template <class Isa, int PANELS>
using BandSums = typename Isa::Lanes[Isa::BAND_ROWS][PANELS];

// Adds the products of a tile's rows with the panels of `count` words; take(r, w) is word w of row r.
template <class Isa, int PANELS, class Take>
inline void add_products(const uint32_t* band, int64_t count, const Take& take,
                         BandSums<Isa, PANELS>& sums) {
  for (int64_t w = 0; w < count; ++w, band += PANELS * PANEL) {
    decltype(take(0, w)) right[PANELS];
#pragma GCC unroll 16
    for (int p = 0; p < PANELS; ++p) {
      const auto words = Isa::load(band + p * PANEL);
      if constexpr (Isa::SPLITS_PAIRS) {
        right[p] = Isa::split(words);
      } else {
        right[p] = words;
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Isa::BAND_ROWS; ++r) {
      const auto passing = take(r, w);
#pragma GCC unroll 16
      for (int p = 0; p < PANELS; ++p) sums[r][p] = Isa::add_pairs(sums[r][p], right[p], passing);
    }
  }
}

template <class Isa, int PANELS, class Left, class Emit>
void multiply_tile(const Left& all, int64_t first_row, const uint32_t* band, int64_t num_words,
                   int64_t num_rows, Emit& emit) {
  constexpr int ROWS = Isa::BAND_ROWS;
  static_assert(PANEL % ROWS == 0, "a tile's columns are of one panel");
  const Left left = all.from(first_row);
  BandSums<Isa, PANELS> sums;
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
    for (int p = 0; p < PANELS; ++p) sums[r][p] = Isa::fill(0.0f);
  }
  if constexpr (Isa::SPLITS_PAIRS) {
    SplitWords<Isa> words;
    for (int64_t first = 0; first < num_words; first += words.MOST) {
      const int64_t count = smaller(words.MOST, num_words - first);
      words.take(left, first, count);
      add_products<Isa, PANELS>(band + first * PANELS * PANEL, count,
                                [&](int r, int64_t w) { return words.at(r, w); }, sums);
    }
  } else {
    add_products<Isa, PANELS>(band, num_words,
                              [&](int r, int64_t w) { return Isa::fill_word(left.at(r, w)); }, sums);
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    if (r >= num_rows) break;
#pragma GCC unroll 16
    for (int p = 0; p < PANELS; ++p) emit(first_row + r, p * PANEL, sums[r][p]);
  }
}

// The same by a processor's tiles, for a band of one or two panels.
template <class Isa, class Emit>
void multiply_tiled(const WordRows& left, const uint32_t* band, int64_t num_panels,
                    int64_t num_words, int64_t num_rows, Emit& emit) {
  alignas(64) typename Isa::TiledSums sums;
  for (int64_t first = 0; first < num_rows; first += TILED_ROWS) {
    const int64_t rows = smaller(TILED_ROWS, num_rows - first);
    Isa::multiply_tiles(left.at(first, 0), left.step, rows, band, num_panels * PANEL, num_panels,
                        num_words, sums);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t p = 0; p < num_panels; ++p) {
        emit(first + r, p * PANEL, Isa::load(sums[r] + p * PANEL));
      }
    }
  }
}

// Multiplies rows by the first words of one band and calls emit(row, column in the band, sixteen
// outputs). Rows are read in whole tiles: behind the last there must be memory for as many as fill
// one up.
template <class Isa, class Left, class Emit>
void multiply_band(const Left& left, int64_t num_rows, const Bands<Isa>& right, int64_t b,
                   int64_t words, Emit emit) {
  static_assert(Isa::BAND_PANELS <= 3, "one case for each number of panels");
  const uint32_t* band = right.band(b);
  const int64_t panels = right.plan.width(b) / PANEL;
  if constexpr (Isa::HAS_TILES) {
    multiply_tiled<Isa>(left, band, panels, words, num_rows, emit);
  } else {
    for (int64_t first = 0; first < num_rows; first += Isa::BAND_ROWS) {
      const int64_t rows = smaller(Isa::BAND_ROWS, num_rows - first);
      if (panels == 1) multiply_tile<Isa, 1>(left, first, band, words, rows, emit);
      if constexpr (Isa::BAND_PANELS >= 2) {
        if (panels == 2) multiply_tile<Isa, 2>(left, first, band, words, rows, emit);
      }
      if constexpr (Isa::BAND_PANELS >= 3) {
        if (panels == 3) multiply_tile<Isa, 3>(left, first, band, words, rows, emit);
      }
    }
  }
}

// The same for the bands of the first columns, with the column in the whole matrix.
template <class Isa, class Left, class Emit>
void multiply_bands(const Left& left, int64_t num_rows, const Bands<Isa>& right,
                    int64_t num_columns, int64_t words, Emit emit) {
  for (int64_t b = 0; b < right.plan.number && right.plan.first(b) < num_columns; ++b) {
    const int64_t first = right.plan.first(b);
    multiply_band<Isa>(left, num_rows, right, b, words,
                       [&](int64_t row, int64_t column, typename Isa::Lanes sums) {
                         emit(row, first + column, sums);
                       });
  }
}

template <class Isa, class Left, class Emit>
void multiply_bands(const Left& left, int64_t num_rows, const Bands<Isa>& right, Emit emit) {
  multiply_bands<Isa>(left, num_rows, right, right.plan.num_columns, right.num_words, emit);
}

// How many rows and columns a block of a symmetric product has.
constexpr int64_t MIRROR_BLOCK = 2 * PANEL;
static_assert(WIDTH_MULTIPLE % MIRROR_BLOCK == 0, "matrices are whole blocks");

// The same where the product is symmetric: the blocks on and above its diagonal, and all that comes
// with them in a band. A sum of the same numbers in the same order, the rest has the same bits, and
// `mirror` copies it.
template <class Isa, class Left, class Emit>
void multiply_symmetric(const Left& left, int64_t num_rows, const Bands<Isa>& right, Emit emit) {
  for (int64_t b = 0; b < right.plan.number; ++b) {
    const int64_t first = right.plan.first(b);
    const int64_t end = round_up(first + right.plan.width(b), MIRROR_BLOCK);
    multiply_band<Isa>(left, smaller(num_rows, end), right, b, right.num_words,
                       [&](int64_t row, int64_t column, typename Isa::Lanes sums) {
                         emit(row, first + column, sums);
                       });
  }
}

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

// Completes a symmetric matrix of which the blocks on and above the diagonal are there.
template <class Isa>
void mirror(uint16_t* matrix, int64_t size) {
  uint32_t* words = reinterpret_cast<uint32_t*>(matrix);
  for (int64_t first = 0; first < size; first += MIRROR_BLOCK) {
    const int64_t next = first + MIRROR_BLOCK;
    turn_rows<Isa>(matrix + first * size + next, size, MIRROR_BLOCK, size - next,
                   words + (next * size + first) / 2, size / 2);
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

inline WordRows by_rows(const uint16_t* rows, int64_t width) {
  return {reinterpret_cast<const uint32_t*>(rows), width / 2};
}

}  // namespace moestro::MOESTRO_ISA
