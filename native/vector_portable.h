// Eight floats in plain C++, for any processor; compilers turn the loops into what it has.
// Next: silu.h.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace moestro {

struct Portable {
  static constexpr int WIDTH = 8;
  float value[WIDTH];

  template <class Function>
  static Portable each(Function function) {
    Portable out;
    for (int i = 0; i < WIDTH; ++i) out.value[i] = function(i);
    return out;
  }
  static float from_bits(uint32_t bits) {
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
  }
  static Portable load(const float* from) {
    return each([=](int i) { return from[i]; });
  }
  // A bfloat16 is the upper half of a float.
  static Portable load(const uint16_t* from) {
    return each([=](int i) { return from_bits(uint32_t{from[i]} << 16); });
  }
  static Portable broadcast(const float* from) { return fill(*from); }
  static Portable fill(float number) {
    return each([=](int) { return number; });
  }
  static Portable multiply_add(const Portable& a, const Portable& b, const Portable& c) {
    return each([&](int i) { return a.value[i] * b.value[i] + c.value[i]; });
  }
  static Portable smaller(const Portable& a, const Portable& b) {
    return each([&](int i) { return a.value[i] < b.value[i] ? a.value[i] : b.value[i]; });
  }
  static Portable larger(const Portable& a, const Portable& b) {
    return each([&](int i) { return a.value[i] > b.value[i] ? a.value[i] : b.value[i]; });
  }
  static Portable round(const Portable& a) {
    return each([&](int i) { return std::nearbyintf(a.value[i]); });
  }
  // 2^a for whole numbers.
  static Portable power_of_two(const Portable& a) {
    return each([&](int i) {
      return from_bits(static_cast<uint32_t>(static_cast<int32_t>(a.value[i]) + 127) << 23);
    });
  }
  void store(float* to) const {
    for (int i = 0; i < WIDTH; ++i) to[i] = value[i];
  }
};

inline Portable operator*(const Portable& a, const Portable& b) {
  return Portable::each([&](int i) { return a.value[i] * b.value[i]; });
}
inline Portable operator+(const Portable& a, const Portable& b) {
  return Portable::each([&](int i) { return a.value[i] + b.value[i]; });
}
inline Portable operator/(const Portable& a, const Portable& b) {
  return Portable::each([&](int i) { return a.value[i] / b.value[i]; });
}

}  // namespace moestro
