// What the kernels take and give, and the one table of them that each instruction set fills.
// Knows no Python. Next: tile.h, then multiply.h and experts.h.
//
// Every output is one chain of multiply-adds over its inputs, in order, whatever the number of rows
// or threads: a row alone gets the bits that it gets among a thousand.

#pragma once

#include <cstdint>

namespace moestro {

// Weights lie in panels of this many outputs: all inputs' weights for them, one input at a time.
constexpr int64_t PANEL = 16;
// Rows that share a weight while it is in a register.
constexpr int64_t BLOCK_ROWS = 6;
// Panels that one task multiplies; a single row needs several sums at once to hide latency.
constexpr int64_t GROUP_PANELS = 4;
// Inputs of many rows are taken in chunks, so that a group's weights stay in the second cache.
constexpr int64_t DEPTH_CHUNK = 256;

enum class Format : int { float32 = 0, bfloat16 = 1 };

// Matrices of one shape, one after the other.
struct Weights {
  const void* data;
  Format format;
  int64_t depth;
  int64_t num_panels;
};

// y[t, h] = W[h] x[t, h] for rows t and matrices h; rows of y are padded to whole panels.
struct Product {
  const float* x;
  int64_t num_rows;
  int64_t num_matrices;
  Weights weights;
  float* y;
  int num_threads;
};

// out[t] = sum over slots k in use of scale[t, k] * down(silu(gate(x[t])) * up(x[t])) by expert
// experts[t, k]. Panels of `gate_up` alternate: gate, up, gate, up.
struct ExpertProduct {
  const float* x;
  const int64_t* experts;
  const float* scales;
  const bool* is_used;
  int64_t num_rows;
  int64_t num_slots;
  int64_t num_experts;
  int64_t width;
  Weights gate_up;
  Weights down;
  float* out;
  int num_threads;
};

struct Kernels {
  void (*multiply)(const Product&);
  void (*apply_experts)(const ExpertProduct&);
  void (*fill_sigmoids)(const float* x, int64_t number, float* y);
};

extern const Kernels portable_kernels;
#ifdef MOESTRO_HAS_AVX2
extern const Kernels avx2_kernels;
#endif

constexpr int64_t divide_up(int64_t number, int64_t size) { return (number + size - 1) / size; }

// Rows of one block, such that no block of a few rows is left behind full ones.
constexpr int64_t even_rows(int64_t num_rows) {
  return num_rows == 0 ? 0 : divide_up(num_rows, divide_up(num_rows, BLOCK_ROWS));
}

}  // namespace moestro
