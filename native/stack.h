// A model's layers as the kernels see them, and one step's work for them. Knows no threads and no
// instruction set. Next: run.h.
//
// Names and equations are those of DeepSeek-V3 (arXiv 2412.19437, section 2.1).

#pragma once

#include "choice.h"

namespace moestro {

struct Norm {
  const float* weight = nullptr;
  float epsilon = 0.0f;
};

struct Gate {
  Matrices weight;
  // Null where selection is by the scores themselves.
  const float* selection_bias = nullptr;
  // What a further expert's score less the last certain one's must pass, by fraction of the budget;
  // null where every token takes all.
  const float* thresholds = nullptr;
};

// What an MTP module does before its layer and behind it (eq. 21-23). `eh_proj` takes a token's
// normed embedding and then the normed state of the token before it.
struct Mtp {
  Norm enorm;
  Norm hnorm;
  Matrices eh_proj;
  Norm norm;
};

// `query_a` has no data without query compression, `routed` in a dense layer, `shared` without
// shared experts: a dense layer's feed-forward is one shared expert.
struct Layer {
  Norm input_norm;
  Matrices query_a;
  Norm query_norm;
  Matrices query;
  Matrices latent;
  Norm latent_norm;
  // W^UK and W^UV by head: one takes queries to the latent
  // space, the other mixed latents out of it.
  Matrices w_uk;
  Matrices w_uv;
  // By head, in the format of the cache: what turns latents to keys and to values; without data
  // where prompts are never expanded.
  Matrices expanded_keys;
  Matrices expanded_values;
  Matrices out;
  Norm post_norm;
  Gate gate;
  Experts routed;
  Experts shared;
  // Its projection has no data but in MTP modules.
  Mtp mtp;
};

struct Shape : ChoiceRule {
  int64_t hidden;
  int64_t num_heads;
  int64_t nope;
  int64_t rotary;
  int64_t value;
  int64_t latent;
  float softmax_scale;
  bool is_interleaved;
  const float* frequencies;
  float rotary_factor;

  int64_t query_width() const { return nope + rotary; }
  int64_t cache_width() const { return latent + rotary; }
};

struct Stack {
  Shape shape;
  const Layer* layers;
};

// Some new tokens of one sequence: rows of the batch, and the blocks of its cached latents.
struct Sequence {
  int64_t first_row;
  int64_t num_rows;
  const int64_t* table;
};

// What the gates chose, (layer, row, slot); layers are the step's sparse ones, each `layer_rows`
// behind the one before, of which a step of a burst has its own part.
struct Choices {
  int64_t* experts;
  float* weights;
  bool* is_used;
  int64_t layer_rows;
};

struct Step {
  int64_t first_layer;
  int64_t last_layer;
  // The residual stream, (row, hidden), in and out; tokens' embeddings for an MTP module.
  float* x;
  // The states that an MTP module joins with them, else null.
  const float* hidden;
  int64_t num_rows;
  const int64_t* positions;
  // Where in the pages each row's latent goes.
  const int64_t* slots;
  // Each row's share of the way from the fewest experts to the most; null takes all.
  const float* fractions;
  const Sequence* sequences;
  int64_t num_sequences;
  // (layer, block, slot, latent and rotary), float32 or bfloat16.
  char* pages;
  Format cache_format;
  int64_t layer_slots;
  int64_t block_size;
  Choices choices;
  // Whether a prompt's latents may be expanded, where that is cheaper: its rows then have other
  // last bits than the same ones in a smaller step.
  bool may_expand;
  // Applied to x at the end, unless its weight is null; an MTP module has its own.
  Norm final_norm;
};

}  // namespace moestro
