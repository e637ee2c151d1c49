// Sixteen lanes in plain C++, for any processor; compilers turn the loops into what it has.
// Next: numbers.h.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace moestro {

struct Portable {
  static constexpr int WIDTH = 16;
  struct Lanes {
    float value[WIDTH];
  };
  struct Words {
    uint32_t value[WIDTH];
  };
  using Paired = Words;
  static constexpr int tile_panels(bool, int) { return 1; }
  static constexpr int score_rows(int) { return 1; }
  // Words of a key that one panel of queries takes at once (scores.h).
  static constexpr int SCORED_WORDS = 1;
  static constexpr bool HAS_TILES = false;
  struct Tiles {};
  static constexpr int MIXED_ROWS = 1;

  static constexpr int BAND_ROWS = 8;
  static constexpr int BAND_PANELS = 1;
  static constexpr bool SPLITS_PAIRS = false;

  static Lanes load(const float* from) {
    return each([=](int i) { return from[i]; });
  }
  static void store(const Lanes& a, float* to) { std::memcpy(to, a.value, sizeof a.value); }
  static Lanes fill(float number) {
    return each([=](int) { return number; });
  }
  static Lanes load_half(const uint16_t* from) {
    return each([=](int i) { return half(from[i]); });
  }
  static Lanes load_bfloat16(const uint16_t* from) {
    return each([=](int i) { return from_bits(static_cast<uint32_t>(from[i]) << 16); });
  }
  static Lanes multiply_add(const Lanes& a, const Lanes& b, const Lanes& c) {
    return each([&](int i) { return a.value[i] * b.value[i] + c.value[i]; });
  }
  static Lanes add(const Lanes& a, const Lanes& b) {
    return each([&](int i) { return a.value[i] + b.value[i]; });
  }
  static Lanes multiply(const Lanes& a, const Lanes& b) {
    return each([&](int i) { return a.value[i] * b.value[i]; });
  }
  static Lanes divide(const Lanes& a, const Lanes& b) {
    return each([&](int i) { return a.value[i] / b.value[i]; });
  }
  static Lanes smaller(const Lanes& a, const Lanes& b) {
    return each([&](int i) { return a.value[i] < b.value[i] ? a.value[i] : b.value[i]; });
  }
  static Lanes larger(const Lanes& a, const Lanes& b) {
    return each([&](int i) { return a.value[i] > b.value[i] ? a.value[i] : b.value[i]; });
  }
  static Lanes absolute(const Lanes& a) {
    return each([&](int i) { return std::fabs(a.value[i]); });
  }
  static Lanes round(const Lanes& a) {
    return each([&](int i) { return std::nearbyintf(a.value[i]); });
  }
  static Lanes scale_by_power(const Lanes& a, const Lanes& n) {
    return each([&](int i) {
      const auto exponent = static_cast<uint32_t>(static_cast<int32_t>(n.value[i]) + 127);
      return a.value[i] * from_bits(exponent << 23);
    });
  }
  static float sum(const Lanes& a) {
    float total = 0.0f;
    for (float lane : a.value) total += lane;
    return total;
  }
  static float largest(const Lanes& a) {
    float most = a.value[0];
    for (float lane : a.value) most = lane > most ? lane : most;
    return most;
  }

  static Words load(const void* from) {
    Words out;
    std::memcpy(out.value, from, sizeof out.value);
    return out;
  }
  static Words fill(int32_t number) {
    return words([=](int) { return static_cast<uint32_t>(number); });
  }
  static Words fill_word(const uint32_t* from) {
    return words([=](int) { return *from; });
  }
  static Words low_nibbles(const Words& a) {
    return words([&](int i) { return a.value[i] & 0x0f0f0f0fu; });
  }
  static Words high_nibbles(const Words& a) {
    return words([&](int i) { return a.value[i] >> 4 & 0x0f0f0f0fu; });
  }
  static Lanes to_lanes(const Words& a) {
    return each([&](int i) { return static_cast<float>(static_cast<int32_t>(a.value[i])); });
  }

  static Lanes add_floats(const Lanes& sum, const Words& weights, const Words& x) {
    return each([&](int i) {
      return from_bits(weights.value[i]) * from_bits(x.value[i]) + sum.value[i];
    });
  }
  // A bfloat16 is the upper half of a float.
  static Lanes add_pairs(const Lanes& sum, const Words& weights, const Words& x) {
    return each([&](int i) {
      const uint32_t w = weights.value[i], y = x.value[i];
      const float low = from_bits(w << 16) * from_bits(y << 16) + sum.value[i];
      return from_bits(w & 0xffff0000u) * from_bits(y & 0xffff0000u) + low;
    });
  }
  static Words add_bytes(const Words& sum, const Words& weights, const Words& x) {
    return words([&](int i) {
      int32_t total = static_cast<int32_t>(sum.value[i]);
      for (int b = 0; b < 32; b += 8) {
        total += static_cast<int32_t>(weights.value[i] >> b & 0xffu) *
                 static_cast<int8_t>(x.value[i] >> b & 0xffu);
      }
      return static_cast<uint32_t>(total);
    });
  }
  // What int8 weights have been made larger by when add_bytes has multiplied them.
  static constexpr int32_t BYTE_OFFSET = 128;
  static Words begin_nibbles(int32_t start) { return fill(start); }
  static Words add_nibbles(const Words& sum, const Words& weights, const Words& x) {
    return add_bytes(sum, weights, x);
  }
  static Words end_nibbles(const Words& sum, int32_t) { return sum; }

  static void store_bfloat16(const Lanes& a, uint16_t* to) {
    for (int i = 0; i < WIDTH; ++i) to[i] = round_bfloat16(a.value[i]);
  }
  static void transpose(const uint32_t* const* rows, int64_t start, int64_t step, uint32_t* to) {
    for (int w = 0; w < 16; ++w) {
      for (int r = 0; r < 16; ++r) std::memcpy(to + w * step + r, rows[r] + start + w, 4);
    }
  }
  static void interleave(const uint16_t* even, const uint16_t* odd, uint32_t* to) {
    for (int c = 0; c < 16; ++c) to[c] = even[c] | static_cast<uint32_t>(odd[c]) << 16;
  }
  // Puts two numbers' halves into one word: to[c] has low[c] below high[c].
  static void store_pairs(const Lanes& low, const Lanes& high, uint32_t* to) {
    uint16_t below[16], above[16];
    store_bfloat16(low, below);
    store_bfloat16(high, above);
    for (int c = 0; c < 16; ++c) to[c] = below[c] | static_cast<uint32_t>(above[c]) << 16;
  }
  static void pair_up(const uint32_t* even, const uint32_t* odd, Paired& first, Paired& second) {
    // A word has two columns of its row.
    const auto mix = [=](int i) {
      const int shift = i % 2 * 16;
      return (even[i / 2] >> shift & 0xffffu) | (odd[i / 2] >> shift) << 16;
    };
    first = words(mix);
    second = words([=](int i) { return mix(WIDTH + i); });
  }
  static void put_in_order(Lanes&, Lanes&) {}
  // Rounds to whole numbers, to nearest even; they are at most 127.
  static void store_int8(const Lanes& a, int8_t* to) {
    // A NaN's code does not matter, its scale is NaN too; but its conversion would be undefined.
    for (int i = 0; i < WIDTH; ++i) {
      const float code = std::nearbyintf(a.value[i]);
      to[i] = code >= -127.0f && code <= 127.0f ? static_cast<int8_t>(code) : 0;
    }
  }

 private:
  // To nearest even; NaN stays NaN.
  static uint16_t round_bfloat16(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
  template <class Function>
  static Lanes each(Function function) {
    Lanes out;
    for (int i = 0; i < WIDTH; ++i) out.value[i] = function(i);
    return out;
  }
  template <class Function>
  static Words words(Function function) {
    Words out;
    for (int i = 0; i < WIDTH; ++i) out.value[i] = function(i);
    return out;
  }
  static float from_bits(uint32_t bits) {
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
  }
  // Exponents differ by 112; multiplying by that power of two also serves numbers without one.
  static float half(uint16_t bits) {
    const float scaled = from_bits(static_cast<uint32_t>(bits & 0x7fffu) << 13);
    return (bits & 0x8000u ? -1.0f : 1.0f) * scaled * from_bits(0x77800000u);
  }
};

}  // namespace moestro
