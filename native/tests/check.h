// What the checks share: instruction sets to try, and how to say that something is wrong.

#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../kernels.h"

namespace moestro::check {

struct Named {
  const char* name;
  const Kernels* kernels;
};

// Those that this build has and this processor runs.
inline std::vector<Named> instruction_sets() {
  std::vector<Named> sets{{"portable", &portable_kernels}};
#ifdef MOESTRO_HAS_X86
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    sets.push_back({"avx2", &avx2_kernels});
  }
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
    sets.push_back({"avx512", &avx512_kernels});
  }
#endif
  return sets;
}

constexpr Format FORMATS[] = {Format::float32, Format::bfloat16, Format::int8, Format::int4};

inline void require(bool is_right, const std::string& claim) {
  if (is_right) return;
  std::fprintf(stderr, "wrong: %s\n", claim.c_str());
  std::exit(1);
}

inline bool same_bits(const float* a, const float* b, int64_t number) {
  return std::memcmp(a, b, sizeof(float) * number) == 0;
}

void check_products();
void check_experts();
void check_stacks();
void check_training();

}  // namespace moestro::check
