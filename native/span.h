// A span of cached keys against some queries: what a thread holds of both, and how their weights
// lie. Keys are read as they lie in their pages: nothing of what many queries share is copied or
// packed. Next: scores.h.

#pragma once

#include <cstring>

#include "inputs.h"
#include "plan.h"

namespace moestro::MOESTRO_ISA {

// Keys whose scores are held at once.
constexpr int64_t SPAN = 64;
// How many keys ahead one is asked for: with eight words of a key at once the fastest, and nearer
// or further nothing gained (docs/log.md, "Decoding at 4,096 tokens of context").
constexpr int64_t AHEAD = 16;
// Words of two keys each.
constexpr int64_t SPAN_WORDS = SPAN / 2;

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

// Weights of a span: word w of query q lies at w * stride + q, of two
// keys in bfloat16, unless those are multiplied as floats: then of one.
// `factors` bring the mixtures so far to the measure of these weights.
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

}  // namespace moestro::MOESTRO_ISA
