// Sixteen lanes in two AVX2 registers. Next: numbers.h.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace moestro {

struct Avx2 {
  struct Lanes {
    __m256 low, high;
  };
  struct Words {
    __m256i low, high;
  };
  // Sixteen columns of two rows, as floats: that is what they are multiplied as.
  struct Paired {
    Lanes even, odd;
  };
  static constexpr int tile_panels(bool is_quantized, int num_rows) {
    return num_rows > 3 ? 1 : is_quantized || num_rows > 1 ? 2 : 4;
  }
  static constexpr int score_rows(int num_panels) { return num_panels == 1 ? 4 : 2; }
  // Words of a key that one panel of queries takes at once (scores.h).
  static constexpr int SCORED_WORDS = 2;
  static constexpr bool HAS_TILES = false;
  struct Tiles {};
  static constexpr int MIXED_ROWS = 2;

  static constexpr int BAND_ROWS = 4;
  static constexpr int BAND_PANELS = 1;
  static constexpr bool SPLITS_PAIRS = false;

  static Lanes load(const float* from) {
    return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
  }
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
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static float largest(Lanes a) {
    const __m256 eight = _mm256_max_ps(a.low, a.high);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
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
  static Lanes add_pairs(Lanes sum, Paired weights, Words x) {
    return multiply_add(weights.odd, upper(x), multiply_add(weights.even, lower(x), sum));
  }
  // Products of bytes are signed here: unsigned weights of eight bits would not fit their sums.
  static constexpr int32_t BYTE_OFFSET = 0;
  static Words add_bytes(Words sum, Words weights, Words x) {
    return {add_bytes(sum.low, weights.low, x.low), add_bytes(sum.high, weights.high, x.high)};
  }
  // A group's products with weights below 16 fit sums of 16 bits: eight times 2 * 15 * 127 at most.
  static Words begin_nibbles(int32_t) { return fill(0); }
  static Words add_nibbles(Words sum, Words weights, Words x) {
    return {_mm256_add_epi16(sum.low, _mm256_maddubs_epi16(weights.low, x.low)),
            _mm256_add_epi16(sum.high, _mm256_maddubs_epi16(weights.high, x.high))};
  }
  static Words end_nibbles(Words sum, int32_t start) {
    const __m256i ones = _mm256_set1_epi16(1), from = _mm256_set1_epi32(start);
    return {_mm256_add_epi32(from, _mm256_madd_epi16(sum.low, ones)),
            _mm256_add_epi32(from, _mm256_madd_epi16(sum.high, ones))};
  }

  static void store_bfloat16(Lanes a, uint16_t* to) {
    const __m256i halves = _mm256_packus_epi32(_mm256_srli_epi32(rounded(a.low), 16),
                                               _mm256_srli_epi32(rounded(a.high), 16));
    store(_mm256_permute4x64_epi64(halves, IN_ORDER), to);
  }
  // Rounds to whole numbers, to nearest even; they are at most 127.
  static void store_int8(Lanes a, int8_t* to) {
    const __m256i counts = _mm256_permute4x64_epi64(
        _mm256_packs_epi32(_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)), IN_ORDER);
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(counts), _mm256_extracti128_si256(counts, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
  }

  static void transpose(const uint32_t* const* rows, int64_t start, int64_t step, uint32_t* to) {
    for (int r = 0; r < 16; r += 8) {
      for (int w = 0; w < 16; w += 8) transpose_eight(rows + r, start + w, step, to + w * step + r);
    }
  }
  static void interleave(const uint16_t* even, const uint16_t* odd, uint32_t* to) {
    store(mix(even, odd, 0), to);
    store(mix(even, odd, 1), to + 8);
  }
  static void store_pairs(Lanes low, Lanes high, uint32_t* to) {
    store(put_together(low.low, high.low), to);
    store(put_together(low.high, high.high), to + 8);
  }
  // Two rows' numbers of thirty-two columns: every second column, and those between.
  static void pair_up(const uint32_t* even, const uint32_t* odd, Paired& first, Paired& second) {
    const Words a = load(static_cast<const void*>(even)), b = load(static_cast<const void*>(odd));
    first = {lower(a), lower(b)};
    second = {upper(a), upper(b)};
  }
  // Sums over such columns: sixteen columns and the next.
  static void put_in_order(Lanes& first, Lanes& second) {
    const Lanes a = first, b = second;
    first = mix(a.low, b.low);
    second = mix(a.high, b.high);
  }

 private:
  // Packing works within halves of a register: this puts their quarters in order.
  static constexpr int IN_ORDER = 0xd8;

  static void store(__m256i a, void* to) { _mm256_storeu_si256(static_cast<__m256i*>(to), a); }
  // Eight halves of two rows in turn, from the eighth of a `part` on.
  static __m256i mix(const void* even, const void* odd, int part) {
    const __m128i *a = static_cast<const __m128i*>(even) + part,
                  *b = static_cast<const __m128i*>(odd) + part;
    return _mm256_or_si256(_mm256_cvtepu16_epi32(_mm_loadu_si128(a)),
                           _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(b)), 16));
  }
  // Eight numbers of each in turn.
  static Lanes mix(__m256 a, __m256 b) {
    const __m256 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
    return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
  }
  // The upper half of each number is its bfloat16, to nearest even; NaN stays NaN.
  static __m256i rounded(__m256 a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i is_odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(is_odd, _mm256_set1_epi32(0x7fff)));
    const __m256i none = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 is_none = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
    return _mm256_blendv_epi8(up, none, _mm256_castps_si256(is_none));
  }
  static __m256i put_together(__m256 low, __m256 high) {
    return _mm256_blend_epi16(_mm256_srli_epi32(rounded(low), 16), rounded(high), 0xaa);
  }
  static void transpose_eight(const uint32_t* const* rows, int64_t start, int64_t step,
                              uint32_t* to) {
    __m256i a[8], b[8];
    for (int i = 0; i < 8; ++i) {
      a[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[i] + start));
    }
    for (int i = 0; i < 8; i += 2) {
      b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
      b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
      a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
      a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
      a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      store(_mm256_permute2x128_si256(a[i], a[i + 4], 0x20), to + i * step);
      store(_mm256_permute2x128_si256(a[i], a[i + 4], 0x31), to + (i + 4) * step);
    }
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
  // Weights come without a sign, 128 too large. Magnitudes of weights times inputs of their signs:
  // sums of two products fit 16 bits.
  static __m256i add_bytes(__m256i sum, __m256i weights, __m256i x) {
    weights = _mm256_xor_si256(weights, _mm256_set1_epi8(static_cast<char>(0x80)));
    const __m256i pairs =
        _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

}  // namespace moestro
