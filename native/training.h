// What the kernels of training take and give: bfloat16 as torch has it, sums in float32. Next:
// bands.h, band_products.h, then experts_training.h, products_training.h, attention_training.h,
// loss_training.h, gate_training.h and rows_training.h.
//
// Every number is summed by one thread in one order, whatever the number of threads.

#pragma once

#include "choice.h"

namespace moestro {

// Experts in training, as optimizers have them: bfloat16, (experts, 2 * hidden_width, width) with
// the gate's rows first, and (experts, width, hidden_width).
struct TrainedExperts {
  const uint16_t* gate_up;
  const uint16_t* down;
  int64_t num_experts;
  int64_t width;
  int64_t hidden_width;
};

// The same sum as ExpertProduct's, in bfloat16. It is added to `before` and `also_before`, unless
// they are null, before it is rounded. `hidden` has room for gate and up of each slot in use; what
// is in it is the backward pass's matter.
struct ExpertsForward {
  const uint16_t* x;
  const uint16_t* before;
  const uint16_t* also_before;
  Visits visits;
  TrainedExperts experts;
  uint16_t* hidden;
  uint16_t* out;
};

// Gradients of all that the sum depends on, from that of `out`; those of rows are added to `before`
// likewise.
struct ExpertsBackward {
  const uint16_t* x;
  const uint16_t* before;
  const uint16_t* hidden;
  const uint16_t* dout;
  Visits visits;
  TrainedExperts experts;
  uint16_t* dx;
  float* dweights;
  uint16_t* dgate_up;
  uint16_t* ddown;
};

// A linear layer's rows (num_rows, width) and its matrix (num_outputs, width).
struct TrainedProduct {
  const uint16_t* x;
  const uint16_t* weight;
  int64_t num_rows, width, num_outputs;
};

// y = x weight^T, (num_rows, num_outputs).
struct ProductForward {
  TrainedProduct product;
  uint16_t* y;
};

// The gradients of rows and matrix from that of y.
struct ProductBackward {
  TrainedProduct product;
  const uint16_t* dy;
  uint16_t* dx;
  uint16_t* dweight;
};

// Causal attention in training: sequences of one length, heads, and the widths of their parts.
struct AttentionShape {
  int64_t num_sequences;
  int64_t length;
  int64_t num_heads;
  int64_t nope;
  int64_t rotary;
  int64_t value;
  float scale;

  int64_t query_width() const { return nope + rotary; }
  int64_t num_tasks() const { return num_sequences * num_heads; }
};

// Rows of heads, read or written, within larger rows: one larger row for each token.
struct HeadRows {
  uint16_t* data;
  int64_t row_step;
  int64_t head_step;

  uint16_t* row(int64_t t, int64_t head) const { return data + t * row_step + head * head_step; }
};

// Queries and keys in two parts, the second with their position; keys share it among heads.
struct AttentionParts {
  HeadRows query_nope, query_rope, key_nope, key_rope, value;
};

struct AttentionForward {
  AttentionShape shape;
  AttentionParts inputs;
  HeadRows out;
  // Of each sequence's heads' queries: the logarithm of what its weights were divided by.
  float* log_totals;
};

struct AttentionBackward {
  AttentionShape shape;
  AttentionParts inputs;
  HeadRows out, dout;
  const float* log_totals;
  AttentionParts gradients;
  // Each head's gradient of the keys' shared part: (sequences, heads, tokens, rotary).
  float* dkey_ropes;
};

// Rows in training that are normalized, `step` numbers apart.
struct NormRows {
  const uint16_t* x;
  int64_t step;
  int64_t num_rows;
  int64_t width;
  const float* weight;
  float epsilon;
};

// y = the norm of x, or of sum = x + more where there is more: both (num_rows, width).
struct NormForward {
  NormRows norm;
  const uint16_t* more;
  uint16_t* sum;
  uint16_t* y;
};

// The gradients of what is normalized and of the weight, from those of y and, unless it is null, of
// the rows themselves. Rows of `dx` are `dx_step` apart.
struct NormBackward {
  NormRows norm;
  const uint16_t* dy;
  const uint16_t* drows;
  uint16_t* dx;
  int64_t dx_step;
  float* dweight;
};

// Heads' rows of sequences of one length, rotated by their position: pairs that are neighbors or
// half a width apart become first and second halves. The inverse undoes it.
struct Rotation {
  HeadRows x;
  int64_t num_rows;
  int64_t length;
  int64_t num_heads;
  int64_t num_pairs;
  const float* cosines;
  const float* sines;
  bool is_interleaved;
  bool is_inverse;
  HeadRows y;
};

// Rows and a gate's float32 weights (experts, width); logits are (rows,
// experts). `bias` is null where selection is by the scores themselves,
// `fractions` (of each row's budget) where every row takes all.
struct GateRows {
  const uint16_t* x;
  int64_t num_rows;
  int64_t width;
  const float* weight;
  int64_t num_experts;
  ChoiceRule rule;
  const float* bias;
  const float* thresholds;
  const float* fractions;
};

// What a gate makes of each row: (rows, experts), and (rows, slots) in `slots`.
struct GateForward {
  GateRows gate;
  float *logits, *scores, *selection;
  ChoiceSlots slots;
};

// Gradients of rows and weights from those of logits, scores and slots' weights, each of which may
// be null.
struct GateBackward {
  GateRows gate;
  const float* scores;
  const int64_t* experts;
  const float* weights;
  const bool* is_used;
  const float *dlogits, *dscores, *dweights;
  uint16_t* dx;
  float* dweight;
};

// What is wrong with how sequences' tokens spread over experts (DeepSeek-V3's eq. 17-20) and with
// the size of logits (ST-MoE's z-loss), and its gradients.
struct BalanceRows {
  const float *logits, *scores;
  const int64_t* experts;
  const bool* is_used;
  int64_t num_rows, num_experts, num_slots, num_sequences;
  float sequence_weight, z_weight;
  float *dlogits, *dscores;
};

// Matrices (number, rows, columns) and the same made nearly orthogonal, by so many steps of the
// quintic iteration x := a x + b (x x^T) x + c (x x^T)^2 x.
struct Orthogonals {
  const uint16_t* x;
  int64_t number;
  int64_t num_rows;
  int64_t num_columns;
  int num_steps;
  float a, b, c;
  uint16_t* y;
};

// Rows before the head (vocabulary, width), the tokens that they should have told, and what each
// counts: their nats, and the gradients of the sum of nats times weights.
struct LossRows {
  const uint16_t* x;
  const uint16_t* head;
  const int64_t* targets;
  const float* weights;
  int64_t num_rows, width, vocabulary;
  float* nats;
  uint16_t* dx;
  float* dhead;
};

}  // namespace moestro
