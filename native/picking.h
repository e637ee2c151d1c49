// What picking tokens takes and gives. Next: pick.h.

#pragma once

#include "kernels.h"

namespace moestro {

// A row without a token: its logits are not finite, or nothing is left to pick from.
constexpr int64_t DAMAGED = -1, EXHAUSTED = -2;

// One row of logits and how to pick from it. Tempered logits are distances from the likeliest
// token's: 0 and less.
struct PickRow {
  // The model's own, and those to pick from: the same, or with bias and penalties.
  const float* logits;
  const float* edited;
  // A bit for each token that may be picked, in whole words; null if all may.
  const uint32_t* allowed;
  // 0 takes the likeliest.
  float temperature;
  // Top-k (0 for all), then top-p of those, then tempered logits that reach a floor.
  int64_t top_k;
  double top_p;
  float floor;
  // The noise of an answer, and which of its tokens this is: see `noise_word`.
  uint64_t stream;
  int64_t position;
  // The token to score instead of picking one, or less than 0.
  int64_t target;
  // How many of the likeliest tokens to score too; less than 0 if no token is scored.
  int64_t num_alternatives;
};

// What came of a row: the token, and log-probabilities of it and of alternatives, likeliest first.
struct Pick {
  int64_t token;
  double logprob;
  int64_t num_alternatives;
  int64_t* alternatives;
  double* logprobs;
};

}  // namespace moestro
