// Which kernels this processor can run. Next: module.cpp.

#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace moestro {

struct NamedKernels {
  std::string name;
  const Kernels* kernels;
};

// The fastest first; portable ones are always there.
std::vector<NamedKernels> runnable_kernels();

}  // namespace moestro
