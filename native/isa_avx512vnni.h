// Sixteen lanes in one AVX-512 register, with the dot products of VNNI. A bfloat16 is the upper
// half of a float. Next: isa_avx512.h, numbers.h.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace moestro {

struct Avx512Vnni {
  // Sixteen floats.
  struct Lanes {
    __m512 value;
  };
  // Sixteen 32-bit words: counts, or weights as they are stored.
  struct Words {
    __m512i value;
  };
  // Sixteen columns of two rows of bfloat16, as floats: that is what they are multiplied as.
  struct Paired {
    Lanes even, odd;
  };
  // Panels that a tile of so many rows takes: sums fill the registers, and no more.
  static constexpr int tile_panels(bool is_quantized, int num_rows) {
    return is_quantized || num_rows > 5 ? 2 : 4;
  }
  // Keys that a tile of scores takes beside so many panels of queries; queries of one of mixtures.
  static constexpr int score_rows(int num_panels) { return num_panels == 1 ? 16 : 8; }
  // Words of a key that one panel of queries takes at once (scores.h).
  static constexpr int SCORED_WORDS = 8;
  static constexpr bool HAS_TILES = false;
  struct Tiles {};
  static constexpr int MIXED_ROWS = 8;

  // Rows and panels of a tile in training: sums, and what they are made of.
  static constexpr int BAND_ROWS = 8;
  static constexpr int BAND_PANELS = 3;
  // Whether bfloat16 are split to floats before they are multiplied.
  static constexpr bool SPLITS_PAIRS = true;

  static Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static void store(Lanes a, float* to) { _mm512_storeu_ps(to, a.value); }
  static Lanes fill(float number) { return {_mm512_set1_ps(number)}; }
  static Lanes load_half(const uint16_t* from) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
  }
  static Lanes load_bfloat16(const uint16_t* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
  }
  static Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
    return {_mm512_fmadd_ps(a.value, b.value, c.value)};
  }
  static Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.value, b.value)}; }
  static Lanes multiply(Lanes a, Lanes b) { return {_mm512_mul_ps(a.value, b.value)}; }
  static Lanes divide(Lanes a, Lanes b) { return {_mm512_div_ps(a.value, b.value)}; }
  static Lanes smaller(Lanes a, Lanes b) { return {_mm512_min_ps(a.value, b.value)}; }
  static Lanes larger(Lanes a, Lanes b) { return {_mm512_max_ps(a.value, b.value)}; }
  static Lanes absolute(Lanes a) { return {_mm512_abs_ps(a.value)}; }
  static Lanes round(Lanes a) {
    return {_mm512_roundscale_ps(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  // a * 2^n for whole numbers n.
  static Lanes scale_by_power(Lanes a, Lanes n) { return {_mm512_scalef_ps(a.value, n.value)}; }
  static float sum(Lanes a) { return _mm512_reduce_add_ps(a.value); }
  static float largest(Lanes a) { return _mm512_reduce_max_ps(a.value); }

  static Words load(const void* from) { return {_mm512_loadu_si512(from)}; }
  static Words fill(int32_t number) { return {_mm512_set1_epi32(number)}; }
  static Words fill_word(const uint32_t* from) {
    return {_mm512_set1_epi32(static_cast<int32_t>(*from))};
  }
  static Words low_nibbles(Words a) {
    return {_mm512_and_si512(a.value, _mm512_set1_epi8(0x0f))};
  }
  static Words high_nibbles(Words a) {
    return {_mm512_and_si512(_mm512_srli_epi16(a.value, 4), _mm512_set1_epi8(0x0f))};
  }
  static Lanes to_lanes(Words a) { return {_mm512_cvtepi32_ps(a.value)}; }

  // Adds one word's products: of floats, of two bfloat16, of four bytes (weights without a sign).
  static Lanes add_floats(Lanes sum, Words weights, Words x) {
    return {_mm512_fmadd_ps(_mm512_castsi512_ps(weights.value), _mm512_castsi512_ps(x.value),
                            sum.value)};
  }
  static Lanes add_pairs(Lanes sum, Words weights, Words x) {
    return multiply_add(upper(weights), upper(x), multiply_add(lower(weights), lower(x), sum));
  }
  static Lanes add_pairs(Lanes sum, Paired weights, Words x) {
    return add_pairs(sum, weights, split(x));
  }
  static Lanes add_pairs(Lanes sum, Paired weights, Paired x) {
    return multiply_add(weights.odd, x.odd, multiply_add(weights.even, x.even, sum));
  }
  static Paired split(Words a) { return {lower(a), upper(a)}; }
  // What int8 weights have been made larger by when add_bytes has multiplied them.
  static constexpr int32_t BYTE_OFFSET = 128;
  static Words add_bytes(Words sum, Words weights, Words x) {
    return {_mm512_dpbusd_epi32(sum.value, weights.value, x.value)};
  }
  // A group's count of products with weights below 16: its beginning, its steps, what it comes to.
  static Words begin_nibbles(int32_t start) { return fill(start); }
  static Words add_nibbles(Words sum, Words weights, Words x) { return add_bytes(sum, weights, x); }
  static Words end_nibbles(Words sum, int32_t) { return sum; }

  // Rounds to bfloat16, to nearest even.
  static void store_bfloat16(Lanes a, uint16_t* to) {
    const __m512i halves = _mm512_srli_epi32(rounded(a), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(halves));
  }
  // Rounds to whole numbers, to nearest even; they are at most 127.
  static void store_int8(Lanes a, int8_t* to) {
    const __m128i codes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.value));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), codes);
  }

  // Words of sixteen rows, side by side: to[w * step + r] = rows[r][start + w] for w < 16.
  static void transpose(const uint32_t* const* rows, int64_t start, int64_t step, uint32_t* to) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(rows[i] + start);
    for (int i = 0; i < 16; i += 2) {
      b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
      a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
      a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
      a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
      b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
      b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
      b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
      _mm512_storeu_si512(to + i * step, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
      _mm512_storeu_si512(to + (i + 8) * step, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
      _mm512_storeu_si512(to + (i + 4) * step, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88));
      _mm512_storeu_si512(to + (i + 12) * step, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd));
    }
  }
  // Halves of two rows in turn: to[c] has even[c] below odd[c], for c < 16.
  static void interleave(const uint16_t* even, const uint16_t* odd, uint32_t* to) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)even));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)odd));
    _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  // Rounds lanes to bfloat16 and puts them together: to[c] has low[c] below high[c].
  static void store_pairs(Lanes low, Lanes high, uint32_t* to) {
    const __m512i below = _mm512_srli_epi32(rounded(low), 16);
    _mm512_storeu_si512(to, _mm512_mask_blend_epi16(UPPER, below, rounded(high)));
  }
  // Two rows' numbers of thirty-two columns: every second column, and those between.
  static void pair_up(const uint32_t* even, const uint32_t* odd, Paired& first, Paired& second) {
    const Paired a = split(load(static_cast<const void*>(even)));
    const Paired b = split(load(static_cast<const void*>(odd)));
    first = {a.even, b.even};
    second = {a.odd, b.odd};
  }
  // Sums over such columns: sixteen columns and the next.
  static void put_in_order(Lanes& first, Lanes& second) {
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const __m512 a = first.value, b = second.value;
    first = {_mm512_permutex2var_ps(a, low, b)};
    second = {_mm512_permutex2var_ps(a, high, b)};
  }

 private:
  // The upper halves of sixteen words.
  static constexpr __mmask32 UPPER = 0xaaaaaaaa;

  static Lanes lower(Words a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(a.value, 16))}; }
  static Lanes upper(Words a) {
    return {_mm512_castsi512_ps(_mm512_maskz_mov_epi16(UPPER, a.value))};
  }
  // The upper half of each number is its bfloat16, to nearest even; NaN stays NaN.
  static __m512i rounded(Lanes a) {
    const __m512i bits = _mm512_castps_si512(a.value);
    const __m512i is_odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_none = _mm512_cmp_ps_mask(a.value, a.value, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(up, is_none, bits, _mm512_set1_epi32(0x400000));
  }
};

}  // namespace moestro
