// The border to Python: addresses and sizes in, nothing out. Checks nothing; moestro/ops/native.py
// does. Addresses rather than arrays, because exchanging an array costs more than a small product.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace nb = nanobind;
using namespace moestro;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// What this processor can run, the fastest first.
std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
#ifdef MOESTRO_HAS_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) names.push_back("avx2");
#endif
  names.push_back("portable");
  return names;
}

class Library {
 public:
  explicit Library(const std::string& instruction_set) : kernels_(find(instruction_set)) {}

  void multiply(uintptr_t x, int64_t num_rows, int64_t num_matrices, uintptr_t weights, int format,
                int64_t depth, int64_t num_panels, uintptr_t y, int num_threads) const {
    kernels_.multiply({at<const float>(x), num_rows, num_matrices,
                       {at<const void>(weights), static_cast<Format>(format), depth, num_panels},
                       at<float>(y), num_threads});
  }

  void fill_sigmoids(uintptr_t x, int64_t number, uintptr_t y) const {
    kernels_.fill_sigmoids(at<const float>(x), number, at<float>(y));
  }

  void apply_experts(uintptr_t x, uintptr_t experts, uintptr_t scales, uintptr_t is_used,
                     int64_t num_rows, int64_t num_slots, int64_t num_experts, int64_t width,
                     uintptr_t gate_up, int64_t gate_up_panels, uintptr_t down,
                     int64_t down_panels, int format, int64_t depth, uintptr_t out,
                     int num_threads) const {
    const auto kind = static_cast<Format>(format);
    kernels_.apply_experts({at<const float>(x), at<const int64_t>(experts),
                            at<const float>(scales), at<const bool>(is_used), num_rows, num_slots,
                            num_experts, width,
                            {at<const void>(gate_up), kind, depth, gate_up_panels},
                            {at<const void>(down), kind, width, down_panels},
                            at<float>(out), num_threads});
  }

 private:
  static const Kernels& find(const std::string& name) {
#ifdef MOESTRO_HAS_AVX2
    if (name == "avx2") return avx2_kernels;
#endif
    if (name == "portable") return portable_kernels;
    throw std::invalid_argument("no kernels for " + name);
  }

  const Kernels& kernels_;
};

}  // namespace

NB_MODULE(_native, m) {
  // Kernels are chosen once for a process, so they are still there when it ends.
  nb::set_leak_warnings(false);
  m.def("instruction_sets", &instruction_sets);
  nb::class_<Library>(m, "Library")
      .def(nb::init<const std::string&>())
      .def("multiply", &Library::multiply, nb::call_guard<nb::gil_scoped_release>())
      .def("fill_sigmoids", &Library::fill_sigmoids, nb::call_guard<nb::gil_scoped_release>())
      .def("apply_experts", &Library::apply_experts, nb::call_guard<nb::gil_scoped_release>());
}
