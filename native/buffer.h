// Scratch memory, not initialized, aligned to cache lines. Knows no kernel. Next: block.h.

#pragma once

#include <cstdint>

namespace moestro {

class Buffer {
 public:
  explicit Buffer(int64_t num_floats);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  float* data() const { return data_; }

 private:
  float* data_;
};

}  // namespace moestro
