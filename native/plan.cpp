#include "plan.h"

namespace moestro {

AttentionPlan::AttentionPlan(Workspace& workspace, const Step& step, int64_t num_heads,
                             int num_threads)
    : step_(step),
      num_heads_(num_heads),
      first_parts_(workspace.take<int64_t>(step.num_sequences + 1)) {
  int64_t most_tasks = 0, num_parts_before = 0;
  for (int64_t s = 0; s < step.num_sequences; ++s) {
    first_parts_[s] = num_parts_before;
    num_parts_before += num_queries(s) * num_parts(s);
    most_tasks += divide_up(num_queries(s), task_size(s, num_threads)) * num_parts(s);
  }
  first_parts_[step.num_sequences] = num_parts_before;
  tasks_ = workspace.take<AttentionTask>(most_tasks);
  for (int64_t s = 0; s < step.num_sequences; ++s) add_tasks(s, num_threads);
}

int64_t AttentionPlan::task_size(int64_t sequence, int num_threads) const {
  // A short answer's only chunk would keep one thread busy and the others waiting.
  const bool is_scarce = step_.num_sequences * num_parts(sequence) < num_threads;
  const int64_t share = divide_up(num_queries(sequence), is_scarce ? num_threads : 1);
  return smaller(share, TASK_QUERIES);
}

void AttentionPlan::add_tasks(int64_t sequence, int num_threads) {
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
