// The likeliest tokens of a row, as many as are asked for or as together weigh so much: what top-k
// and top-p leave. Nothing sorts the vocabulary. What to cut off is searched by halving: each pass
// over the row is a few instructions for sixteen tokens, and a dozen passes leave few tokens around
// the border. Next: pick.h.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels.h"
#include "masks.h"

namespace moestro::MOESTRO_ISA {

// The tempered logit of a token that is ruled out.
constexpr float NEVER = -std::numeric_limits<float>::infinity();
// Where the search for a border begins: most lie near the likeliest token, and a narrow range to
// halve saves passes over the row.
constexpr float FIRST_BARS[] = {-32.0f, -1024.0f, std::numeric_limits<float>::lowest()};
// Tokens around a border that are few enough to be sorted.
constexpr int64_t FEW_TOKENS = 64;
// Numbers that are summed up in float32 before they go to a sum in float64.
constexpr int64_t SUMMED = 1024;

// How many tokens there are, or where tokens have weights, how much they weigh together.
struct Amount {
  int64_t number;
  double total;
};

// The amount of tokens that reach a bar.
inline Amount measure(const float* tempered, const float* weights, int64_t size, float bar) {
  Amount amount{0, 0.0};
  for (int64_t start = 0; start < size; start += SUMMED) {
    Sums sums;
    for (int64_t i = start; i < smaller(start + SUMMED, size); i += PANEL) {
      const uint32_t bits = reaching(tempered + i, bar);
      amount.number += __builtin_popcount(bits);
      if (weights != nullptr) sums.add(weights + i, bits);
    }
    amount.total += sums.total();
  }
  if (weights == nullptr) amount.total = static_cast<double>(amount.number);
  return amount;
}

// Calls work(token) for each that reaches a bar, in order.
template <class Work>
void each_reaching(const float* tempered, int64_t size, float bar, Work work) {
  for (int64_t i = 0; i < size; i += PANEL) {
    for (uint32_t bits = reaching(tempered + i, bar); bits != 0; bits &= bits - 1) {
      work(i + __builtin_ctz(bits));
    }
  }
}

// The likelier token goes first, the lower one among equals.
inline void sort_tokens(const float* tempered, int64_t* tokens, int64_t number) {
  std::sort(tokens, tokens + number, [=](int64_t a, int64_t b) {
    return tempered[a] != tempered[b] ? tempered[a] > tempered[b] : a < b;
  });
}

// Rules out what is less likely than a token, and equals behind it.
inline void cut(float* tempered, int64_t size, int64_t last) {
  const float edge = tempered[last];
  const float above = std::nextafter(edge, std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < size; i += PANEL) {
    uint32_t bits = reaching(tempered + i, above);
    if (i <= last) {
      const uint32_t before = last - i >= PANEL ? ALL_BITS : (2u << (last - i)) - 1;
      bits |= reaching(tempered + i, edge) & before;
    }
    keep(tempered + i, bits, NEVER);
  }
}

// Two bars that a border lies between: tokens that reach the low one amount to enough, unless all
// do not; those that reach the high one to too little.
struct Border {
  float low, high;
  Amount at_low, at_high;
};

// Halves what lies between until it is few tokens, or equals.
inline Border find_border(const float* tempered, const float* weights, int64_t size, double goal) {
  // The likeliest token is at 0: nothing reaches what is above.
  Border border{0.0f, std::numeric_limits<float>::min(), {0, 0.0}, {0, 0.0}};
  for (float low : FIRST_BARS) {
    border.low = low;
    border.at_low = measure(tempered, weights, size, low);
    if (border.at_low.total >= goal) break;
  }
  if (border.at_low.total < goal) return border;
  while (border.at_low.number - border.at_high.number > FEW_TOKENS) {
    const float middle = border.low + (border.high - border.low) / 2;
    // Between neighboring numbers there are only equals.
    if (!(border.low < middle && middle < border.high)) break;
    const Amount amount = measure(tempered, weights, size, middle);
    const bool is_reached = amount.total >= goal;
    (is_reached ? border.low : border.high) = middle;
    (is_reached ? border.at_low : border.at_high) = amount;
  }
  return border;
}

// Rules out all but the likeliest tokens that together reach an amount, as few of them as can be;
// keeps all where all do not. `room` has a place for each token.
inline void keep_likeliest(float* tempered, const float* weights, int64_t size, double goal,
                           int64_t* room) {
  const Border border = find_border(tempered, weights, size, goal);
  if (border.at_low.total < goal) return;
  int64_t number = 0, last = 0;
  each_reaching(tempered, size, border.low, [&](int64_t t) {
    if (tempered[t] < border.high) room[number++] = t;
  });
  // More than a few are equals, and in order already.
  if (number <= FEW_TOKENS) sort_tokens(tempered, room, number);
  double total = border.at_high.total;
  for (; last + 1 < number; ++last) {
    total += weights == nullptr ? 1.0 : weights[room[last]];
    if (total >= goal) break;
  }
  cut(tempered, size, room[last]);
}

}  // namespace moestro::MOESTRO_ISA
