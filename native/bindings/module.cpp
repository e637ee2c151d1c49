// READ FIRST of the border to Python: moestro.ops._native, whose parts are a file each.
// Next: bindings.h, products.cpp, training.cpp, picking.cpp, stack.cpp.

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "../processor.h"
#include "bindings.h"

namespace moestro {

namespace {

// What this processor can run, the fastest first.
std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const NamedKernels& each : runnable_kernels()) names.push_back(each.name);
  return names;
}

const Kernels& find(const std::string& name) {
  for (const NamedKernels& each : runnable_kernels()) {
    if (each.name == name) return *each.kernels;
  }
  throw std::invalid_argument("no kernels for " + name);
}

}  // namespace

NB_MODULE(_native, m) {
  // Kernels are chosen once for a process, so they are still there when it ends.
  nb::set_leak_warnings(false);
  m.def("instruction_sets", &instruction_sets);
  nb::class_<Library> library(m, "Library");
  library.def("__init__", [](Library* self, const std::string& instruction_set) {
    new (self) Library{find(instruction_set)};
  });
  bind_products(m, library);
  bind_training(m, library);
  bind_picking(m, library);
  bind_stack(m);
}

}  // namespace moestro
