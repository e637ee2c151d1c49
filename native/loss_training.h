// The head and its cross-entropy in training, in one pass: nats, and the gradients of rows and
// head, while the probabilities of some rows are at hand. No more logits are ever held than a
// thread's block of rows has, and no more of their gradients than a chunk's.
//
// The head's gradient is a sum over rows: a chain over each chunk's, added chunk after chunk, so
// that no result depends on threads. Next: norm_training.h.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "band_products.h"
#include "team.h"
#include "workspace.h"

namespace moestro::MOESTRO_ISA {

// Rows whose gradients are summed in one chain, and rows of a task among them.
constexpr int64_t LOSS_CHUNK = 512;
constexpr int64_t LOSS_ROWS = 64;
static_assert(LOSS_ROWS % ROW_MULTIPLE == 0, "a task's rows are whole words of a chunk's");
// Tokens of the vocabulary whose gradients are summed as one task.
constexpr int64_t LOSS_TOKENS = 64;
// What keeps rows of logits' gradients, mostly a power of two long, out of each other's places in
// a cache.
constexpr int64_t LOSS_PADDING = 32;

template <class Isa>
class HeadLoss {
 public:
  HeadLoss(const LossRows& given, Workspace& workspace, int num_threads)
      : pass_(given),
        width_(given.width),
        vocabulary_(given.vocabulary),
        step_(vocabulary_ + LOSS_PADDING),
        by_tokens_(workspace.take<uint32_t>(vocabulary_ * width_ / 2), vocabulary_, width_ / 2),
        by_width_(workspace.take<uint32_t>(vocabulary_ * width_ / 2), width_, vocabulary_ / 2),
        x_words_(workspace.take<uint32_t>(LOSS_CHUNK * width_ / 2)),
        dlogits_(workspace.take<uint16_t>(LOSS_CHUNK * step_)),
        rows_(workspace.take<uint16_t>(num_threads * LOSS_ROWS * width_)),
        logits_(workspace.take<float>(num_threads * LOSS_ROWS * vocabulary_)),
        turned_(workspace.take<uint32_t>(num_threads * LOSS_CHUNK / 2 * LOSS_TOKENS)) {}

  void run(Team& team) {
    team.each(by_tokens_.plan.number + by_width_.plan.number, [&](int64_t task) {
      const int64_t b = task - by_tokens_.plan.number;
      if (b < 0) return pack_transposed<Isa>(pass_.head, by_tokens_, task);
      pack_rows<Isa>(pass_.head, by_width_.num_words, by_width_, b, 0);
    });
    team.barrier();
    for (int64_t first = 0; first < pass_.num_rows; first += LOSS_CHUNK) {
      const int64_t count = smaller(LOSS_CHUNK, pass_.num_rows - first);
      const Bands<Isa> x(x_words_, width_, round_up(count, LOSS_ROWS) / 2);
      team.each(divide_up(count, LOSS_ROWS), [&](int64_t block) {
        const int64_t row = block * LOSS_ROWS;
        differentiate(first + row, row, smaller(LOSS_ROWS, count - row), x, team.rank());
      });
      team.barrier();
      team.each(divide_up(vocabulary_, LOSS_TOKENS), [&](int64_t task) {
        sum_rows(task * LOSS_TOKENS, x, first == 0, team.rank());
      });
      team.barrier();
    }
  }

 private:
  using Lanes = typename Isa::Lanes;

  // Some rows' nats, the gradients of their logits, weights included, and those of the rows.
  void differentiate(int64_t first, int64_t row, int64_t count, const Bands<Isa>& x, int rank) {
    uint16_t* rows = rows_ + rank * LOSS_ROWS * width_;
    std::memcpy(rows, pass_.x + first * width_, 2 * count * width_);
    std::memset(rows + count * width_, 0, 2 * (LOSS_ROWS - count) * width_);
    for (int64_t b = 0; b < x.plan.number; ++b) {
      pack_rows<Isa>(rows, LOSS_ROWS / 2, x, b, row / 2);
    }
    float* logits = logits_ + rank * LOSS_ROWS * vocabulary_;
    multiply_bands<Isa>(by_rows(rows, width_), count, by_tokens_,
                        to_rows<Isa>(logits, vocabulary_));
    uint16_t* dlogits = dlogits_ + row * step_;
    for (int64_t r = 0; r < count; ++r) {
      differentiate_row(first + r, logits + r * vocabulary_, dlogits + r * step_);
    }
    for (int64_t r = count; r < LOSS_ROWS; ++r) {
      std::memset(dlogits + r * step_, 0, 2 * vocabulary_);
    }
    multiply_bands<Isa>(by_rows(dlogits, step_), count, by_width_,
                        to_rows<Isa>(pass_.dx + first * width_, width_));
  }

  void differentiate_row(int64_t row, float* logits, uint16_t* dlogits) const {
    const int64_t target = pass_.targets[row];
    const float goal = logits[target];
    Lanes most = Isa::load(logits);
    for (int64_t c = PANEL; c < vocabulary_; c += PANEL) {
      most = Isa::larger(most, Isa::load(logits + c));
    }
    const float largest = Isa::largest(most);
    Lanes total = Isa::fill(0.0f);
    for (int64_t c = 0; c < vocabulary_; c += PANEL) {
      const Lanes below = Isa::add(Isa::load(logits + c), Isa::fill(-largest));
      const Lanes share = exponential<Isa, BFLOAT16_TERMS>(below);
      total = Isa::add(total, share);
      Isa::store(share, logits + c);
    }
    const float sum = Isa::sum(total);
    pass_.nats[row] = std::log(sum) + largest - goal;
    // The gradient is the share, less 1 for the target.
    logits[target] -= sum;
    const Lanes scale = Isa::fill(pass_.weights[row] / sum);
    for (int64_t c = 0; c < vocabulary_; c += PANEL) {
      Isa::store_bfloat16(Isa::multiply(Isa::load(logits + c), scale), dlogits + c);
    }
  }

  // Adds a chunk's part of the gradients of some tokens' rows of the head.
  void sum_rows(int64_t token, const Bands<Isa>& x, bool is_first, int rank) {
    const int64_t count = smaller(LOSS_TOKENS, vocabulary_ - token), words = x.num_words;
    const ColumnFactor<Isa> dlogits{turned_ + rank * LOSS_CHUNK / 2 * LOSS_TOKENS, count, words};
    dlogits.put(dlogits_ + token, step_, 2 * words, 0);
    float* to = pass_.dhead + token * width_;
    multiply_bands<Isa>(dlogits.from(0), count, x,
                        [&](int64_t r, int64_t column, Lanes sums) {
                          float* sum = to + r * width_ + column;
                          Isa::store(is_first ? sums : Isa::add(Isa::load(sum), sums), sum);
                        });
  }

  const LossRows& pass_;
  const int64_t width_, vocabulary_, step_;
  // The head, once for products with rows and once for products with logits' gradients.
  const Bands<Isa> by_tokens_, by_width_;
  uint32_t* const x_words_;
  uint16_t* const dlogits_;
  uint16_t* const rows_;
  float* const logits_;
  uint32_t* const turned_;
};

template <class Isa>
void differentiate_loss(const LossRows& pass, Workspace& workspace, int num_threads) {
  for (int64_t t = 0; t < pass.num_rows; ++t) {
    if (pass.targets[t] < 0 || pass.targets[t] >= pass.vocabulary) {
      throw std::out_of_range("no such token");
    }
  }
  // Rows that there are none of teach nothing.
  if (pass.num_rows == 0) std::fill_n(pass.dhead, pass.vocabulary * pass.width, 0.0f);
  workspace.reset();
  HeadLoss<Isa> work(pass, workspace, num_threads);
  run_with_tiles<Isa>(num_threads, [&](Team& team) { work.run(team); });
}

}  // namespace moestro::MOESTRO_ISA
