#include "pairs.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

namespace moestro {

Pairs::Pairs(const ExpertProduct& product) {
  const int64_t num_slots = product.num_rows * product.num_slots;
  std::vector<int64_t> next(product.num_experts + 1, 0);
  for (int64_t i = 0; i < num_slots; ++i) {
    if (!product.is_used[i]) continue;
    const int64_t expert = product.experts[i];
    if (expert < 0 || expert >= product.num_experts) throw std::out_of_range("no such expert");
    ++next[expert + 1];
  }
  for (int64_t e = 0; e < product.num_experts; ++e) {
    const int64_t pairs = next[e + 1];
    num_visited += pairs > 0;
    num_blocks += divide_up(pairs, BLOCK_ROWS);
    most_pairs = std::max(most_pairs, pairs);
    next[e + 1] += next[e];
  }
  num_pairs = next[product.num_experts];
  blocks.reset(new PairBlock[num_blocks]);
  visited.reset(new Visited[num_visited]);
  int64_t b = 0, v = 0;
  for (int64_t e = 0; e < product.num_experts; ++e) {
    const int64_t start = next[e], end = next[e + 1];
    if (start == end) continue;
    visited[v++] = {e, end - start, b, divide_up(end - start, BLOCK_ROWS)};
    const int64_t rows = even_rows(end - start);
    for (int64_t first = start; first < end; first += rows) {
      blocks[b++] = {first, std::min(rows, end - first)};
    }
  }
  row.reset(new int64_t[num_pairs]);
  scale.reset(new float[num_pairs]);
  for (int64_t i = 0; i < num_slots; ++i) {
    if (!product.is_used[i]) continue;
    const int64_t place = next[product.experts[i]]++;
    row[place] = i / product.num_slots;
    scale[place] = product.scales[i];
  }
}

Pairs::~Pairs() = default;

}  // namespace moestro
