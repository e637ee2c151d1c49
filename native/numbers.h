// Exponential, sigmoid and SiLU, right to two units in the last place; norms. Next: inputs.h.

#pragma once

#include <cmath>

#include "kernels.h"

namespace moestro::MOESTRO_ISA {

// exp(x) = 2^n exp(r) with |r| <= ln(2) / 2; the coefficients are Taylor's, which suffice there. Of
// five terms the sum is right to three in a million, which is more than bfloat16 can tell.
template <class Isa, int TERMS = 7>
[[gnu::always_inline]] inline typename Isa::Lanes exponential(typename Isa::Lanes x) {
  using Lanes = typename Isa::Lanes;
  static_assert(TERMS == 5 || TERMS == 7, "one beginning for each");
  // Beyond these the power of two would leave its field; NaN takes the bound, and silu restores it.
  x = Isa::larger(Isa::smaller(x, Isa::fill(88.0f)), Isa::fill(-87.0f));
  const Lanes n = Isa::round(Isa::multiply(x, Isa::fill(1.44269504f)));
  // ln(2) in two parts, so that n times the first is exact.
  Lanes r = Isa::multiply_add(n, Isa::fill(-0.693359375f), x);
  r = Isa::multiply_add(n, Isa::fill(2.12194440e-4f), r);
  Lanes sum = Isa::fill(TERMS == 7 ? 1.0f / 5040 : 1.0f / 120);
  if constexpr (TERMS == 7) {
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

template <class Isa, int TERMS = 7>
typename Isa::Lanes one_plus_inverse_exponential(typename Isa::Lanes x) {
  return Isa::add(Isa::fill(1.0f), exponential<Isa, TERMS>(Isa::multiply(x, Isa::fill(-1.0f))));
}

template <class Isa, int TERMS = 7>
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
