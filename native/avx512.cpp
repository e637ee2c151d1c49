// The kernels for processors with AVX-512, VNNI and BF16.

#define MOESTRO_ISA avx512
#include "isa_avx512.h"
#include "attention_training.h"
#include "experts_training.h"
#include "gate_training.h"
#include "pick.h"
#include "rows_training.h"
#include "run.h"

namespace moestro {
const Kernels avx512_kernels = {
    avx512::multiply<Avx512>,          avx512::apply_experts<Avx512>,
    avx512::fill_sigmoids<Avx512>,     avx512::run<Avx512>,
    avx512::forward_experts<Avx512>,   avx512::backward_experts<Avx512>,
    avx512::forward_attention<Avx512>, avx512::backward_attention<Avx512>,
    avx512::forward_norm<Avx512>,      avx512::backward_norm<Avx512>,
    avx512::rotate<Avx512>,            avx512::differentiate_nats<Avx512>,
    avx512::forward_gate<Avx512>,      avx512::backward_gate<Avx512>,
    avx512::take_largest<Avx512>,
    avx512::pick_tokens<Avx512>};
}
