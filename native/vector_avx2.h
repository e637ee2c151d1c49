// Eight floats in an AVX2 register. Next: silu.h.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace moestro {

struct Avx2 {
  static constexpr int WIDTH = 8;
  __m256 value;

  static Avx2 load(const float* from) { return {_mm256_loadu_ps(from)}; }
  // A bfloat16 is the upper half of a float.
  static Avx2 load(const uint16_t* from) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16))};
  }
  static Avx2 broadcast(const float* from) { return {_mm256_broadcast_ss(from)}; }
  static Avx2 fill(float number) { return {_mm256_set1_ps(number)}; }
  static Avx2 multiply_add(Avx2 a, Avx2 b, Avx2 c) {
    return {_mm256_fmadd_ps(a.value, b.value, c.value)};
  }
  static Avx2 smaller(Avx2 a, Avx2 b) { return {_mm256_min_ps(a.value, b.value)}; }
  static Avx2 larger(Avx2 a, Avx2 b) { return {_mm256_max_ps(a.value, b.value)}; }
  static Avx2 round(Avx2 a) {
    return {_mm256_round_ps(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  // 2^a for whole numbers.
  static Avx2 power_of_two(Avx2 a) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a.value), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
  }
  void store(float* to) const { _mm256_storeu_ps(to, value); }
};

inline Avx2 operator*(Avx2 a, Avx2 b) { return {_mm256_mul_ps(a.value, b.value)}; }
inline Avx2 operator+(Avx2 a, Avx2 b) { return {_mm256_add_ps(a.value, b.value)}; }
inline Avx2 operator/(Avx2 a, Avx2 b) { return {_mm256_div_ps(a.value, b.value)}; }

}  // namespace moestro
