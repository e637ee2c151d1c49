// Checks of the kernels without Python, for builds with sanitizers: `make check-native`.
// Next: products.cpp, packing.cpp, stacks.cpp, training.cpp, picks.cpp.

#include <cstdio>

#include "check.h"

int main() {
  using namespace moestro::check;
  check_products();
  check_experts();
  check_packing();
  check_picks();
  check_stacks();
  check_training();
  for (const Named& set : moestro::runnable_kernels()) std::printf("%s ", set.name.c_str());
  std::puts("are right");
}
