#include "processor.h"

#ifdef MOESTRO_HAS_X86
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moestro {

namespace {

#ifdef MOESTRO_HAS_X86
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512vnni() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_avx512() { return has_avx512vnni() && __builtin_cpu_supports("avx512bf16"); }
#endif

#ifdef MOESTRO_HAS_AVX_VNNI
// Leaf 7's second part names AVX-VNNI in bit 4.
bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1u << 4) != 0 && has_avx2();
}
#endif

#ifdef MOESTRO_HAS_AMX
// Tiles belong to a process that has asked Linux for room to save them.
bool may_use_tiles() {
#ifdef __linux__
  constexpr long ASK_FOR_STATE = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) == 0;
#else
  return false;
#endif
}

bool has_amx() {
  // Leaf 7 names bfloat16 tiles in bit 22 and tiles in bit 24.
  constexpr unsigned TILES = 1u << 22 | 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool has_leaf = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0;
  return has_leaf && (d & TILES) == TILES && has_avx512() && may_use_tiles();
}
#endif

}  // namespace

#ifdef MOESTRO_HAS_X86
const bool PASSES_WEIGHTS_BY = (__builtin_cpu_init(), __builtin_cpu_is("amd"));
#else
const bool PASSES_WEIGHTS_BY = false;
#endif

std::vector<NamedKernels> runnable_kernels() {
  std::vector<NamedKernels> found;
#ifdef MOESTRO_HAS_AMX
  if (has_amx()) found.push_back({"amx", &amx_kernels});
#endif
#ifdef MOESTRO_HAS_X86
  if (has_avx512()) found.push_back({"avx512", &avx512_kernels});
  if (has_avx512vnni()) found.push_back({"avx512vnni", &avx512vnni_kernels});
#endif
#ifdef MOESTRO_HAS_AVX_VNNI
  if (has_avxvnni()) found.push_back({"avxvnni", &avxvnni_kernels});
#endif
#ifdef MOESTRO_HAS_X86
  if (has_avx2()) found.push_back({"avx2", &avx2_kernels});
#endif
  found.push_back({"portable", &portable_kernels});
  return found;
}

}  // namespace moestro
