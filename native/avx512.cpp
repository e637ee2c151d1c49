// The kernels for processors with AVX-512, VNNI and BF16.

#define MOESTRO_ISA avx512
#include "isa_avx512.h"
#include "table.h"

namespace moestro {
constexpr Kernels avx512_kernels = avx512::table<Avx512>();
}
