// Scratch memory that a caller keeps from call to call, so that none is asked of the system.
// Knows no kernel. Next: team.h.

#pragma once

#include <cstdint>

namespace moestro {

class Workspace {
 public:
  Workspace() = default;
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // Gives back all that was taken, and makes room for what was asked for at the fullest.
  void reset();

  // Uninitialized, aligned to cache lines, until the next reset.
  template <class T>
  T* take(int64_t number) {
    return static_cast<T*>(take_bytes(number * static_cast<int64_t>(sizeof(T))));
  }

 private:
  struct Extra;
  void* take_bytes(int64_t number);
  void drop_extras();

  char* data_ = nullptr;
  int64_t size_ = 0;
  int64_t used_ = 0;
  // What did not fit, each piece of its own until the next reset.
  Extra* extras_ = nullptr;
};

// The calling thread's own: threads that call at once share no scratch memory.
Workspace& own_workspace();

}  // namespace moestro
