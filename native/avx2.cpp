// The kernels for processors with AVX2, FMA and F16C.

#define MOESTRO_ISA avx2
#include "isa_avx2.h"
#include "table.h"

namespace moestro {
constexpr Kernels avx2_kernels = avx2::table<Avx2>();
}
