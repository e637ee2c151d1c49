// The kernels for any processor.

#include "instantiate.h"
#include "vector_portable.h"

namespace moestro {
const Kernels portable_kernels = {multiply<Portable>, apply_experts<Portable>, fill_sigmoids<Portable>};
}
