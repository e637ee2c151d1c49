// Products in plain loops, in double, with inputs rounded as the weights' format asks.
// Next: products.cpp.

#pragma once

#include "matrix.h"

namespace moestro::check {

inline std::vector<float> rounded(const float* x, int64_t depth, Format format) {
  std::vector<float> out(x, x + depth);
  if (format == Format::bfloat16) {
    for (float& each : out) each = from_bits(to_bfloat16(each) << 16);
  }
  if (!is_quantized(format)) return out;
  for (int64_t start = 0; start < depth; start += GROUP) {
    const int64_t end = smaller(start + GROUP, depth);
    float most = 0.0f;
    for (int64_t d = start; d < end; ++d) most = std::fmax(most, std::fabs(x[d]));
    const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
    for (int64_t d = start; d < end; ++d) out[d] = std::nearbyint(x[d] * inverse) * (most / 127.0f);
  }
  return out;
}

// A sum, and the sum of its terms' sizes, which says how exact it can be.
struct Sum {
  double value = 0.0;
  double size = 0.0;

  void add(double term, double term_size) {
    value += term;
    size += term_size;
  }
};

inline Sum dot(const std::vector<float>& x, const float* weights) {
  Sum sum;
  for (size_t d = 0; d < x.size(); ++d) {
    const double term = static_cast<double>(x[d]) * weights[d];
    sum.add(term, std::fabs(term));
  }
  return sum;
}

inline bool is_near(float found, const Sum& expected, double tolerance) {
  // A NaN is near nothing.
  return std::fabs(found - expected.value) <= tolerance * expected.size + 1e-30;
}

}  // namespace moestro::check
