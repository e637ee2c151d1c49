// Rows times matrices: one matrix for a linear layer, one for each head in attention.
// One parallel region over (matrix, group of panels). Next: experts.h.

#pragma once

#include "block.h"
#include "buffer.h"

namespace moestro {

template <class V, class W>
class Multiply {
 public:
  explicit Multiply(const Product& product)
      : product_(product),
        depth_(product.weights.depth),
        num_panels_(product.weights.num_panels),
        num_blocks_(divide_up(product.num_rows, BLOCK_ROWS)),
        block_rows_(even_rows(product.num_rows)),
        group_(group_size(num_panels_ * product.num_matrices, product.num_rows,
                          product.num_threads)),
        gathered_(product.num_rows > 1 ? product.num_rows * product.num_matrices * depth_ : 0) {}

  void run() {
    const int64_t num_groups = divide_up(num_panels_, group_);
    const int64_t num_matrices = product_.num_matrices;
#pragma omp parallel num_threads(product_.num_threads)
    {
      // No loop, no barrier: a single row's product takes microseconds.
      if (product_.num_rows > 1) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < num_matrices * num_blocks_; ++i) {
          gather_block(i / num_blocks_, i % num_blocks_);
        }
      }
#pragma omp for schedule(dynamic) nowait
      for (int64_t task = 0; task < num_matrices * num_groups; ++task) {
        multiply_group(task / num_groups, task % num_groups * group_);
      }
    }
  }

 private:
  int64_t rows_in(int64_t block) const {
    return smaller(block_rows_, product_.num_rows - block * block_rows_);
  }

  // One row lies side by side with itself as it is.
  const float* inputs(int64_t matrix, int64_t block) const {
    if (product_.num_rows == 1) return product_.x + matrix * depth_;
    return gathered(matrix, block);
  }

  float* gathered(int64_t matrix, int64_t block) const {
    return gathered_.data() + (matrix * product_.num_rows + block * block_rows_) * depth_;
  }

  void gather_block(int64_t matrix, int64_t block) {
    const float* rows[BLOCK_ROWS];
    for (int64_t r = 0; r < rows_in(block); ++r) {
      rows[r] = product_.x + ((block * block_rows_ + r) * product_.num_matrices + matrix) * depth_;
    }
    gather(rows, rows_in(block), depth_, gathered(matrix, block));
  }

  float* output(int64_t row, int64_t matrix) const {
    return product_.y + (row * product_.num_matrices + matrix) * num_panels_ * PANEL;
  }

  void multiply_group(int64_t matrix, int64_t panel) {
    const int64_t panels = smaller(group_, num_panels_ - panel), panel_size = depth_ * PANEL;
    const W* weights =
        static_cast<const W*>(product_.weights.data) + (matrix * num_panels_ + panel) * panel_size;
    for (int64_t t = 0; t < product_.num_rows; ++t) {
      clear(output(t, matrix) + panel * PANEL, panels * PANEL);
    }
    const int64_t chunk = chunk_size(product_.num_rows, depth_);
    for (int64_t start = 0; start < depth_; start += chunk) {
      const int64_t length = smaller(chunk, depth_ - start);
      for (int64_t b = 0; b < num_blocks_; ++b) {
        float* out[BLOCK_ROWS];
        for (int64_t r = 0; r < rows_in(b); ++r) out[r] = output(b * block_rows_ + r, matrix);
        add_rows<V, W>(rows_in(b), inputs(matrix, b) + start * rows_in(b),
                       weights + start * PANEL, panel_size, length, panels, out, panel * PANEL);
      }
    }
  }

  const Product& product_;
  const int64_t depth_, num_panels_, num_blocks_, block_rows_, group_;
  Buffer gathered_;
};

}  // namespace moestro
