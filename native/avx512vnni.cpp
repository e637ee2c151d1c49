// The kernels for processors with AVX-512 and VNNI.

#define MOESTRO_ISA avx512vnni
#include "isa_avx512vnni.h"
#include "table.h"

namespace moestro {
constexpr Kernels avx512vnni_kernels = avx512vnni::table<Avx512Vnni>();
}
