// The kernels for one vector type and every format: what avx2.cpp and portable.cpp have in common.
// Next: avx2.cpp.

#pragma once

#include "experts.h"
#include "multiply.h"

namespace moestro {

template <class V>
void multiply(const Product& product) {
  switch (product.weights.format) {
    case Format::float32: return Multiply<V, float>(product).run();
    case Format::bfloat16: return Multiply<V, uint16_t>(product).run();
  }
}

template <class V>
void apply_experts(const ExpertProduct& product) {
  switch (product.gate_up.format) {
    case Format::float32: return Experts<V, float>(product).run();
    case Format::bfloat16: return Experts<V, uint16_t>(product).run();
  }
}

}  // namespace moestro
