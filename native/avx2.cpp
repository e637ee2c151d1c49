// The kernels for processors with AVX2 and FMA. Compiled for them alone: nothing that other files
// use may be defined here.

#include "instantiate.h"
#include "vector_avx2.h"

namespace moestro {
const Kernels avx2_kernels = {multiply<Avx2>, apply_experts<Avx2>, fill_sigmoids<Avx2>};
}
