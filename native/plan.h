// Who attends to what in one step: tasks of some queries and some chunks of keys. Knows no numbers.
// Next: attention.h.

#pragma once

#include "stack.h"
#include "workspace.h"

namespace moestro {

// Keys are taken in chunks with fixed borders, each for itself, and chunks are merged in order: a
// query's sums have one order, whatever else is in the batch.
constexpr int64_t CHUNK = 512;
// Queries, each of one row and one head, that read keys together.
constexpr int64_t TASK_QUERIES = 48;
// A sequence of more new rows has enough queries to go round: its tasks take all chunks in turn.
constexpr int64_t MOST_DECODED = 8;

struct AttentionTask {
  int64_t sequence;
  int64_t first_query;
  int64_t num_queries;
  int64_t first_chunk;
  int64_t last_chunk;
};

class AttentionPlan {
 public:
  AttentionPlan(Workspace& workspace, const Step& step, const Shape& shape, int num_threads);

  int64_t num_tasks() const { return num_tasks_; }
  const AttentionTask& task(int64_t index) const { return tasks_[index]; }

  // Queries are numbered by row, then head.
  int64_t num_queries(int64_t sequence) const {
    return step_.sequences[sequence].num_rows * num_heads_;
  }
  // Keys that a query sees, its own row's included.
  int64_t num_keys(int64_t sequence, int64_t query) const {
    return step_.positions[step_.sequences[sequence].first_row + query / num_heads_] + 1;
  }
  // Chunks whose mixtures are kept apart until all are there.
  int64_t num_parts(int64_t sequence) const {
    if (is_expanded(sequence)) return 0;
    return is_decoded(sequence) ? num_chunks(sequence) : 1;
  }
  // Where a query's part lies among all; parts of one chunk lie side by side.
  int64_t part(int64_t sequence, int64_t index, int64_t query) const {
    return first_parts_[sequence] + index * num_queries(sequence) + query;
  }
  int64_t num_all_parts() const { return first_parts_[step_.num_sequences]; }

  // Whether a sequence's latents are expanded (expanded.h): it has no tasks then.
  bool is_expanded(int64_t sequence) const { return are_expanded_[sequence]; }
  // How many rows the largest of those has.
  int64_t most_expanded() const { return most_expanded_; }

 private:
  bool is_decoded(int64_t sequence) const {
    return step_.sequences[sequence].num_rows <= MOST_DECODED;
  }
  int64_t num_chunks(int64_t sequence) const {
    return divide_up(num_keys(sequence, num_queries(sequence) - 1), CHUNK);
  }
  bool pays_to_expand(int64_t sequence, const Shape& shape, int num_threads) const;
  int64_t task_size(int64_t sequence, int num_threads) const;
  void add_tasks(int64_t sequence, int num_threads);

  const Step& step_;
  const int64_t num_heads_;
  bool* are_expanded_;
  int64_t most_expanded_ = 0;
  int64_t* first_parts_;
  AttentionTask* tasks_;
  int64_t num_tasks_ = 0;
};

}  // namespace moestro
