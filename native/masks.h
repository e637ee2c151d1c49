// Sixteen truth values as bits, and what is done with floats where they are set. Written out for
// each processor: these loops decide how fast tokens are picked, and GCC 12 gets sums under a
// condition wrong when it vectorizes them by itself for AVX2. Next: likeliest.h.

#pragma once

#include <cstdint>

#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace moestro::MOESTRO_ISA {

constexpr uint32_t ALL_BITS = (1u << PANEL) - 1;

#if defined(__AVX512F__)

// Which numbers are at least so great: a NaN is not.
inline uint32_t reaching(const float* x, float bar) {
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(x), _mm512_set1_ps(bar), _CMP_GE_OQ);
}

inline uint32_t not_numbers(const float* x) {
  const __m512 a = _mm512_loadu_ps(x);
  return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
}

// Puts another number in place of those whose bits are not set.
inline void keep(float* x, uint32_t bits, float other) {
  const __mmask16 mask = static_cast<__mmask16>(bits);
  _mm512_storeu_ps(x, _mm512_mask_loadu_ps(_mm512_set1_ps(other), mask, x));
}

// Sixteen sums.
class Sums {
 public:
  void add(const float* x, uint32_t bits) {
    const __mmask16 mask = static_cast<__mmask16>(bits);
    sums_ = _mm512_mask_add_ps(sums_, mask, sums_, _mm512_loadu_ps(x));
  }
  float total() const { return _mm512_reduce_add_ps(sums_); }

 private:
  __m512 sums_ = _mm512_setzero_ps();
};

#elif defined(__AVX2__)

inline uint32_t reaching(const float* x, float bar) {
  const __m256 low = _mm256_cmp_ps(_mm256_loadu_ps(x), _mm256_set1_ps(bar), _CMP_GE_OQ);
  const __m256 high = _mm256_cmp_ps(_mm256_loadu_ps(x + 8), _mm256_set1_ps(bar), _CMP_GE_OQ);
  return static_cast<uint32_t>(_mm256_movemask_ps(low) | _mm256_movemask_ps(high) << 8);
}

inline uint32_t not_numbers(const float* x) {
  const __m256 low = _mm256_loadu_ps(x), high = _mm256_loadu_ps(x + 8);
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(low, low, _CMP_UNORD_Q)) |
                               _mm256_movemask_ps(_mm256_cmp_ps(high, high, _CMP_UNORD_Q)) << 8);
}

// Eight bits as eight lanes, all ones or all zeros.
inline __m256 spread(uint32_t bits) {
  const __m256i each = _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int32_t>(bits)), each);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, each));
}

inline void keep(float* x, uint32_t bits, float other) {
  for (int i = 0; i < PANEL; i += 8, bits >>= 8) {
    const __m256 a = _mm256_loadu_ps(x + i);
    _mm256_storeu_ps(x + i, _mm256_blendv_ps(_mm256_set1_ps(other), a, spread(bits)));
  }
}

class Sums {
 public:
  void add(const float* x, uint32_t bits) {
    low_ = _mm256_add_ps(low_, _mm256_and_ps(_mm256_loadu_ps(x), spread(bits)));
    high_ = _mm256_add_ps(high_, _mm256_and_ps(_mm256_loadu_ps(x + 8), spread(bits >> 8)));
  }
  float total() const {
    float sums[PANEL], total = 0.0f;
    _mm256_storeu_ps(sums, low_);
    _mm256_storeu_ps(sums + 8, high_);
    for (float sum : sums) total += sum;
    return total;
  }

 private:
  __m256 low_ = _mm256_setzero_ps(), high_ = _mm256_setzero_ps();
};

#else

inline uint32_t reaching(const float* x, float bar) {
  uint32_t bits = 0;
  for (uint32_t c = 0; c < PANEL; ++c) bits |= static_cast<uint32_t>(x[c] >= bar) << c;
  return bits;
}

inline uint32_t not_numbers(const float* x) {
  uint32_t bits = 0;
  for (uint32_t c = 0; c < PANEL; ++c) bits |= static_cast<uint32_t>(x[c] != x[c]) << c;
  return bits;
}

inline void keep(float* x, uint32_t bits, float other) {
  for (uint32_t c = 0; c < PANEL; ++c) x[c] = bits >> c & 1u ? x[c] : other;
}

class Sums {
 public:
  void add(const float* x, uint32_t bits) {
    for (; bits != 0; bits &= bits - 1) sums_[__builtin_ctz(bits)] += x[__builtin_ctz(bits)];
  }
  float total() const {
    float total = 0.0f;
    for (float sum : sums_) total += sum;
    return total;
  }

 private:
  float sums_[PANEL] = {};
};

#endif

}  // namespace moestro::MOESTRO_ISA
