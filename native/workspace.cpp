#include "workspace.h"

#include <cstring>
#include <new>

namespace moestro {

namespace {
// Checks have each piece for itself, just as large as was asked for and filled with NaN, so that
// reading beyond it or before writing is noticed.
#if defined(MOESTRO_CHECKS)
constexpr bool IS_CHECKED = true;
#else
constexpr bool IS_CHECKED = false;
#endif
constexpr int64_t LINE = 64;
constexpr std::align_val_t ALIGNMENT{LINE};

char* allocate(int64_t size) { return static_cast<char*>(::operator new(size, ALIGNMENT)); }
char* try_to_allocate(int64_t size) {
  return static_cast<char*>(::operator new(size, ALIGNMENT, std::nothrow));
}
void release(char* data) { ::operator delete(data, ALIGNMENT); }
}  // namespace

struct Workspace::Extra {
  char* data;
  Extra* next;
};

Workspace::~Workspace() {
  drop_extras();
  release(data_);
}

void Workspace::reset() {
  drop_extras();
  if (used_ > size_ && !IS_CHECKED) {
    release(data_);
    // Where there is not enough for all at once, each piece is asked for by itself: a call that
    // wanted too much must not be the end of the calls after it.
    data_ = try_to_allocate(used_);
    size_ = data_ == nullptr ? 0 : used_;
  }
  used_ = 0;
}

void* Workspace::take_bytes(int64_t number) {
  const int64_t start = used_;
  used_ += (number + LINE - 1) / LINE * LINE;
  if (used_ <= size_) return data_ + start;
  extras_ = new Extra{nullptr, extras_};
  extras_->data = allocate(number);
  if (IS_CHECKED) std::memset(extras_->data, 0xff, number);
  return extras_->data;
}

void Workspace::drop_extras() {
  while (extras_ != nullptr) {
    Extra* next = extras_->next;
    release(extras_->data);
    delete extras_;
    extras_ = next;
  }
}

Workspace& own_workspace() {
  thread_local Workspace own;
  return own;
}

}  // namespace moestro
