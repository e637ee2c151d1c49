// Picks tokens from rows of logits: the greatest sum of tempered logit and noise, among those that
// top-k, top-p and min-p leave. Functions of one row alone; moestro/ops/picking.py is the twin.
// Next: picking.h.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "likeliest.h"
#include "masks.h"
#include "noise.h"
#include "numbers.h"
#include "picking.h"
#include "team.h"
#include "workspace.h"

namespace moestro::MOESTRO_ISA {

// Tokens in all rows below which one thread is faster than
// waking a team (docs/log.md, "Picking tokens natively").
constexpr int64_t TEAM_TOKENS = 1 << 17;

// Scratch memory of one thread; all of it is filled up to whole panels.
struct PickMemory {
  PickMemory(Workspace& workspace, int64_t num_tokens)
      : tempered(workspace.take<float>(round_up(num_tokens, PANEL))),
        weights(workspace.take<float>(round_up(num_tokens, PANEL))),
        some(workspace.take<int64_t>(round_up(num_tokens, PANEL))) {}

  float *tempered, *weights;
  int64_t* some;
};

struct Best {
  int64_t token;
  float logit;
};

// The lowest token with the greatest logit, of whole panels; a NaN if there is one.
template <class Isa>
Best find_best(const float* logits, int64_t size) {
  auto most = Isa::fill(NEVER);
  uint32_t is_odd = 0;
  for (int64_t i = 0; i < size; i += PANEL) {
    most = Isa::larger(Isa::load(logits + i), most);
    is_odd |= not_numbers(logits + i);
  }
  if (is_odd) return {0, std::numeric_limits<float>::quiet_NaN()};
  const float best = Isa::largest(most);
  for (int64_t i = 0; i < size; i += PANEL) {
    const uint32_t bits = reaching(logits + i, best);
    if (bits) return {i + __builtin_ctz(bits), best};
  }
  return {0, best};
}

// Copies logits and fills up the last panel.
inline void copy_logits(const float* logits, int64_t size, float* to) {
  std::copy_n(logits, size, to);
  std::fill(to + size, to + round_up(size, PANEL), NEVER);
}

// Makes logits of tokens that are ruled out NEVER.
inline void keep_allowed(const uint32_t* allowed, int64_t size, float* logits) {
  for (int64_t i = 0; i < size; i += PANEL) {
    const uint32_t bits = allowed[i / 32] >> i % 32 & ALL_BITS;
    if (bits != ALL_BITS) keep(logits + i, bits, NEVER);
  }
}

// Turns logits into distances from the greatest, in units of the temperature.
template <class Isa>
void temper(float* logits, int64_t size, float best, float temperature) {
  const float inverse = 1.0f / std::fmax(temperature, std::numeric_limits<float>::min());
  const auto below = Isa::fill(-best), scale = Isa::fill(inverse);
  for (int64_t i = 0; i < size; i += PANEL) {
    Isa::store(Isa::multiply(Isa::add(Isa::load(logits + i), below), scale), logits + i);
  }
}

// Weights of tempered logits; returns their sum.
template <class Isa>
double fill_weights(const float* tempered, int64_t size, float* weights) {
  double total = 0.0;
  for (int64_t start = 0; start < size; start += SUMMED) {
    auto sum = Isa::fill(0.0f);
    for (int64_t i = start; i < smaller(start + SUMMED, round_up(size, PANEL)); i += PANEL) {
      const auto weight = exponential<Isa>(Isa::load(tempered + i));
      sum = Isa::add(sum, weight);
      Isa::store(weight, weights + i);
    }
    total += Isa::sum(sum);
  }
  return total;
}

// The token with the greatest sum of tempered logit and noise, of those that reach a floor.
template <class Isa>
int64_t find_winner(const PickRow& row, const float* tempered, int64_t size, int64_t best) {
  const uint64_t key = noise_word(row.stream, row.position);
  int64_t winner = best;
  double most = tempered[best] + gumbel(noise_word(key, best));
  for (int64_t i = 0; i < size; i += PANEL) {
    uint32_t bits = reaching(tempered + i, row.floor);
    if (bits == 0) continue;
    float bounds[PANEL];
    bound_sums<Isa>(tempered, i, key, bounds);
    for (bits &= reaching(bounds, static_cast<float>(most)); bits != 0; bits &= bits - 1) {
      const int64_t token = i + __builtin_ctz(bits);
      const double sum = tempered[token] + gumbel(noise_word(key, token));
      if (sum > most) {
        most = sum;
        winner = token;
      }
    }
  }
  return winner;
}

// Picks one of the tokens that are allowed, `best` being
// the likeliest of all by the model's logits.
template <class Isa>
int64_t choose_token(const PickRow& row, int64_t size, Best best, PickMemory& memory) {
  const bool is_changed = row.edited != row.logits || row.allowed != nullptr;
  if (row.temperature == 0.0f && !is_changed) return best.token;
  float* tempered = memory.tempered;
  copy_logits(row.edited, size, tempered);
  if (row.allowed != nullptr) keep_allowed(row.allowed, size, tempered);
  if (is_changed) best = find_best<Isa>(tempered, size);
  if (best.logit == NEVER) return EXHAUSTED;
  if (row.temperature == 0.0f) return best.token;
  temper<Isa>(tempered, size, best.logit, row.temperature);
  if (row.top_k > 0 && row.top_k < size) {
    keep_likeliest(tempered, nullptr, size, static_cast<double>(row.top_k), memory.some);
  }
  if (row.top_p < 1.0) {
    const double total = fill_weights<Isa>(tempered, size, memory.weights);
    keep_likeliest(tempered, memory.weights, size, row.top_p * total, memory.some);
  }
  return find_winner<Isa>(row, tempered, size, best.token);
}

// Log-probabilities are those of the model itself.
template <class Isa>
void score_token(const PickRow& row, int64_t size, float best, PickMemory& memory, Pick& pick) {
  float* below = memory.tempered;
  copy_logits(row.logits, size, below);
  temper<Isa>(below, size, best, 1.0f);
  const double log_total = std::log(fill_weights<Isa>(below, size, memory.weights));
  pick.logprob = below[pick.token] - log_total;
  if (row.num_alternatives == 0) return;
  if (row.num_alternatives < size) {
    keep_likeliest(below, nullptr, size, static_cast<double>(row.num_alternatives), memory.some);
  }
  int64_t number = 0;
  each_reaching(below, size, std::numeric_limits<float>::lowest(),
                [&](int64_t t) { memory.some[number++] = t; });
  sort_tokens(below, memory.some, number);
  pick.num_alternatives = number;
  for (int64_t i = 0; i < number; ++i) {
    pick.alternatives[i] = memory.some[i];
    pick.logprobs[i] = below[memory.some[i]] - log_total;
  }
}

template <class Isa>
void pick_row(const PickRow& row, int64_t size, PickMemory& memory, Pick& pick) {
  pick.num_alternatives = 0;
  pick.logprob = 0.0;
  const float* logits = row.logits;
  if (size % PANEL != 0) {
    copy_logits(logits, size, memory.tempered);
    logits = memory.tempered;
  }
  const Best own = find_best<Isa>(logits, size);
  if (!std::isfinite(own.logit)) {
    pick.token = DAMAGED;
    return;
  }
  pick.token = row.target >= 0 ? row.target : choose_token<Isa>(row, size, own, memory);
  if (pick.token >= 0 && row.num_alternatives >= 0) {
    score_token<Isa>(row, size, own.logit, memory, pick);
  }
}

template <class Isa>
void pick_tokens(const PickRow* rows, int64_t num_rows, int64_t size, Pick* picks,
                 Workspace& workspace, int num_threads) {
  workspace.reset();
  if (num_rows == 1 || num_rows * size < TEAM_TOKENS) num_threads = 1;
  PickMemory* memories = workspace.take<PickMemory>(num_threads);
  for (int i = 0; i < num_threads; ++i) memories[i] = PickMemory(workspace, size);
  const auto work = [&](Team& team) {
    team.each(num_rows, [&](int64_t i) {
      pick_row<Isa>(rows[i], size, memories[team.rank()], picks[i]);
    });
  };
  run_team(num_threads, work);
}

}  // namespace moestro::MOESTRO_ISA
