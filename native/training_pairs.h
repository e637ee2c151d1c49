// Pairs of a row and an expert that it visits, sorted by expert and cut into blocks, as training
// takes them. Knows no numbers but counts and weights. Next: pair_rows.h.

#pragma once

#include "training.h"
#include "workspace.h"

namespace moestro {

// Pairs that a thread takes at once, a multiple of a tile's rows.
constexpr int64_t BLOCK_PAIRS = 64;

// Pairs in the order of their experts.
struct TrainingPairs {
  TrainingPairs(Workspace& workspace, const Visits& given, int64_t num_experts)
      : visits(given),
        slot(workspace.take<int64_t>(num_slots())),
        place(workspace.take<int64_t>(num_slots())),
        first(workspace.take<int64_t>(num_experts + 1)),
        first_word(workspace.take<int64_t>(num_experts + 1)),
        first_block(workspace.take<int64_t>(num_experts + 1)),
        blocks(workspace.take<Block>(divide_up(num_slots(), BLOCK_PAIRS) + num_experts)) {
    sort(num_experts, workspace.take<int64_t>(num_experts + 1));
  }

  // Up to BLOCK_PAIRS pairs of an expert.
  struct Block {
    int64_t expert, first_pair, num_pairs;
  };

  int64_t num_slots() const { return visits.num_rows * visits.num_slots; }
  int64_t row(int64_t pair) const { return slot[pair] / visits.num_slots; }
  float weight(int64_t pair) const { return visits.weights[slot[pair]]; }
  // Words of an expert's sums over pairs: two pairs each, filled up with zeros to whole panels.
  int64_t num_words(int64_t expert) const { return first_word[expert + 1] - first_word[expert]; }

  const Visits visits;
  // Where each pair comes from; the pair of each slot, -1 for one that is not in use.
  int64_t *const slot, *const place;
  // An expert's first pair, first word, and first block.
  int64_t *const first, *const first_word, *const first_block;
  Block* const blocks;
  int64_t num_blocks = 0;

 private:
  void sort(int64_t num_experts, int64_t* next) {
    for (int64_t e = 0; e <= num_experts; ++e) next[e] = 0;
    for (int64_t i = 0; i < num_slots(); ++i) {
      if (visits.is_used[i]) ++next[visits.experts[i] + 1];
    }
    first[0] = first_word[0] = first_block[0] = 0;
    for (int64_t e = 0; e < num_experts; ++e) {
      const int64_t pairs = next[e + 1];
      first[e + 1] = next[e + 1] = next[e] + pairs;
      first_word[e + 1] = first_word[e] + round_up(divide_up(pairs, 2), PANEL);
      for (int64_t start = 0; start < pairs; start += BLOCK_PAIRS) {
        blocks[num_blocks++] = {e, first[e] + start, smaller(BLOCK_PAIRS, pairs - start)};
      }
      first_block[e + 1] = num_blocks;
    }
    for (int64_t i = 0; i < num_slots(); ++i) {
      place[i] = visits.is_used[i] ? next[visits.experts[i]]++ : -1;
      if (place[i] >= 0) slot[place[i]] = i;
    }
  }
};

}  // namespace moestro
