// The kernels for processors with AVX-512 and AMX, whose tiles multiply bfloat16.

#define MOESTRO_ISA amx
#include "isa_amx.h"
#include "table.h"

namespace moestro {
constexpr Kernels amx_kernels = amx::table<Amx>();
}
