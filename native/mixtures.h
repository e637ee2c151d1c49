// Mixtures of a span's latents, or of its values, by weight: these are the panels, queries the
// rows. Next: attention.h.

#pragma once

#include <cstring>
#include <type_traits>

#include "span.h"

namespace moestro::MOESTRO_ISA {

// Latent columns that are mixed at once.
constexpr int64_t MIXED = 2 * PANEL;

// One query's weights of as many keys as a word of them holds, for all columns.
template <class Isa, Format F>
auto passing_weight(const uint32_t* words, int64_t stride) {
  if constexpr (splits_weights<Isa, F>()) {
    float even, odd;
    std::memcpy(&even, words, sizeof even);
    std::memcpy(&odd, words + stride, sizeof odd);
    return typename Isa::Paired{Isa::fill(even), Isa::fill(odd)};
  } else {
    return Isa::fill_word(words);
  }
}

// mixture[q][c] = mixture[q][c] * factor[q] + weights of q times the keys' numbers at c, for ROWS
// queries from `q` on and MIXED columns.
template <class Isa, Format F, int ROWS>
void mix_rows(const Seeing& seeing, int64_t q, const Weights& weights, int64_t column,
              float* mixtures, int64_t width) {
  typename Isa::Lanes sums[ROWS][2];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) sums[r][0] = sums[r][1] = Isa::fill(0.0f);
  const int64_t num_words = divide_up(seeing.num_keys, inputs_per_word(F));
  const uint32_t* passing = weights.words + q;
  const int64_t step = weights.stride * words_per_weight<Isa, F>();
  for (int64_t w = 0; w < num_words; ++w, passing += step) {
    std::conditional_t<F == Format::float32, typename Isa::Words, typename Isa::Paired> first,
        second;
    if constexpr (F == Format::float32) {
      first = Isa::load(seeing.keys[w] + column);
      second = Isa::load(seeing.keys[w] + column + PANEL);
    } else {
      Isa::pair_up(seeing.keys[2 * w] + column / 2, seeing.keys[2 * w + 1] + column / 2, first,
                   second);
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const auto weight = passing_weight<Isa, F>(passing + r, weights.stride);
      sums[r][0] = add_word<Isa, F>(sums[r][0], first, weight);
      sums[r][1] = add_word<Isa, F>(sums[r][1], second, weight);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    if constexpr (F != Format::float32) Isa::put_in_order(sums[r][0], sums[r][1]);
    float* to = mixtures + (q + r) * width + column;
    const auto factor = Isa::fill(weights.factors[q + r]);
    Isa::store(Isa::multiply_add(Isa::load(to), factor, sums[r][0]), to);
    Isa::store(Isa::multiply_add(Isa::load(to + PANEL), factor, sums[r][1]), to + PANEL);
  }
}

// The same for all of some queries: as many at a time as there are registers for, then halves.
template <class Isa, Format F, int ROWS = Isa::MIXED_ROWS>
void mix_columns(const Seeing& seeing, int64_t done, const Weights& weights, int64_t column,
                 float* mixtures, int64_t width) {
  for (; done + ROWS <= seeing.number; done += ROWS) {
    mix_rows<Isa, F, ROWS>(seeing, seeing.first + done, weights, column, mixtures, width);
  }
  if constexpr (ROWS > 1) {
    mix_columns<Isa, F, ROWS / 2>(seeing, done, weights, column, mixtures, width);
  }
}

// Weights as rows of words, one for each query, from words side by side by query.
template <class Isa>
void turn_weights(const Weights& weights, uint32_t* turned) {
  for (int64_t q = 0; q < weights.stride; q += PANEL) {
    for (int64_t w = 0; w < SPAN_WORDS; w += PANEL) {
      const uint32_t* lines[PANEL];
      for (int64_t i = 0; i < PANEL; ++i) lines[i] = weights.words + (w + i) * weights.stride + q;
      Isa::transpose(lines, 0, SPAN_WORDS, turned + q * SPAN_WORDS + w);
    }
  }
}

// mix_columns by a processor's tiles, for queries from `first` to `last` that see a whole span.
template <class Isa>
void mix_tiled(const uint32_t* const* keys, int64_t first, int64_t last, const uint32_t* turned,
               const float* factors, int64_t column, float* mixtures, int64_t width) {
  static_assert(MIXED == TILED_PANELS * PANEL && SPAN_WORDS % TILED_WORDS == 0, "whole tiles");
  alignas(64) uint32_t panels[SPAN_WORDS][MIXED];
  for (int64_t w = 0; w < SPAN_WORDS; ++w) {
    typename Isa::Words some, next;
    Isa::pair_up(keys[2 * w] + column / 2, keys[2 * w + 1] + column / 2, some, next);
    Isa::store_words(some, panels[w]);
    Isa::store_words(next, panels[w] + PANEL);
  }
  alignas(64) typename Isa::TiledSums sums;
  for (int64_t q = first; q < last; q += TILED_ROWS) {
    const int64_t number = smaller(TILED_ROWS, last - q);
    Isa::multiply_tiles(turned + q * SPAN_WORDS, SPAN_WORDS, number, panels[0], MIXED,
                        TILED_PANELS, SPAN_WORDS, sums);
    for (int64_t r = 0; r < number; ++r) {
      float* to = mixtures + (q + r) * width + column;
      const auto factor = Isa::fill(factors[q + r]);
      for (int64_t c = 0; c < MIXED; c += PANEL) {
        const auto sum = Isa::load(sums[r] + c);
        Isa::store(Isa::multiply_add(Isa::load(to + c), factor, sum), to + c);
      }
    }
  }
}

}  // namespace moestro::MOESTRO_ISA
