// What the kernels take and give, and the one table of them that each instruction set fills.
// Knows no Python. Next: tile.h, then stack.h; training.h.
//
// Every output is one chain of sums over its inputs, in order, whatever the number of rows or
// threads: a row alone gets the bits that it gets among a thousand.

#pragma once

#include <cstdint>

namespace moestro {

// Weights lie in panels of this many outputs: all inputs' weights for them, one input at a time.
constexpr int64_t PANEL = 16;
// Panels that lie side by side in a strip, word by word or group by group: a product reads a strip
// from end to end, in one stream, which is what memory is fastest at.
constexpr int64_t STRIP = 2;
// Rows that share a weight while it is in a register.
constexpr int64_t BLOCK_ROWS = 6;
// What a processor's tiles multiply at once: two of rows by two of panels, in whole tiles of words.
constexpr int64_t TILED_ROWS = 32, TILED_PANELS = 2, TILED_WORDS = 16;
// Panels of one task. Four panels of gate and up make 32 hidden columns: one group.
constexpr int64_t TASK_PANELS = 4;
// Panels of a task that takes them from many experts, for few rows: some 100 kB of each.
constexpr int64_t LONG_PANELS = 16, FEW_ROWS = 16;
// Inputs of a quantized matrix that share a scale.
constexpr int64_t GROUP = 32;
// A group's inputs, rounded to int8, in words of four.
constexpr int64_t GROUP_WORDS = GROUP / 4;

// How weights are stored; inputs are rounded alike: to float32, bfloat16, int8 in groups, the same.
enum class Format : int { float32 = 0, bfloat16 = 1, int8 = 2, int4 = 3 };

constexpr bool is_quantized(Format format) {
  return format == Format::int8 || format == Format::int4;
}

constexpr int64_t divide_up(int64_t number, int64_t size) { return (number + size - 1) / size; }
constexpr int64_t round_up(int64_t number, int64_t size) { return divide_up(number, size) * size; }

// Inputs of one 32-bit word, the unit in which kernels go through them.
constexpr int64_t inputs_per_word(Format format) {
  return format == Format::float32 ? 1 : format == Format::bfloat16 ? 2 : 4;
}

constexpr int64_t num_words(Format format, int64_t depth) {
  return divide_up(is_quantized(format) ? round_up(depth, GROUP) : depth, inputs_per_word(format));
}

// Bytes of a number of a format that has no scales.
constexpr int64_t bytes_per_number(Format format) { return format == Format::float32 ? 4 : 2; }

constexpr int64_t num_groups(int64_t depth) { return divide_up(depth, GROUP); }

// Panels of so many outputs, in whole strips.
constexpr int64_t num_panels(int64_t outputs) {
  return divide_up(outputs, STRIP * PANEL) * STRIP;
}

// Bytes of a group's codes in a strip.
constexpr int64_t code_bytes(Format format) {
  return GROUP * STRIP * PANEL / (format == Format::int4 ? 2 : 1);
}

// Bytes of a group in a strip: behind its codes is a float16 for each output.
constexpr int64_t group_bytes(Format format) { return code_bytes(format) + STRIP * PANEL * 2; }

constexpr int64_t strip_bytes(Format format, int64_t depth) {
  return is_quantized(format) ? num_groups(depth) * group_bytes(format)
                              : num_words(format, depth) * STRIP * PANEL * 4;
}

// Matrices of one shape, one after the other, in whole strips. `bias` (one number per output) may
// be null.
struct Matrices {
  const char* data = nullptr;
  Format format = Format::float32;
  int64_t num_matrices = 0;
  int64_t num_outputs = 0;
  int64_t depth = 0;
  int64_t num_panels = 0;
  const float* bias = nullptr;

  int64_t stride() const { return strip_bytes(format, depth); }
  // The strip that a panel lies in.
  const char* strip(int64_t matrix, int64_t panel) const {
    return data + (matrix * num_panels + panel) / STRIP * stride();
  }
};

// Rows of one matrix as a file has them, one after the other, with a float16 scale for each group
// of a row if they are codes. `first_panel` counts over all matrices.
struct SourceRows {
  const char* data;
  const uint16_t* scales;
  int64_t num_rows;
  int64_t row_bytes;
  int64_t first_panel;
};

// Where they go: each source fills so many panels, `panel_step` apart.
struct PanelPlaces {
  char* data;
  Format format;
  int64_t depth;
  int64_t panels_of_source;
  int64_t panel_step;
};

// y[t, h] = W[h] x[t, h] for rows t and matrices h.
struct Product {
  const float* x;
  int64_t num_rows;
  Matrices weights;
  float* y;
};

// Experts of one width. Panels of `gate_up` alternate: gate, up, gate, up.
struct Experts {
  Matrices gate_up;
  Matrices down;
};

// Which experts each row visits, with what weights: slots not in use are skipped.
struct Visits {
  const int64_t* experts;
  const float* weights;
  const bool* is_used;
  int64_t num_rows;
  int64_t num_slots;
};

// out[t] = sum over a row's slots of weight * down(silu(gate(x[t])) * up(x[t])).
struct ExpertProduct {
  const float* x;
  Visits visits;
  Experts experts;
  float* out;
};

struct ExpertsForward;
struct ExpertsBackward;
struct ProductForward;
struct ProductBackward;
struct AttentionForward;
struct AttentionBackward;
struct NormForward;
struct NormBackward;
struct Rotation;
struct GateForward;
struct GateBackward;
struct BalanceRows;
struct LossRows;
struct Orthogonals;
struct PickRow;
struct Pick;
struct Stack;
struct Step;
class Workspace;

// One function for each job. Files for different processors must not share compiled code, so their
// headers lie in a namespace named after the instruction set, MOESTRO_ISA.

struct Kernels {
  void (*interleave)(const SourceRows* sources, int64_t number, const PanelPlaces&,
                     int num_threads);
  void (*multiply)(const Product&, Workspace&, int num_threads);
  void (*apply_experts)(const ExpertProduct&, Workspace&, int num_threads);
  void (*fill_sigmoids)(const float* x, int64_t number, float* y);
  void (*run)(const Stack&, const Step&, Workspace&, int num_threads);
  void (*forward_experts)(const ExpertsForward&, Workspace&, int num_threads);
  void (*backward_experts)(const ExpertsBackward&, Workspace&, int num_threads);
  void (*forward_product)(const ProductForward&, Workspace&, int num_threads);
  void (*backward_product)(const ProductBackward&, Workspace&, int num_threads);
  void (*forward_attention)(const AttentionForward&, Workspace&, int num_threads);
  void (*backward_attention)(const AttentionBackward&, Workspace&, int num_threads);
  void (*forward_norm)(const NormForward&, Workspace&, int num_threads);
  void (*backward_norm)(const NormBackward&, Workspace&, int num_threads);
  void (*rotate)(const Rotation&, Workspace&, int num_threads);
  void (*differentiate_loss)(const LossRows&, Workspace&, int num_threads);
  void (*forward_gate)(const GateForward&, Workspace&, int num_threads);
  void (*backward_gate)(const GateBackward&, Workspace&, int num_threads);
  float (*differentiate_balance)(const BalanceRows&, Workspace&, int num_threads);
  void (*pick_tokens)(const PickRow* rows, int64_t num_rows, int64_t size, Pick* picks,
                      Workspace&, int num_threads);
  void (*orthogonalize)(const Orthogonals&, Workspace&, int num_threads);
};

extern const Kernels portable_kernels;
#ifdef MOESTRO_HAS_X86
extern const Kernels avx2_kernels;
extern const Kernels avx512vnni_kernels;
extern const Kernels avx512_kernels;
#endif
#ifdef MOESTRO_HAS_AVX_VNNI
extern const Kernels avxvnni_kernels;
#endif
#ifdef MOESTRO_HAS_AMX
extern const Kernels amx_kernels;
#endif

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Rows of one block of up to so many, such that no block of a few rows is left behind full ones.
constexpr int64_t even_rows(int64_t num_rows, int64_t most) {
  return num_rows == 0 ? 0 : divide_up(num_rows, divide_up(num_rows, most));
}

}  // namespace moestro
