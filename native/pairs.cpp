#include "pairs.h"

#include <stdexcept>

namespace moestro {

Pairs::Pairs(Workspace& workspace, int64_t most_pairs, int64_t most_experts)
    : row(workspace.take<int64_t>(most_pairs)),
      weight(workspace.take<float>(most_pairs)),
      // An expert's last block may be short.
      blocks(workspace.take<PairBlock>(divide_up(most_pairs, BLOCK_ROWS) + most_experts)),
      visited(workspace.take<Visited>(most_experts)),
      most_experts_(most_experts),
      next_(workspace.take<int64_t>(most_experts + 1)) {}

void Pairs::sort(const Visits& visits, int64_t most_rows) {
  num_blocks = num_visited = 0;
  const int64_t num_slots = visits.num_rows * visits.num_slots;
  for (int64_t e = 0; e <= most_experts_; ++e) next_[e] = 0;
  for (int64_t i = 0; i < num_slots; ++i) {
    if (visits.is_used[i]) ++next_[visits.experts[i] + 1];
  }
  for (int64_t e = 0; e < most_experts_; ++e) {
    const int64_t pairs = next_[e + 1];
    next_[e + 1] += next_[e];
    add_expert(e, next_[e], next_[e] + pairs, most_rows);
  }
  num_pairs = next_[most_experts_];
  for (int64_t i = 0; i < num_slots; ++i) {
    if (!visits.is_used[i]) continue;
    const int64_t place = next_[visits.experts[i]]++;
    row[place] = i / visits.num_slots;
    weight[place] = visits.weights[i];
  }
}

void Pairs::visit_one(int64_t num_rows, int64_t most_rows) {
  num_blocks = num_visited = 0;
  num_pairs = num_rows;
  add_expert(0, 0, num_rows, most_rows);
  for (int64_t t = 0; t < num_rows; ++t) {
    row[t] = t;
    weight[t] = 1.0f;
  }
}

void Pairs::add_expert(int64_t expert, int64_t start, int64_t end, int64_t most_rows) {
  if (start == end) return;
  const int64_t rows = even_rows(end - start, most_rows);
  visited[num_visited++] = {expert, end - start, num_blocks, divide_up(end - start, rows)};
  for (int64_t first = start; first < end; first += rows) {
    blocks[num_blocks++] = {first, smaller(rows, end - first)};
  }
}

void check_visits(const Visits& visits, int64_t num_experts) {
  for (int64_t i = 0; i < visits.num_rows * visits.num_slots; ++i) {
    const int64_t expert = visits.experts[i];
    if (visits.is_used[i] && (expert < 0 || expert >= num_experts)) {
      throw std::out_of_range("no such expert");
    }
  }
}

}  // namespace moestro
