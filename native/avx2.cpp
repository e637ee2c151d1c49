// The kernels for processors with AVX2, FMA and F16C.

#define MOESTRO_ISA avx2
#include "isa_avx2.h"
#include "attention_training.h"
#include "experts_training.h"
#include "gate_training.h"
#include "pick.h"
#include "rows_training.h"
#include "run.h"

namespace moestro {
const Kernels avx2_kernels = {
    avx2::multiply<Avx2>,          avx2::apply_experts<Avx2>,
    avx2::fill_sigmoids<Avx2>,     avx2::run<Avx2>,
    avx2::forward_experts<Avx2>,   avx2::backward_experts<Avx2>,
    avx2::forward_attention<Avx2>, avx2::backward_attention<Avx2>,
    avx2::forward_norm<Avx2>,      avx2::backward_norm<Avx2>,
    avx2::rotate<Avx2>,            avx2::differentiate_nats<Avx2>,
    avx2::forward_gate<Avx2>,      avx2::backward_gate<Avx2>,
    avx2::take_largest<Avx2>,
    avx2::pick_tokens<Avx2>};
}
