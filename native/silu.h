// Sigmoid and SiLU, with an exponential that is right to two units in the last place.
// Next: experts.h.

#pragma once

#include "kernels.h"

namespace moestro {

// exp(x) = 2^n exp(r) with |r| <= ln(2) / 2; the coefficients are Taylor's, which suffice there.
template <class V>
V exponential(V x) {
  // Beyond these the power of two would leave its field; NaN takes the bound, and silu restores it.
  x = V::larger(V::smaller(x, V::fill(88.0f)), V::fill(-87.0f));
  const V n = V::round(x * V::fill(1.44269504f));
  // ln(2) in two parts, so that n times the first is exact.
  V r = V::multiply_add(n, V::fill(-0.693359375f), x);
  r = V::multiply_add(n, V::fill(2.12194440e-4f), r);
  V sum = V::fill(1.0f / 5040);
  sum = V::multiply_add(sum, r, V::fill(1.0f / 720));
  sum = V::multiply_add(sum, r, V::fill(1.0f / 120));
  sum = V::multiply_add(sum, r, V::fill(1.0f / 24));
  sum = V::multiply_add(sum, r, V::fill(1.0f / 6));
  sum = V::multiply_add(sum, r, V::fill(0.5f));
  sum = V::multiply_add(sum, r, V::fill(1.0f));
  sum = V::multiply_add(sum, r, V::fill(1.0f));
  return sum * V::power_of_two(n);
}

template <class V>
V silu(V x) {
  return x / (V::fill(1.0f) + exponential(x * V::fill(-1.0f)));
}

// Every number gets the same arithmetic, wherever it lies: libraries treat the last few apart.
template <class V>
void fill_sigmoids(const float* x, int64_t number, float* y) {
  const V one = V::fill(1.0f);
  for (int64_t start = 0; start < number; start += V::WIDTH) {
    const int64_t length = number - start < V::WIDTH ? number - start : V::WIDTH;
    float some[V::WIDTH] = {};
    for (int64_t i = 0; i < length; ++i) some[i] = x[start + i];
    (one / (one + exponential(V::load(some) * V::fill(-1.0f)))).store(some);
    for (int64_t i = 0; i < length; ++i) y[start + i] = some[i];
  }
}

}  // namespace moestro
