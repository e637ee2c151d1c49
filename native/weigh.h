// Scores of a span's keys to weights, a panel of queries at a time: the running softmax
// (FlashAttention, arXiv 2205.14135). Knows no latents. Next: mixtures.h.

#pragma once

#include "scores.h"

namespace moestro::MOESTRO_ISA {

// Below any score, and still a number.
constexpr float NOTHING = -1e30f;
// Panels of a task's queries.
constexpr int64_t QUERY_PANELS = TASK_QUERIES / PANEL;
static_assert(TASK_QUERIES % PANEL == 0 && QUERY_PANELS == 3, "one case for each number of panels");

// Puts a number in the place of scores of keys that a query does not see.
template <int PANELS>
void hide(int64_t number, int64_t num_queries, float instead, Span& span) {
  for (int64_t q = 0; q < num_queries; ++q) {
    for (int64_t k = span.num_seen[q]; k < number; ++k) {
      span.scores[k * PANELS * PANEL + q] = instead;
    }
  }
}

// Turns a panel's scores to weights, and brings its queries' softmax so far to their measure.
template <class Isa, int PANELS>
void raise_peak(int64_t p, int64_t number, float softmax_scale, Span& span) {
  using Lanes = typename Isa::Lanes;
  constexpr int64_t STEP = PANELS * PANEL;
  const Lanes scale = Isa::fill(softmax_scale), minus = Isa::fill(-1.0f);
  float *scores = span.scores + p * PANEL, *most = span.most + p * PANEL;
  Lanes peak = Isa::load(most);
  for (int64_t k = 0; k < number; ++k) {
    const Lanes scaled = Isa::multiply(Isa::load(scores + k * STEP), scale);
    Isa::store(scaled, scores + k * STEP);
    peak = Isa::larger(peak, scaled);
  }
  const Lanes less = Isa::multiply(peak, minus);
  Isa::store(exponential<Isa>(Isa::add(Isa::load(most), less)), span.factors + p * PANEL);
  Isa::store(peak, most);
  for (int64_t k = 0; k < number; ++k) {
    const Lanes below = Isa::add(Isa::load(scores + k * STEP), less);
    Isa::store(exponential<Isa>(below), scores + k * STEP);
  }
}

// Sums a panel's weights and rounds them for the mixtures.
template <class Isa, Format F, int PANELS>
void put_weights(int64_t p, int64_t number, Span& span) {
  using Lanes = typename Isa::Lanes;
  constexpr int64_t STEP = PANELS * PANEL, EACH = inputs_per_word(F);
  Lanes sum = Isa::fill(0.0f);
  for (int64_t k = 0; k < number; k += EACH) {
    const float* scores = span.scores + k * STEP + p * PANEL;
    uint32_t* to = span.weights + k / EACH * words_per_weight<Isa, F>() * STEP + p * PANEL;
    const Lanes first = Isa::load(scores);
    sum = Isa::add(sum, first);
    if constexpr (F == Format::float32) {
      std::memcpy(to, scores, sizeof(float) * PANEL);
    } else {
      const Lanes second = k + 1 < number ? Isa::load(scores + STEP) : Isa::fill(0.0f);
      sum = Isa::add(sum, second);
      Isa::store_pairs(first, second, to);
      if constexpr (splits_weights<Isa, F>()) {
        const typename Isa::Paired split = Isa::split(Isa::load(to));
        std::memcpy(to, &split.even, sizeof split.even);
        std::memcpy(to + STEP, &split.odd, sizeof split.odd);
      }
    }
  }
  float* sums = span.sums + p * PANEL;
  const Lanes factor = Isa::load(span.factors + p * PANEL);
  Isa::store(Isa::multiply_add(Isa::load(sums), factor, sum), sums);
}

template <class Isa, Format F, int PANELS>
void weigh_panels(int64_t number, int64_t num_queries, int64_t num_words, float softmax_scale,
                  Span& span) {
  score_keys<Isa, F, PANELS>(span, number, num_words);
  hide<PANELS>(number, num_queries, NOTHING / softmax_scale, span);
  for (int64_t p = 0; p < PANELS; ++p) raise_peak<Isa, PANELS>(p, number, softmax_scale, span);
  hide<PANELS>(number, num_queries, 0.0f, span);
  for (int64_t p = 0; p < PANELS; ++p) put_weights<Isa, F, PANELS>(p, number, span);
}

// Weights of a span's first `number` keys, each of so many words, for its first queries; what a
// query does not see weighs nothing.
template <class Isa, Format F>
void weigh(int64_t number, int64_t num_queries, int64_t num_words, float softmax_scale,
           Span& span) {
  switch (divide_up(num_queries, PANEL)) {
    case 1: return weigh_panels<Isa, F, 1>(number, num_queries, num_words, softmax_scale, span);
    case 2: return weigh_panels<Isa, F, 2>(number, num_queries, num_words, softmax_scale, span);
    default: return weigh_panels<Isa, F, 3>(number, num_queries, num_words, softmax_scale, span);
  }
}

}  // namespace moestro::MOESTRO_ISA
