#include "team.h"

#if defined(MOESTRO_STD_THREADS)
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif
#include <thread>

namespace moestro {

namespace {
// Spins before a waiting thread lets others have its core; a step's phases take microseconds.
constexpr int NUM_SPINS = 20000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}
}  // namespace

void Team::barrier() {
  const int next = epoch_ + 1;
  if (shared_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    shared_.arrived.store(0, std::memory_order_relaxed);
    // Tasks of the phase after the next one are counted from here; nobody is in it yet.
    shared_.counters[(next + 1) % 3].next.store(0, std::memory_order_relaxed);
    shared_.epoch.store(next, std::memory_order_release);
  } else {
    for (int spins = 0; shared_.epoch.load(std::memory_order_acquire) != next; ++spins) {
      spins < NUM_SPINS ? pause() : std::this_thread::yield();
    }
  }
  epoch_ = next;
}

void run_team(int num_threads, void (*work)(void*, Team&), void* context) {
  Team::Shared shared;
#if defined(MOESTRO_STD_THREADS)
  std::vector<std::thread> others;
  for (int rank = 1; rank < num_threads; ++rank) {
    others.emplace_back([&, rank] {
      Team team(shared, rank, num_threads);
      work(context, team);
    });
  }
  Team team(shared, 0, num_threads);
  work(context, team);
  for (std::thread& other : others) other.join();
#elif defined(_OPENMP)
#pragma omp parallel num_threads(num_threads)
  {
    Team team(shared, omp_get_thread_num(), omp_get_num_threads());
    work(context, team);
  }
#else
  (void)num_threads;
  Team team(shared, 0, 1);
  work(context, team);
#endif
}

}  // namespace moestro
