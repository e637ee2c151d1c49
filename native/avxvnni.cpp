// The kernels for processors with AVX2 and AVX-VNNI.

#define MOESTRO_ISA avxvnni
#include "isa_avxvnni.h"
#include "table.h"

namespace moestro {
constexpr Kernels avxvnni_kernels = avxvnni::table<AvxVnni>();
}
