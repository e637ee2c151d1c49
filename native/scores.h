// Scores of a span's keys: queries are the panels, keys the rows. Next: weigh.h.

#pragma once

#include <cstring>

#include "span.h"

namespace moestro::MOESTRO_ISA {

// Adds WORDS words' products from `start` on. Keys that one panel of queries reads once come from
// far: a key's words are taken some at a time, and the key AHEAD of it is asked for, as processors
// do not see by themselves where sixteen rows read in turn lead.
template <class Isa, Format F, int ROWS, int PANELS, int WORDS>
[[gnu::always_inline]] inline void add_scores(const uint32_t* const* keys,
                                              const uint32_t* queries, int64_t start,
                                              typename Isa::Lanes (&sums)[ROWS][PANELS]) {
  typename Isa::Words panels[WORDS][PANELS];
#pragma GCC unroll 16
  for (int w = 0; w < WORDS; ++w) {
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) {
      panels[w][p] = Isa::load(queries + ((start + w) * PANELS + p) * PANEL);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    if constexpr (WORDS > 1) __builtin_prefetch(keys[r + AHEAD] + start);
#pragma GCC unroll 16
    for (int w = 0; w < WORDS; ++w) {
      const typename Isa::Words passing = Isa::fill_word(keys[r] + start + w);
#pragma GCC unroll 4
      for (int p = 0; p < PANELS; ++p) {
        sums[r][p] = add_word<Isa, F>(sums[r][p], panels[w][p], passing);
      }
    }
  }
}

// The same for PANEL words of bfloat16, where they are
// multiplied as floats: each key's are split once.
template <class Isa, int ROWS, int PANELS>
[[gnu::always_inline]] inline void add_split_scores(const uint32_t* const* keys,
                                                    const uint32_t* queries, int64_t start,
                                                    typename Isa::Lanes (&sums)[ROWS][PANELS]) {
  alignas(64) float even[ROWS][PANEL], odd[ROWS][PANEL];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    if constexpr (PANELS == 1) __builtin_prefetch(keys[r + AHEAD] + start);
    const typename Isa::Paired split = Isa::split(Isa::load(keys[r] + start));
    Isa::store(split.even, even[r]);
    Isa::store(split.odd, odd[r]);
  }
  const uint32_t* words = queries + start * PANELS * PANEL;
  for (int64_t w = 0; w < PANEL; ++w, words += PANELS * PANEL) {
    typename Isa::Paired panels[PANELS];
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) panels[p] = Isa::split(Isa::load(words + p * PANEL));
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const typename Isa::Paired passing = {Isa::fill(even[r][w]), Isa::fill(odd[r][w])};
#pragma GCC unroll 4
      for (int p = 0; p < PANELS; ++p) {
        sums[r][p] = Isa::add_pairs(sums[r][p], panels[p], passing);
      }
    }
  }
}

// scores[k][q] = key k times query q for ROWS keys; queries[w][q] are words of PANELS panels.
template <class Isa, Format F, int ROWS, int PANELS>
void score_rows(const uint32_t* const* keys, const uint32_t* queries, int64_t num_words,
                float* scores) {
  constexpr int WORDS = PANELS == 1 ? Isa::SCORED_WORDS : 1;
  typename Isa::Lanes sums[ROWS][PANELS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) sums[r][p] = Isa::fill(0.0f);
  }
  int64_t w = 0;
  if constexpr (Isa::SPLITS_PAIRS && F == Format::bfloat16) {
    for (; w + PANEL <= num_words; w += PANEL) {
      add_split_scores<Isa, ROWS, PANELS>(keys, queries, w, sums);
    }
  }
  for (; w + WORDS <= num_words; w += WORDS) {
    add_scores<Isa, F, ROWS, PANELS, WORDS>(keys, queries, w, sums);
  }
  for (; w < num_words; ++w) add_scores<Isa, F, ROWS, PANELS, 1>(keys, queries, w, sums);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) Isa::store(sums[r][p], scores + (r * PANELS + p) * PANEL);
  }
}

// Scores of keys by a processor's tiles: `panels` panels of queries, keys of whole tiles of words.
// Keys that do not lie side by side are brought together in `rows`, room for TILED_ROWS of them.
template <class Isa>
void score_tiled(const uint32_t* const* keys, int64_t number, const uint32_t* queries,
                 int64_t panels, int64_t num_words, uint32_t* rows, float* scores) {
  static_assert(SPAN % TILED_ROWS == 0, "whole tiles");
  alignas(64) typename Isa::TiledSums sums;
  for (int64_t k = 0; k < number; k += TILED_ROWS) {
    const uint32_t* from = keys[k];
    for (int64_t r = 1; r < TILED_ROWS && from != rows; ++r) {
      if (keys[k + r] != from + r * num_words) from = rows;
    }
    for (int64_t r = 0; r < TILED_ROWS && from == rows; ++r) {
      std::memcpy(rows + r * num_words, keys[k + r], sizeof(uint32_t) * num_words);
    }
    for (int64_t p = 0; p < panels; p += TILED_PANELS) {
      const int64_t some = smaller(TILED_PANELS, panels - p);
      Isa::multiply_tiles(from, num_words, TILED_ROWS, queries + p * PANEL, panels * PANEL, some,
                          num_words, sums);
      for (int64_t r = 0; r < TILED_ROWS; ++r) {
        float* to = scores + ((k + r) * panels + p) * PANEL;
        std::memcpy(to, sums[r], sizeof(float) * some * PANEL);
      }
    }
  }
}

// Scores of a span's first `number` keys; their list goes on to whole tiles.
template <class Isa, Format F, int PANELS>
void score_keys(Span& span, int64_t number, int64_t num_words) {
  if constexpr (Isa::HAS_TILES) {
    if (span.is_tiled) {
      return score_tiled<Isa>(span.keys, number, span.queries, PANELS, num_words, span.rows,
                              span.scores);
    }
  }
  constexpr int ROWS = Isa::score_rows(PANELS);
  static_assert(SPAN % ROWS == 0, "whole tiles");
  for (int64_t k = 0; k < number; k += ROWS) {
    score_rows<Isa, F, ROWS, PANELS>(span.keys + k, span.queries, num_words,
                                     span.scores + k * PANELS * PANEL);
  }
}

}  // namespace moestro::MOESTRO_ISA
