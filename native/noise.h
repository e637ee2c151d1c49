// The noise that picks a token: a function of an answer's
// stream, of the position and of the token alone. Next: pick.h.

#pragma once

#include <cmath>
#include <cstdint>

#include "kernels.h"

#if defined(__AVX512DQ__)
#include <immintrin.h>
#endif

namespace moestro::MOESTRO_ISA {

// SplitMix64, as in moestro/ops/noise.py: a word of a stream. An answer's stream gives each of its
// positions a key, which gives each token the word that its noise is made of.
constexpr uint64_t GAMMA = 0x9E3779B97F4A7C15u, MIX_1 = 0xBF58476D1CE4E5B9u,
                   MIX_2 = 0x94D049BB133111EBu;

inline uint64_t noise_word(uint64_t stream, int64_t place) {
  uint64_t word = static_cast<uint64_t>(place) * GAMMA + stream;
  word ^= word >> 30;
  word *= MIX_1;
  word ^= word >> 27;
  word *= MIX_2;
  return word ^ word >> 31;
}

// The 31 highest bits of sixteen tokens' words, as floats.
inline void draw_floats(uint64_t key, int64_t first, float* drawn) {
#if defined(__AVX512DQ__)
  const __m512i steps = _mm512_mullo_epi64(_mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0),
                                           _mm512_set1_epi64(static_cast<int64_t>(GAMMA)));
  for (int i = 0; i < PANEL; i += 8) {
    const uint64_t start = static_cast<uint64_t>(first + i) * GAMMA + key;
    __m512i word = _mm512_add_epi64(steps, _mm512_set1_epi64(static_cast<int64_t>(start)));
    word = _mm512_xor_si512(word, _mm512_srli_epi64(word, 30));
    word = _mm512_mullo_epi64(word, _mm512_set1_epi64(static_cast<int64_t>(MIX_1)));
    word = _mm512_xor_si512(word, _mm512_srli_epi64(word, 27));
    word = _mm512_mullo_epi64(word, _mm512_set1_epi64(static_cast<int64_t>(MIX_2)));
    word = _mm512_xor_si512(word, _mm512_srli_epi64(word, 31));
    const __m256i high = _mm512_cvtepi64_epi32(_mm512_srli_epi64(word, 33));
    _mm256_storeu_ps(drawn + i, _mm256_cvtepi32_ps(high));
  }
#else
  for (int i = 0; i < PANEL; ++i) {
    drawn[i] = static_cast<float>(static_cast<int32_t>(noise_word(key, first + i) >> 33));
  }
#endif
}

// Gumbel noise of a word's 52 highest bits.
inline double gumbel(uint64_t word) {
  const double uniform = (static_cast<double>(word >> 12) + 0.5) * 0x1p-52;
  return -std::log(-std::log1p(-uniform));
}

// Fills in, for a panel, what sums of tempered logits and noise lie below.
template <class Isa>
void bound_sums(const float* tempered, int64_t first, uint64_t key, float* bounds) {
  constexpr float LN2 = 0.693147181f;
  // More than rounding and dropped bits may take off.
  constexpr float SLACK = 1e-3f;
  draw_floats(key, first, bounds);
  // The noise of u lies below -ln(u), and a float's bits, read as a number, are its log2 or less.
  const auto log2 = Isa::multiply_add(Isa::to_lanes(Isa::load(static_cast<const void*>(bounds))),
                                      Isa::fill(0x1p-23f), Isa::fill(-127.0f - 31.0f));
  const auto noise = Isa::multiply_add(log2, Isa::fill(-LN2), Isa::fill(SLACK));
  Isa::store(Isa::add(Isa::load(tempered + first), noise), bounds);
}

}  // namespace moestro::MOESTRO_ISA
