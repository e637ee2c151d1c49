#include "plan.h"

namespace moestro {

AttentionPlan::AttentionPlan(Workspace& workspace, const Step& step, const Shape& shape,
                             int num_threads)
    : step_(step),
      num_heads_(shape.num_heads),
      are_expanded_(workspace.take<bool>(step.num_sequences)),
      first_parts_(workspace.take<int64_t>(step.num_sequences + 1)) {
  int64_t most_tasks = 0, num_parts_before = 0;
  for (int64_t s = 0; s < step.num_sequences; ++s) {
    are_expanded_[s] = step.may_expand && pays_to_expand(s, shape, num_threads);
    if (are_expanded_[s]) most_expanded_ = larger(most_expanded_, step.sequences[s].num_rows);
    first_parts_[s] = num_parts_before;
    num_parts_before += num_queries(s) * num_parts(s);
    most_tasks += divide_up(num_queries(s), task_size(s, num_threads)) * num_parts(s);
  }
  first_parts_[step.num_sequences] = num_parts_before;
  tasks_ = workspace.take<AttentionTask>(most_tasks);
  for (int64_t s = 0; s < step.num_sequences; ++s) add_tasks(s, num_threads);
}

bool AttentionPlan::pays_to_expand(int64_t sequence, const Shape& shape, int num_threads) const {
  if (is_decoded(sequence)) return false;
  // Multiplications for a head. Rows of one sequence: the last one sees all keys, the middle one as
  // many as they do on average. A head's rows fill panels, those of all heads always do.
  const int64_t rows = step_.sequences[sequence].num_rows;
  const int64_t keys = num_keys(sequence, num_queries(sequence) - 1);
  const int64_t pairs = rows * (2 * keys - rows + 1) / 2;
  const int64_t matrix = (shape.nope + shape.value) * shape.latent;
  const int64_t absorbed = rows * matrix + pairs * (shape.latent + shape.cache_width());
  const int64_t filled = pairs * round_up(rows, PANEL) / rows;
  const int64_t expanded = keys * matrix + filled * (shape.value + shape.query_width());
  // Heads are a thread's work each: those that do not go round leave threads waiting.
  const int64_t rounds = divide_up(num_heads_, num_threads);
  return expanded * rounds * num_threads < absorbed * num_heads_;
}

int64_t AttentionPlan::task_size(int64_t sequence, int num_threads) const {
  // A short answer's only chunk would keep one thread busy and the others waiting.
  const bool is_scarce = step_.num_sequences * num_parts(sequence) < num_threads;
  const int64_t share = divide_up(num_queries(sequence), is_scarce ? num_threads : 1);
  return smaller(share, TASK_QUERIES);
}

void AttentionPlan::add_tasks(int64_t sequence, int num_threads) {
  if (is_expanded(sequence)) return;
  const int64_t queries = num_queries(sequence), size = task_size(sequence, num_threads);
  const int64_t parts = num_parts(sequence), chunks = num_chunks(sequence);
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t last_chunk = parts == 1 ? chunks : part + 1;
    for (int64_t q = 0; q < queries; q += size) {
      tasks_[num_tasks_++] = {sequence, q, smaller(size, queries - q), part, last_chunk};
    }
  }
}

}  // namespace moestro
