#include "team.h"

#if defined(MOESTRO_STD_THREADS)
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#include <pthread.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include <thread>

namespace moestro {

namespace {
// Spins before a waiting thread sleeps: tens of microseconds, longer than an even phase's rest.
constexpr int NUM_SPINS = 2000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Sleeps while a number is the same. A core that somebody else keeps busy is thereby left to the
// thread that is waited for, which a spinning one would keep off it for a whole time slice.
void sleep_while(std::atomic<int>& number, int value) {
#if defined(__linux__)
  static_assert(sizeof(number) == sizeof(int), "the system reads it as an int");
  syscall(SYS_futex, reinterpret_cast<int*>(&number), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr,
          0);
#else
  (void)number, (void)value;
  std::this_thread::yield();
#endif
}

void wake_all(std::atomic<int>& number) {
#if defined(__linux__)
  syscall(SYS_futex, reinterpret_cast<int*>(&number), FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr,
          0);
#else
  (void)number;
#endif
}

#if defined(_OPENMP) && !defined(MOESTRO_STD_THREADS)
// A child of a fork has its parent's memory and one thread: OpenMP
// would wait for those of the pool, which are no more. So that thread
// works alone; others that the child starts have pools of their own.
thread_local bool is_forked = false;
[[maybe_unused]] const int WATCHES_FORKS =
    pthread_atfork(nullptr, nullptr, [] { is_forked = true; });
#endif
}  // namespace

void Team::barrier() {
  const int now = epoch_, next = epoch_ + 1;
  epoch_ = next;
  if (shared_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    shared_.arrived.store(0, std::memory_order_relaxed);
    // Tasks of the phase after the next one are counted from here; nobody is in it yet.
    for (int owner = 0; owner < size_; ++owner) {
      const int counter = (next + 1) % COUNTED_PHASES * size_ + owner;
      shared_.counters[counter].next.store(0, std::memory_order_relaxed);
    }
    // Sequentially consistent, as is what sleepers do: either they see it or they are seen.
    shared_.epoch.store(next);
    if (shared_.num_sleeping.load() > 0) wake_all(shared_.epoch);
    return;
  }
  for (int spins = 0; spins < NUM_SPINS; ++spins) {
    if (shared_.epoch.load(std::memory_order_acquire) != now) return;
    pause();
  }
  shared_.num_sleeping.fetch_add(1);
  while (shared_.epoch.load() == now) sleep_while(shared_.epoch, now);
  shared_.num_sleeping.fetch_sub(1);
}

void run_team(int num_threads, void (*work)(void*, Team&), void* context) {
  Team::Shared shared;
  shared.counters = std::vector<Team::Shared::Counter>(Team::COUNTED_PHASES * num_threads);
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
#pragma omp parallel num_threads(is_forked ? 1 : num_threads)
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
