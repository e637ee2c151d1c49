// A linear layer in training: y = x W^T, and the gradients of both. Next: loss_training.h.
//
// Rows go in blocks, each by one thread; the matrix's gradient is a sum over all rows, each number
// one chain: no result depends on threads.

#pragma once

#include <cstring>

#include "band_products.h"
#include "team.h"
#include "workspace.h"

namespace moestro::MOESTRO_ISA {

// Rows of a task.
constexpr int64_t PRODUCT_ROWS = 64;
static_assert(PRODUCT_ROWS % ROW_MULTIPLE == 0, "a task's rows are whole words of a sum");

// Rows as products read them: where they lie, or the last few of them filled up with zeros.
class WholeRows {
 public:
  WholeRows(Workspace& workspace, const uint16_t* rows, int64_t num_rows, int64_t row_width)
      : rows_(rows),
        width_(row_width),
        num_whole_(num_rows / PRODUCT_ROWS * PRODUCT_ROWS),
        last_(workspace.take<uint16_t>(PRODUCT_ROWS * width_)) {
    const int64_t rest = num_rows - num_whole_;
    if (rest > 0) std::memcpy(last_, rows + num_whole_ * width_, 2 * rest * width_);
    std::memset(last_ + rest * width_, 0, 2 * (PRODUCT_ROWS - rest) * width_);
  }

  const uint16_t* from(int64_t first) const {
    return first < num_whole_ ? rows_ + first * width_ : last_;
  }

 private:
  const uint16_t* const rows_;
  const int64_t width_, num_whole_;
  uint16_t* const last_;
};

template <class Isa>
void forward_product(const ProductForward& pass, Workspace& workspace, int num_threads) {
  const TrainedProduct& given = pass.product;
  const int64_t width = given.width, outputs = given.num_outputs;
  workspace.reset();
  const WholeRows x(workspace, given.x, given.num_rows, width);
  const Bands<Isa> weight(workspace.take<uint32_t>(outputs * width / 2), outputs, width / 2);
  run_with_tiles<Isa>(num_threads, [&](Team& team) {
    team.each(weight.plan.number,
              [&](int64_t b) { pack_transposed<Isa>(given.weight, weight, b); });
    team.barrier();
    team.each(divide_up(given.num_rows, PRODUCT_ROWS), [&](int64_t task) {
      const int64_t first = task * PRODUCT_ROWS;
      multiply_bands<Isa>(by_rows(x.from(first), width),
                          smaller(PRODUCT_ROWS, given.num_rows - first), weight,
                          to_rows<Isa>(pass.y + first * outputs, outputs));
    });
    team.barrier();
  });
}

// Gradients of rows, a block of them at a time, which also puts the block down for the sums over
// rows that are the matrix's.
template <class Isa>
class BackwardProduct {
 public:
  BackwardProduct(const ProductBackward& given, Workspace& workspace)
      : pass_(given),
        width_(given.product.width),
        outputs_(given.product.num_outputs),
        num_rows_(given.product.num_rows),
        num_words_(round_up(num_rows_, PRODUCT_ROWS) / 2),
        x_(workspace, given.product.x, num_rows_, width_),
        dy_(workspace, given.dy, num_rows_, outputs_),
        weight_(workspace.take<uint32_t>(outputs_ * width_ / 2), width_, outputs_ / 2),
        right_(workspace.take<uint32_t>(num_words_ * width_), width_, num_words_),
        left_{workspace.take<uint32_t>(num_words_ * outputs_), outputs_, num_words_},
        left_plan_(outputs_) {}

  void run(Team& team) const {
    team.each(weight_.plan.number, [&](int64_t b) {
      pack_rows<Isa>(pass_.product.weight, weight_.num_words, weight_, b, 0);
    });
    team.barrier();
    team.each(divide_up(num_rows_, PRODUCT_ROWS),
              [&](int64_t task) { go_back(task * PRODUCT_ROWS); });
    team.barrier();
    team.each(left_plan_.number * right_.plan.number, [&](int64_t task) {
      sum_rows(task / right_.plan.number, task % right_.plan.number);
    });
    team.barrier();
  }

 private:
  void go_back(int64_t first) const {
    const uint16_t *x = x_.from(first), *dy = dy_.from(first);
    multiply_bands<Isa>(by_rows(dy, outputs_), smaller(PRODUCT_ROWS, num_rows_ - first), weight_,
                        to_rows<Isa>(pass_.dx + first * width_, width_));
    left_.put(dy, outputs_, PRODUCT_ROWS, first / 2);
    for (int64_t b = 0; b < right_.plan.number; ++b) {
      pack_rows<Isa>(x, PRODUCT_ROWS / 2, right_, b, first / 2);
    }
  }

  // Bands `a` of outputs and `b` of inputs of the matrix's gradient.
  void sum_rows(int64_t a, int64_t b) const {
    uint16_t* to = pass_.dweight + left_plan_.first(a) * width_ + right_.plan.first(b);
    multiply_band<Isa>(left_.from(left_plan_.first(a)), left_plan_.width(a), right_, b, num_words_,
                       to_rows<Isa>(to, width_));
  }

  const ProductBackward& pass_;
  const int64_t width_, outputs_, num_rows_, num_words_;
  const WholeRows x_, dy_;
  const Bands<Isa> weight_, right_;
  const ColumnFactor<Isa> left_;
  const BandPlan<Isa> left_plan_;
};

template <class Isa>
void backward_product(const ProductBackward& pass, Workspace& workspace, int num_threads) {
  workspace.reset();
  const BackwardProduct<Isa> work(pass, workspace);
  run_with_tiles<Isa>(num_threads, [&](Team& team) { work.run(team); });
}

}  // namespace moestro::MOESTRO_ISA
