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
  uint16_t* const y = pass.y;
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
                          [&](int64_t row, int64_t column, typename Isa::Lanes sums) {
                            Isa::store_bfloat16(sums, y + (first + row) * outputs + column);
                          });
    });
    team.barrier();
  });
}

template <class Isa>
void backward_product(const ProductBackward& pass, Workspace& workspace, int num_threads) {
  const TrainedProduct& given = pass.product;
  uint16_t *const dx = pass.dx, *const dweight = pass.dweight;
  const int64_t width = given.width, outputs = given.num_outputs, rows = given.num_rows;
  const int64_t num_words = round_up(rows, PRODUCT_ROWS) / 2;
  workspace.reset();
  const WholeRows all_x(workspace, given.x, rows, width), all_dy(workspace, pass.dy, rows, outputs);
  const Bands<Isa> weight(workspace.take<uint32_t>(outputs * width / 2), width, outputs / 2);
  const Bands<Isa> right(workspace.take<uint32_t>(num_words * width), width, num_words);
  const ColumnFactor<Isa> left{workspace.take<uint32_t>(num_words * outputs), outputs, num_words};
  const BandPlan<Isa> left_plan(outputs);
  run_with_tiles<Isa>(num_threads, [&](Team& team) {
    team.each(weight.plan.number, [&](int64_t b) {
      pack_rows<Isa>(given.weight, weight.num_words, weight, b, 0);
    });
    team.barrier();
    team.each(divide_up(rows, PRODUCT_ROWS), [&](int64_t task) {
      const int64_t first = task * PRODUCT_ROWS;
      const uint16_t *x = all_x.from(first), *g = all_dy.from(first);
      multiply_bands<Isa>(by_rows(g, outputs), smaller(PRODUCT_ROWS, rows - first), weight,
                          [&](int64_t row, int64_t column, typename Isa::Lanes sums) {
                            Isa::store_bfloat16(sums, dx + (first + row) * width + column);
                          });
      left.put(g, outputs, PRODUCT_ROWS, first / 2);
      for (int64_t b = 0; b < right.plan.number; ++b) {
        pack_rows<Isa>(x, PRODUCT_ROWS / 2, right, b, first / 2);
      }
    });
    team.barrier();
    team.each(left_plan.number * right.plan.number, [&](int64_t task) {
      const int64_t a = left_plan.first(task / right.plan.number), b = task % right.plan.number;
      uint16_t* to = dweight + a * width + right.plan.first(b);
      multiply_band<Isa>(left.from(a), left_plan.width(task / right.plan.number), right, b,
                         num_words, [&](int64_t row, int64_t column, typename Isa::Lanes sums) {
                           Isa::store_bfloat16(sums, to + row * width + column);
                         });
    });
    team.barrier();
  });
}

}  // namespace moestro::MOESTRO_ISA
