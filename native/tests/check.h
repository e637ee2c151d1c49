// What the checks share: instruction sets to try, and how to say that something is wrong.

#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../processor.h"

namespace moestro::check {

using Named = NamedKernels;

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
void check_packing();
void check_picks();
void check_stacks();
void check_training();

}  // namespace moestro::check
