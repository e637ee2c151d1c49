// Exponential, sigmoid and SiLU, right to two units in the last place; norms. Next: inputs.h.

#pragma once

#include <cmath>

#include "kernels.h"

namespace moestro::MOESTRO_ISA {

// Terms of the exponential's series: right to two units in the last place of float32; and to three
// in a million, which is more than bfloat16 can tell.
constexpr int FLOAT32_TERMS = 7, BFLOAT16_TERMS = 5;

// exp(x) = 2^n exp(r) with |r| <= ln(2) / 2; the coefficients are Taylor's, which suffice there.
template <class Isa, int TERMS = FLOAT32_TERMS>
[[gnu::always_inline]] inline typename Isa::Lanes exponential(typename Isa::Lanes x) {
  using Lanes = typename Isa::Lanes;
  static_assert(TERMS == FLOAT32_TERMS || TERMS == BFLOAT16_TERMS, "one beginning for each");
  // Beyond these the power of two would leave its field; NaN takes the bound, and silu restores it.
  constexpr float LEAST = -87.0f, MOST = 88.0f;
  // ln(2) in two parts, so that n times the first is exact.
  constexpr float LOG2_E = 1.44269504f, LN2_FIRST = 0.693359375f, LN2_REST = -2.12194440e-4f;
  x = Isa::larger(Isa::smaller(x, Isa::fill(MOST)), Isa::fill(LEAST));
  const Lanes n = Isa::round(Isa::multiply(x, Isa::fill(LOG2_E)));
  Lanes r = Isa::multiply_add(n, Isa::fill(-LN2_FIRST), x);
  r = Isa::multiply_add(n, Isa::fill(-LN2_REST), r);
  Lanes sum = Isa::fill(TERMS == FLOAT32_TERMS ? 1.0f / 5040 : 1.0f / 120);
  if constexpr (TERMS == FLOAT32_TERMS) {
    sum = Isa::multiply_add(sum, r, Isa::fill(1.0f / 720));
    sum = Isa::multiply_add(sum, r, Isa::fill(1.0f / 120));
  }
  sum = Isa::multiply_add(sum, r, Isa::fill(1.0f / 24));
  sum = Isa::multiply_add(sum, r, Isa::fill(1.0f / 6));
  sum = Isa::multiply_add(sum, r, Isa::fill(0.5f));
  sum = Isa::multiply_add(sum, r, Isa::fill(1.0f));
  sum = Isa::multiply_add(sum, r, Isa::fill(1.0f));
  return Isa::scale_by_power(sum, n);
}

template <class Isa, int TERMS = FLOAT32_TERMS>
typename Isa::Lanes one_plus_inverse_exponential(typename Isa::Lanes x) {
  return Isa::add(Isa::fill(1.0f), exponential<Isa, TERMS>(Isa::multiply(x, Isa::fill(-1.0f))));
}

template <class Isa, int TERMS = FLOAT32_TERMS>
typename Isa::Lanes silu(typename Isa::Lanes x) {
  return Isa::divide(x, one_plus_inverse_exponential<Isa, TERMS>(x));
}

// Calls work(lanes, start, count) for sixteen numbers at a time; the last lanes may be filled up
// with `filling`. Every number gets the same arithmetic, wherever it lies.
template <class Isa, class Work>
void by_lanes(const float* x, int64_t number, float filling, Work work) {
  int64_t i = 0;
  for (; i + PANEL <= number; i += PANEL) work(Isa::load(x + i), i, PANEL);
  if (i == number) return;
  float some[PANEL];
  for (int64_t c = 0; c < PANEL; ++c) some[c] = i + c < number ? x[i + c] : filling;
  work(Isa::load(some), i, number - i);
}

template <class Isa>
void store_some(typename Isa::Lanes a, float* to, int64_t count) {
  if (count == PANEL) return Isa::store(a, to);
  float some[PANEL];
  Isa::store(a, some);
  for (int64_t c = 0; c < count; ++c) to[c] = some[c];
}

// y = exp(x - most), for the greatest number of x, which it
// returns: a softmax but for the division.
template <class Isa>
float fill_exponentials(const float* x, int64_t number, float* y) {
  float most = x[0];
  for (int64_t i = 1; i < number; ++i) most = x[i] > most ? x[i] : most;
  by_lanes<Isa>(x, number, 0.0f, [&](typename Isa::Lanes a, int64_t start, int64_t count) {
    store_some<Isa>(exponential<Isa>(Isa::add(a, Isa::fill(-most))), y + start, count);
  });
  return most;
}

template <class Isa>
void fill_sigmoids(const float* x, int64_t number, float* y) {
  by_lanes<Isa>(x, number, 0.0f, [&](typename Isa::Lanes a, int64_t start, int64_t count) {
    const auto value = Isa::divide(Isa::fill(1.0f), one_plus_inverse_exponential<Isa>(a));
    store_some<Isa>(value, y + start, count);
  });
}

// y = weight * x / sqrt(mean(x^2) + epsilon).
template <class Isa>
void normalize(const float* x, const float* weight, float epsilon, int64_t number, float* y) {
  typename Isa::Lanes squares = Isa::fill(0.0f);
  by_lanes<Isa>(x, number, 0.0f, [&](typename Isa::Lanes a, int64_t, int64_t) {
    squares = Isa::multiply_add(a, a, squares);
  });
  const auto scale =
      Isa::fill(1.0f / std::sqrt(Isa::sum(squares) / static_cast<float>(number) + epsilon));
  by_lanes<Isa>(x, number, 0.0f, [&](typename Isa::Lanes a, int64_t start, int64_t count) {
    float some[PANEL] = {};
    for (int64_t c = 0; c < count; ++c) some[c] = weight[start + c];
    store_some<Isa>(Isa::multiply(Isa::multiply(a, scale), Isa::load(some)), y + start, count);
  });
}

}  // namespace moestro::MOESTRO_ISA
