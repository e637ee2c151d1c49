// AVX2 with VNNI's dot products of bytes, as Intel's
// desktops and laptops have them. Next: numbers.h.

#pragma once

#include "isa_avx2.h"

namespace moestro {

struct AvxVnni : Avx2 {
  // What int8 weights have been made larger by when add_bytes has multiplied them.
  static constexpr int32_t BYTE_OFFSET = 128;
  static Words add_bytes(Words sum, Words weights, Words x) {
    return {_mm256_dpbusd_avx_epi32(sum.low, weights.low, x.low),
            _mm256_dpbusd_avx_epi32(sum.high, weights.high, x.high)};
  }
  static Words begin_nibbles(int32_t start) { return fill(start); }
  static Words add_nibbles(Words sum, Words weights, Words x) { return add_bytes(sum, weights, x); }
  static Words end_nibbles(Words sum, int32_t) { return sum; }
};

}  // namespace moestro
