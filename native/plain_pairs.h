// Words moved about and rounded to bfloat16 in plain C++, for instruction sets without a faster way.
// Next: numbers.h.

#pragma once

#include <cstdint>
#include <cstring>

namespace moestro {

// A template, so that files for different processors do not share compiled code.
template <class Isa>
struct PlainPairs {
  static void transpose(const uint32_t* const* rows, int64_t start, int64_t step, uint32_t* to) {
    for (int w = 0; w < 16; ++w) {
      for (int r = 0; r < 16; ++r) std::memcpy(to + w * step + r, rows[r] + start + w, 4);
    }
  }
  static void interleave(const uint16_t* even, const uint16_t* odd, uint32_t* to) {
    for (int c = 0; c < 16; ++c) to[c] = even[c] | static_cast<uint32_t>(odd[c]) << 16;
  }
  // To nearest even; NaN stays NaN.
  static uint16_t round_bfloat16(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
  // Puts two numbers' halves into one word: to[c] has low[c] below high[c].
  template <class Lanes>
  static void store_pairs(const Lanes& low, const Lanes& high, uint32_t* to) {
    uint16_t below[16], above[16];
    Isa::store_bfloat16(low, below);
    Isa::store_bfloat16(high, above);
    for (int c = 0; c < 16; ++c) to[c] = below[c] | static_cast<uint32_t>(above[c]) << 16;
  }
};

}  // namespace moestro
