// The threads of one call: they share tasks out and wait for each other.
//
// Threads come from OpenMP, which torch has a pool of; sanitizer builds take their own, because
// OpenMP's synchronization is invisible to them. Knows no kernel. Next: isa_avx512.h.

#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace moestro {

class Team {
 public:
  // Phases whose tasks are counted apart: while slow threads look for tasks of one and fast ones
  // are in the next, the counters of the third are set back.
  static constexpr int COUNTED_PHASES = 3;

  // What the threads of a team have in common.
  struct Shared {
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<int> epoch{0};
    alignas(64) std::atomic<int> num_sleeping{0};
    struct alignas(64) Counter {
      std::atomic<int64_t> next{0};
    };
    // Tasks that were taken out of each thread's share, phase after phase.
    std::vector<Counter> counters;
  };

  Team(Shared& shared, int rank, int size) : shared_(shared), rank_(rank), size_(size) {}

  int rank() const { return rank_; }
  int size() const { return size_; }

  // Calls task(i) for each i below a number. A thread takes a share of neighbors in order, because
  // memory is read fastest from one end to the other, and then what others have not begun.
  // At most one `each` between two barriers.
  template <class Task>
  void each(int64_t number, Task task) {
    for (int i = 0; i < size_; ++i) {
      const int owner = (rank_ + i) % size_;
      const int64_t first = number * owner / size_, last = number * (owner + 1) / size_;
      std::atomic<int64_t>& next = shared_.counters[epoch_ % COUNTED_PHASES * size_ + owner].next;
      while (first + next.load(std::memory_order_relaxed) < last) {
        const int64_t taken = first + next.fetch_add(1, std::memory_order_relaxed);
        if (taken < last) task(taken);
      }
    }
  }

  // Waits for all threads: what one wrote before it, all see after it.
  void barrier();

 private:
  Shared& shared_;
  const int rank_, size_;
  int epoch_ = 0;
};

// Runs work(context, team) on so many threads, or fewer where there are no more, and waits for
// them; none of them may throw.
void run_team(int num_threads, void (*work)(void*, Team&), void* context);

template <class Work>
void run_team(int num_threads, Work work) {
  run_team(
      num_threads, [](void* context, Team& team) { (*static_cast<Work*>(context))(team); }, &work);
}

}  // namespace moestro
