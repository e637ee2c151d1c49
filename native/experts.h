// Rows through the experts that they visit: gate and up with SiLU, then down, summed by weight.
// One parallel region, first over (expert, group of panels), then over groups of outputs: each
// expert's weights are read once, however many rows share it. Next: module.cpp.

#pragma once

#include "block.h"
#include "buffer.h"
#include "pairs.h"
#include "silu.h"

namespace moestro {

template <class V, class W>
class Experts {
 public:
  explicit Experts(const ExpertProduct& product)
      : product_(product),
        pairs_(product),
        depth_(product.gate_up.depth),
        gathered_(pairs_.num_pairs * depth_),
        hidden_(pairs_.num_pairs * product.width) {}

  void run() {
    const int64_t gate_up_groups = divide_up(product_.gate_up.num_panels, GROUP_PANELS);
    const int64_t out_panels = product_.down.num_panels;
    const int64_t out_group = group_size(out_panels, product_.num_rows, product_.num_threads);
#pragma omp parallel num_threads(product_.num_threads)
    {
      Buffer raw(pairs_.most_pairs * GROUP_PANELS * PANEL);
      // No loop, no barrier: a single token's experts take microseconds.
      if (pairs_.most_pairs > 1) {
#pragma omp for schedule(static)
        for (int64_t b = 0; b < pairs_.num_blocks; ++b) gather_block(pairs_.blocks[b]);
      }
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < pairs_.num_visited * gate_up_groups; ++task) {
        const Visited& visited = pairs_.visited[task / gate_up_groups];
        fill_hidden(visited, task % gate_up_groups * GROUP_PANELS, raw.data());
      }
#pragma omp for schedule(dynamic) nowait
      for (int64_t panel = 0; panel < out_panels; panel += out_group) {
        fill_out(panel, smaller(out_group, out_panels - panel));
      }
    }
  }

 private:
  // One row lies side by side with itself as it is.
  const float* inputs(const PairBlock& block) const {
    if (block.num_rows == 1) return product_.x + pairs_.row[block.first_pair] * depth_;
    return gathered_.data() + block.first_pair * depth_;
  }

  void gather_block(const PairBlock& block) {
    if (block.num_rows == 1) return;
    const float* rows[BLOCK_ROWS];
    for (int64_t r = 0; r < block.num_rows; ++r) {
      rows[r] = product_.x + pairs_.row[block.first_pair + r] * depth_;
    }
    gather(rows, block.num_rows, depth_, gathered_.data() + block.first_pair * depth_);
  }

  const W* panels(const Weights& weights, int64_t expert, int64_t panel) const {
    return static_cast<const W*>(weights.data) +
           (expert * weights.num_panels + panel) * weights.depth * PANEL;
  }

  void fill_hidden(const Visited& visited, int64_t panel, float* raw) {
    constexpr int64_t COLUMNS = GROUP_PANELS * PANEL;
    const int64_t num_panels = smaller(GROUP_PANELS, product_.gate_up.num_panels - panel);
    const W* weights = panels(product_.gate_up, visited.expert, panel);
    const int64_t chunk = chunk_size(visited.num_pairs, depth_);
    clear(raw, visited.num_pairs * COLUMNS);
    for (int64_t start = 0; start < depth_; start += chunk) {
      const int64_t length = smaller(chunk, depth_ - start);
      for (int64_t b = 0; b < visited.num_blocks; ++b) {
        const PairBlock& block = pairs_.blocks[visited.first_block + b];
        float* out[BLOCK_ROWS];
        for (int64_t r = 0; r < block.num_rows; ++r) out[r] = first_raw(visited, b, raw) + r * COLUMNS;
        add_rows<V, W>(block.num_rows, inputs(block) + start * block.num_rows,
                       weights + start * PANEL, depth_ * PANEL, length, num_panels, out, 0);
      }
    }
    for (int64_t b = 0; b < visited.num_blocks; ++b) {
      const PairBlock& block = pairs_.blocks[visited.first_block + b];
      for (int64_t pair = 0; pair < num_panels; pair += 2) {
        activate(block, first_raw(visited, b, raw) + pair * PANEL, (panel + pair) / 2 * PANEL);
      }
    }
  }

  float* first_raw(const Visited& visited, int64_t b, float* raw) const {
    const PairBlock* blocks = pairs_.blocks.get() + visited.first_block;
    return raw + (blocks[b].first_pair - blocks[0].first_pair) * GROUP_PANELS * PANEL;
  }

  // A gate's panel and the up projection's beside it become hidden columns, rows side by side.
  void activate(const PairBlock& block, const float* raw, int64_t first_column) {
    float* hidden = hidden_.data() + block.first_pair * product_.width;
    const int64_t num_columns = smaller(PANEL, product_.width - first_column);
    for (int64_t r = 0; r < block.num_rows; ++r, raw += GROUP_PANELS * PANEL) {
      float active[PANEL];
      const V scale = V::fill(pairs_.scale[block.first_pair + r]);
      for (int64_t c = 0; c < PANEL; c += V::WIDTH) {
        const V up = V::load(raw + PANEL + c) * scale;
        (silu(V::load(raw + c)) * up).store(active + c);
      }
      for (int64_t c = 0; c < num_columns; ++c) {
        hidden[(first_column + c) * block.num_rows + r] = active[c];
      }
    }
  }

  // A row's experts are summed in the order of their numbers, whoever else visits them.
  void fill_out(int64_t panel, int64_t num_panels) {
    const int64_t stride = product_.down.num_panels * PANEL;
    for (int64_t t = 0; t < product_.num_rows; ++t) {
      clear(product_.out + t * stride + panel * PANEL, num_panels * PANEL);
    }
    for (int64_t v = 0; v < pairs_.num_visited; ++v) add_down(pairs_.visited[v], panel, num_panels);
  }

  void add_down(const Visited& visited, int64_t panel, int64_t num_panels) {
    const int64_t width = product_.width, stride = product_.down.num_panels * PANEL;
    const W* weights = panels(product_.down, visited.expert, panel);
    const int64_t chunk = chunk_size(visited.num_pairs, width);
    for (int64_t start = 0; start < width; start += chunk) {
      const int64_t length = smaller(chunk, width - start);
      for (int64_t b = 0; b < visited.num_blocks; ++b) {
        const PairBlock& block = pairs_.blocks[visited.first_block + b];
        float* out[BLOCK_ROWS];
        for (int64_t r = 0; r < block.num_rows; ++r) {
          out[r] = product_.out + pairs_.row[block.first_pair + r] * stride;
        }
        add_rows<V, W>(block.num_rows,
                       hidden_.data() + block.first_pair * width + start * block.num_rows,
                       weights + start * PANEL, width * PANEL, length, num_panels, out,
                       panel * PANEL);
      }
    }
  }

  const ExpertProduct& product_;
  const Pairs pairs_;
  const int64_t depth_;
  Buffer gathered_, hidden_;
};

}  // namespace moestro
