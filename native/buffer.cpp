#include "buffer.h"

#include <new>

namespace moestro {

namespace {
constexpr std::align_val_t LINE{64};
}

Buffer::Buffer(int64_t num_floats)
    : data_(static_cast<float*>(::operator new(sizeof(float) * num_floats, LINE))) {}

Buffer::~Buffer() { ::operator delete(data_, LINE); }

}  // namespace moestro
