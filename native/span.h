// A span of cached keys against some queries, the keys as they lie in their pages: scores take the
// queries as panels and keys as rows, mixtures the latents as panels and queries as rows. Nothing
// of what many queries share is copied or packed. Next: weigh.h, attention.h.

#pragma once

#include <type_traits>

#include "inputs.h"
#include "plan.h"

namespace moestro::MOESTRO_ISA {

// Keys whose scores are held at once.
constexpr int64_t SPAN = 64;
// How many keys ahead one is asked for.
constexpr int64_t AHEAD = 16;
// Latent columns that are mixed at once.
constexpr int64_t MIXED = 2 * PANEL;
// Words of two keys each.
constexpr int64_t SPAN_WORDS = SPAN / 2;

template <class Isa, Format F, class Panel, class Passing>
typename Isa::Lanes add_word(typename Isa::Lanes sum, Panel panel, Passing passing) {
  if constexpr (F == Format::float32) {
    return Isa::add_floats(sum, panel, passing);
  } else {
    return Isa::add_pairs(sum, panel, passing);
  }
}

// Adds WORDS words' products from `start` on. Keys that one panel of queries reads once come from far:
// a key's words are taken some at a time, and the key AHEAD of it is asked for, as processors do not
// see by themselves where sixteen rows read in turn lead.
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

// The same for PANEL words of bfloat16, where they are multiplied as floats: each key's are split once.
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

// Scores of keys by a processor's tiles: `panels` panels of queries, keys of whole tiles of words. Keys that
// do not lie side by side are brought together in `rows`, room for TILED_ROWS of them.
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

// Some queries that see the same keys: the first of them, how many, the keys and their number.
struct Seeing {
  int64_t first;
  int64_t number;
  const uint32_t* const* keys;
  int64_t num_keys;
};

// The running softmax of one query over some keys; its mixture is not divided by `sum` yet.
struct Part {
  float most;
  float sum;
};

// One thread's memory for a task of some queries.
struct Span {
  Span(Workspace& workspace, Format format, int64_t cache_width, int64_t mixture_width,
       bool has_tiles)
      : is_copied(cache_width < mixture_width || cache_width % inputs_per_word(format) != 0),
        is_tiled(has_tiles && format == Format::bfloat16 && !is_copied &&
                 cache_width % (2 * TILED_WORDS) == 0),
        row_words(num_words(format, larger(cache_width, mixture_width))),
        queries(workspace.take<uint32_t>(num_words(format, cache_width) * TASK_QUERIES)),
        copies(workspace.take<uint32_t>(is_copied ? SPAN * row_words : 0)),
        no_key(workspace.take<uint32_t>(row_words)),
        seen(workspace.take<const uint32_t*>(TASK_QUERIES * SPAN)),
        groups(workspace.take<Seeing>(TASK_QUERIES)),
        scores(workspace.take<float>(SPAN * TASK_QUERIES)),
        weights(workspace.take<uint32_t>(SPAN * TASK_QUERIES)),
        parts(workspace.take<Part>(TASK_QUERIES)),
        mixtures(workspace.take<float>(TASK_QUERIES * mixture_width)),
        rows(workspace.take<uint32_t>(is_tiled ? TILED_ROWS * row_words : 0)),
        turned(workspace.take<uint32_t>(is_tiled ? (TASK_QUERIES + TILED_ROWS) * SPAN_WORDS : 0)) {
    std::memset(no_key, 0, sizeof(uint32_t) * row_words);
  }

  // Goes on with a query's softmax where it was.
  void begin(int64_t q, const Part& part) {
    most[q] = part.most;
    sums[q] = part.sum;
  }

  // Rows too short for whole panels of columns, or not of whole words, are copied and filled up.
  const bool is_copied;
  // Whether products go by a processor's tiles; for a query's mixtures, where it sees a whole span.
  const bool is_tiled;
  const int64_t row_words;
  uint32_t* queries;
  uint32_t* copies;
  uint32_t* no_key;
  // With the first of the next span, or no keys, behind them.
  const uint32_t* keys[SPAN + AHEAD];
  // By row of the batch, where some of a span's keys are not seen by all.
  const uint32_t** seen;
  Seeing* groups;
  int64_t num_groups = 0;
  // By query: how many of the span's keys it sees, and its softmax so far.
  int64_t num_seen[TASK_QUERIES];
  float most[TASK_QUERIES], sums[TASK_QUERIES], factors[TASK_QUERIES];
  float* scores;
  uint32_t* weights;
  Part* parts;
  float* mixtures;
  // Keys brought together, and weights by query, for tiles.
  uint32_t *rows, *turned;
};

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

// Weights of a span: word w of query q lies at w * stride + q, of two keys in bfloat16, unless those are
// multiplied as floats: then of one. `factors` bring the mixtures so far to the measure of these weights.
struct Weights {
  const uint32_t* words;
  int64_t stride;
  const float* factors;
};

// Whether a span's weights are kept as floats, for keys of bfloat16.
template <class Isa, Format F>
constexpr bool splits_weights() {
  return Isa::SPLITS_PAIRS && F == Format::bfloat16;
}

template <class Isa, Format F>
constexpr int64_t words_per_weight() {
  return splits_weights<Isa, F>() ? 2 : 1;
}

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
    std::conditional_t<F == Format::float32, typename Isa::Words, typename Isa::Paired> first, second;
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
