// Which kernels this processor can run. Next: bindings/module.cpp.

#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace moestro {

struct NamedKernels {
  std::string name;
  const Kernels* kernels;
};

// Whether weights that one token reads had best be asked for past the caches. AMD's then leave them
// to all else that a step needs; Intel's take twice as long for such lines, and have room for many.
extern const bool PASSES_WEIGHTS_BY;

// The fastest first; portable ones are always there.
std::vector<NamedKernels> runnable_kernels();

}  // namespace moestro
