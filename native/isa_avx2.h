// Sixteen lanes in two AVX2 registers. Next: numbers.h.

#pragma once

#include <immintrin.h>

#include <cstdint>

#include "plain_pairs.h"

namespace moestro {

struct Avx2 : PlainPairs<Avx2> {
  struct Lanes {
    __m256 low, high;
  };
  struct Words {
    __m256i low, high;
  };
  static constexpr int tile_panels(bool is_quantized, int num_rows) {
    return is_quantized ? 1 : num_rows == 1 ? 4 : num_rows <= 3 ? 2 : 1;
  }
  static constexpr int score_rows(int num_panels) { return num_panels == 1 ? 4 : 2; }
  // Words of a key that one panel of queries takes at once (span.h).
  static constexpr int SCORED_WORDS = 1;
  static constexpr bool HAS_TILES = false;
  static constexpr int READ_ONCE = 0;
  struct Tiles {};
  static constexpr int MIXED_ROWS = 2;

  static constexpr int BAND_PANELS = 1;

  static Lanes load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  static void store(Lanes a, float* to) {
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
  }
  static Lanes fill(float number) { return {_mm256_set1_ps(number), _mm256_set1_ps(number)}; }
  static Lanes load_half(const uint16_t* from) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(from);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  }
  static Lanes load_bfloat16(const uint16_t* from) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(from);
    return floats({_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(halves)), 16),
                   _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(halves + 1)), 16)});
  }
  static Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static Lanes add(Lanes a, Lanes b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }
  static Lanes multiply(Lanes a, Lanes b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  static Lanes divide(Lanes a, Lanes b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
  }
  static Lanes smaller(Lanes a, Lanes b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
  }
  static Lanes larger(Lanes a, Lanes b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
  }
  static Lanes absolute(Lanes a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
  }
  static Lanes round(Lanes a) {
    constexpr int NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, NEAREST), _mm256_round_ps(a.high, NEAREST)};
  }
  static Lanes scale_by_power(Lanes a, Lanes n) {
    return multiply(a, {power(n.low), power(n.high)});
  }
  static float sum(Lanes a) {
    float lanes[16], total = 0.0f;
    store(a, lanes);
    for (float lane : lanes) total += lane;
    return total;
  }
  static float largest(Lanes a) {
    float lanes[16];
    store(a, lanes);
    float most = lanes[0];
    for (float lane : lanes) most = lane > most ? lane : most;
    return most;
  }

  static Words load(const void* from) {
    const __m256i* words = static_cast<const __m256i*>(from);
    return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
  }
  static Words fill(int32_t number) {
    return {_mm256_set1_epi32(number), _mm256_set1_epi32(number)};
  }
  static Words fill_word(const uint32_t* from) { return fill(static_cast<int32_t>(*from)); }
  static Words low_nibbles(Words a) {
    const __m256i mask = _mm256_set1_epi8(0x0f);
    return {_mm256_and_si256(a.low, mask), _mm256_and_si256(a.high, mask)};
  }
  static Words high_nibbles(Words a) {
    return low_nibbles({_mm256_srli_epi16(a.low, 4), _mm256_srli_epi16(a.high, 4)});
  }
  static Lanes to_lanes(Words a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }

  static Lanes add_floats(Lanes sum, Words weights, Words x) {
    return multiply_add(floats(weights), floats(x), sum);
  }
  // A bfloat16 is the upper half of a float.
  static Lanes add_pairs(Lanes sum, Words weights, Words x) {
    return multiply_add(upper(weights), upper(x), multiply_add(lower(weights), lower(x), sum));
  }
  static Words add_bytes(Words sum, Words weights, Words x) {
    return {add_bytes(sum.low, weights.low, x.low), add_bytes(sum.high, weights.high, x.high)};
  }

  static void store_bfloat16(Lanes a, uint16_t* to) {
    float lanes[16];
    store(a, lanes);
    for (int i = 0; i < 16; ++i) to[i] = PlainPairs<Avx2>::round_bfloat16(lanes[i]);
  }
  static void store_int8(Lanes a, int8_t* to) {
    int32_t counts[16];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(counts), _mm256_cvtps_epi32(a.low));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(counts + 8), _mm256_cvtps_epi32(a.high));
    for (int i = 0; i < 16; ++i) to[i] = static_cast<int8_t>(counts[i]);
  }

  static void pair_up(const uint32_t* even, const uint32_t* odd, Words& first, Words& second) {
    first = {mix(even, odd, 0), mix(even, odd, 1)};
    second = {mix(even, odd, 2), mix(even, odd, 3)};
  }

 private:
  static __m256i mix(const uint32_t* even, const uint32_t* odd, int part) {
    const __m128i *a = reinterpret_cast<const __m128i*>(even) + part,
                  *b = reinterpret_cast<const __m128i*>(odd) + part;
    return _mm256_or_si256(_mm256_cvtepu16_epi32(_mm_loadu_si128(a)),
                           _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(b)), 16));
  }
  static __m256 power(__m256 a) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static Lanes floats(Words a) { return {_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(a.high)}; }
  static Lanes lower(Words a) {
    return floats({_mm256_slli_epi32(a.low, 16), _mm256_slli_epi32(a.high, 16)});
  }
  static Lanes upper(Words a) {
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return floats({_mm256_and_si256(a.low, mask), _mm256_and_si256(a.high, mask)});
  }
  // Even and odd bytes apart, as 16-bit numbers: products of bytes would not fit their sums.
  static __m256i add_bytes(__m256i sum, __m256i weights, __m256i x) {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(weights, _mm256_set1_epi16(0xff)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
    const __m256i odd =
        _mm256_madd_epi16(_mm256_srli_epi16(weights, 8), _mm256_srai_epi16(x, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
  }
};

}  // namespace moestro
