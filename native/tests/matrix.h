// Packed matrices of random numbers, and the same numbers one by one. Next: reference.h.

#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "../kernels.h"

namespace moestro::check {

class Random {
 public:
  float normal() { return normal_(engine_); }
  int64_t below(int64_t number) { return static_cast<int64_t>(engine_() % number); }
  std::vector<float> normals(int64_t number, float scale = 1.0f) {
    std::vector<float> out(number);
    for (float& each : out) each = normal() * scale;
    return out;
  }

 private:
  std::mt19937 engine_{1};
  std::normal_distribution<float> normal_;
};

inline uint32_t bits_of(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}
inline float from_bits(uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}
// To nearest even, for numbers that are finite.
inline uint32_t to_bfloat16(float number) {
  const uint32_t bits = bits_of(number);
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

// Matrices of one shape. With `is_gate_up` there are gate and up panels in turn, for so many
// outputs each. Memory is as large as it must be, so that reading beyond it is noticed.
class Matrix {
 public:
  Matrix(Random& random, Format format, int64_t number, int64_t outputs, int64_t depth,
         bool is_gate_up = false)
      : Matrix(format, number, outputs, depth, is_gate_up) {
    for (int64_t h = 0; h < number; ++h) {
      for (int64_t n = 0; n < num_panels_ * PANEL; ++n) {
        if (is_there(n)) fill(random, h, n);
      }
    }
  }

  // The numbers value(matrix, output, input), in a format without codes.
  template <class Value>
  static Matrix of(Format format, int64_t number, int64_t outputs, int64_t depth, Value value) {
    Matrix made(format, number, outputs, depth, false);
    for (int64_t h = 0; h < number; ++h) {
      for (int64_t n = 0; n < outputs; ++n) {
        for (int64_t d = 0; d < depth; ++d) made.put(h, n, d, value(h, n, d));
      }
    }
    return made;
  }

  Matrices view(const float* bias = nullptr) const {
    const int64_t outputs = is_gate_up_ ? num_panels_ * PANEL : outputs_;
    return {bytes_.data(), format_, number_, outputs, depth_, num_panels_, bias};
  }
  // The weights of an output, in the order of the panels.
  const float* row(int64_t h, int64_t n) const {
    return values_.data() + (h * num_panels_ * PANEL + n) * depth_;
  }

 private:
  Matrix(Format format, int64_t number, int64_t outputs, int64_t depth, bool is_gate_up)
      : format_(format),
        number_(number),
        outputs_(outputs),
        depth_(depth),
        is_gate_up_(is_gate_up),
        num_panels_(is_gate_up ? divide_up(outputs, PANEL) * 2 : num_panels(outputs)),
        bytes_(number * num_panels_ / STRIP * strip_bytes(format, depth)),
        values_(number * num_panels_ * PANEL * depth) {}

  char* strip(int64_t h, int64_t n) {
    return bytes_.data() + (h * num_panels_ + n / PANEL) / STRIP * strip_bytes(format_, depth_);
  }

  void put(int64_t h, int64_t n, int64_t d, float value) {
    float& kept = values_[(h * num_panels_ * PANEL + n) * depth_ + d];
    const int64_t column = n % (STRIP * PANEL);
    if (format_ == Format::float32) {
      kept = value;
      add_bits(strip(h, n), d, column, bits_of(value));
    } else {
      kept = from_bits(to_bfloat16(value) << 16);
      add_bits(strip(h, n), d / 2, column, to_bfloat16(value) << (d % 2 * 16));
    }
  }

  // Panels are filled up with outputs that are not there.
  bool is_there(int64_t n) const {
    const int64_t panel = is_gate_up_ ? n / PANEL / 2 : n / PANEL;
    return panel * PANEL + n % PANEL < outputs_;
  }

  void fill(Random& random, int64_t h, int64_t n) {
    const float size = 1.0f / std::sqrt(static_cast<float>(depth_));
    if (is_quantized(format_)) {
      float* values = values_.data() + (h * num_panels_ * PANEL + n) * depth_;
      return fill_codes(random, strip(h, n), n % (STRIP * PANEL), size, values);
    }
    for (int64_t d = 0; d < depth_; ++d) put(h, n, d, random.normal() * size);
  }

  void fill_codes(Random& random, char* strip, int64_t column, float size, float* values) {
    const int limit = format_ == Format::int8 ? 127 : 7;
    for (int64_t g = 0; g < num_groups(depth_); ++g) {
      char* codes = strip + g * group_bytes(format_);
      // A float16 of a little more than a power of two.
      const int exponent = static_cast<int>(std::floor(std::log2(size * 2 / limit)));
      const int64_t mantissa = random.below(1024);
      const uint16_t half = static_cast<uint16_t>((exponent + 15) << 10 | mantissa);
      std::memcpy(codes + code_bytes(format_) + column * 2, &half, 2);
      const float scale = std::ldexp(1.0f + static_cast<float>(mantissa) / 1024.0f, exponent);
      for (int64_t i = 0; i < GROUP; ++i) {
        const int64_t d = g * GROUP + i;
        const int code = d < depth_ ? static_cast<int>(random.below(2 * limit + 1)) - limit : 0;
        if (d < depth_) values[d] = scale * static_cast<float>(code);
        if (format_ == Format::int8) {
          add_bits(codes, i / 4, column, static_cast<uint32_t>(code + 128) << (d % 4 * 8));
        } else {
          const int64_t shift = i % 4 * 8 + i / (GROUP / 2) * 4;
          add_bits(codes, i % (GROUP / 2) / 4, column,
                   static_cast<uint32_t>(code + 8) << shift);
        }
      }
    }
  }

  static void add_bits(char* words, int64_t word, int64_t column, uint32_t bits) {
    char* place = words + (word * STRIP * PANEL + column) * 4;
    uint32_t before;
    std::memcpy(&before, place, 4);
    before |= bits;
    std::memcpy(place, &before, 4);
  }

  Format format_;
  int64_t number_, outputs_, depth_;
  bool is_gate_up_;
  int64_t num_panels_;
  std::vector<char> bytes_;
  std::vector<float> values_;
};

}  // namespace moestro::check
