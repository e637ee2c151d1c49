// AVX-512 with BF16's dot products beside VNNI's: one instruction
// multiplies two bfloat16 and adds both. Next: numbers.h.

#pragma once

#include "isa_avx512vnni.h"

namespace moestro {

struct Avx512 : Avx512Vnni {
  // Sixteen columns of two rows of bfloat16.
  using Paired = Words;
  static constexpr int tile_panels(bool is_quantized, int) { return is_quantized ? 2 : 4; }

  // 24 sums, and what they are made of.
  static constexpr int BAND_ROWS = 8;
  static constexpr int BAND_PANELS = 3;
  static constexpr bool SPLITS_PAIRS = false;

  static Lanes add_pairs(Lanes sum, Words weights, Words x) {
    return {_mm512_dpbf16_ps(sum.value, (__m512bh)weights.value, (__m512bh)x.value)};
  }

  static void store_bfloat16(Lanes a, uint16_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(a.value));
  }
  static void store_pairs(Lanes low, Lanes high, uint32_t* to) {
    const __m512i below = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low.value));
    const __m512i above = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high.value));
    _mm512_storeu_si512(to, _mm512_or_si512(below, _mm512_slli_epi32(above, 16)));
  }
  // Sixteen columns and the next, numbers of two rows in turn.
  static void pair_up(const uint32_t* even, const uint32_t* odd, Paired& first, Paired& second) {
    const __m512i step = _mm512_set1_epi32(0x00010001), start = _mm512_set1_epi32(0x00200000);
    const __m512i column = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i low = _mm512_add_epi32(_mm512_mullo_epi32(column, step), start);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(0x00100010));
    const __m512i a = _mm512_loadu_si512(even), b = _mm512_loadu_si512(odd);
    first = {_mm512_permutex2var_epi16(a, low, b)};
    second = {_mm512_permutex2var_epi16(a, high, b)};
  }
  static void put_in_order(Lanes&, Lanes&) {}
};

}  // namespace moestro
