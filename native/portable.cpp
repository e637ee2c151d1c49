// The kernels for any processor.

#define MOESTRO_ISA portable
#include "isa_portable.h"
#include "table.h"

namespace moestro {
constexpr Kernels portable_kernels = portable::table<Portable>();
}
