#include "workspace.h"

#include <new>

namespace moestro {

namespace {
constexpr int64_t LINE = 64;
constexpr std::align_val_t ALIGNMENT{LINE};

char* allocate(int64_t size) { return static_cast<char*>(::operator new(size, ALIGNMENT)); }
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
  if (used_ > size_) {
    release(data_);
    data_ = nullptr;
    data_ = allocate(used_);
    size_ = used_;
  }
  used_ = 0;
}

void* Workspace::take_bytes(int64_t number) {
  const int64_t start = used_;
  used_ += (number + LINE - 1) / LINE * LINE;
  if (used_ <= size_) return data_ + start;
  extras_ = new Extra{allocate(number), extras_};
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

}  // namespace moestro
