// Products of bfloat16 matrices in bands: forward, and both ways back. Every output is one chain of
// sums, in order. Next: experts_training.h.

#pragma once

#include <cstring>

#include "bands.h"
#include "tiles.h"

namespace moestro::MOESTRO_ISA {

// Words of a tile's rows or columns as floats, for processors that do not multiply bfloat16: each
// of them passes all panels of a tile, and is split once.
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

// Where products put their outputs: rows of float32, or of the
// bfloat16 that they are rounded to, `step` numbers apart.
template <class Isa>
auto to_rows(float* rows, int64_t step) {
  return [=](int64_t row, int64_t column, typename Isa::Lanes sums) {
    Isa::store(sums, rows + row * step + column);
  };
}

template <class Isa>
auto to_rows(uint16_t* rows, int64_t step) {
  return [=](int64_t row, int64_t column, typename Isa::Lanes sums) {
    Isa::store_bfloat16(sums, rows + row * step + column);
  };
}

template <class Isa, int PANELS>
using BandSums = typename Isa::Lanes[Isa::BAND_ROWS][PANELS];

// Adds the products of a tile's rows with the panels of
// `count` words; take(r, w) is word w of row r.
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
    const auto take = [&](int r, int64_t w) { return Isa::fill_word(left.at(r, w)); };
    add_products<Isa, PANELS>(band, num_words, take, sums);
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

}  // namespace moestro::MOESTRO_ISA
