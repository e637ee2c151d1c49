// The kernels for processors with AVX-512 and AMX, whose tiles multiply bfloat16.

#define MOESTRO_ISA amx
#include "isa_amx.h"
#include "attention_training.h"
#include "experts_training.h"
#include "gate_training.h"
#include "pick.h"
#include "rows_training.h"
#include "run.h"

namespace moestro {
const Kernels amx_kernels = {
    amx::multiply<Amx>,          amx::apply_experts<Amx>,
    amx::fill_sigmoids<Amx>,     amx::run<Amx>,
    amx::forward_experts<Amx>,   amx::backward_experts<Amx>,
    amx::forward_attention<Amx>, amx::backward_attention<Amx>,
    amx::forward_norm<Amx>,      amx::backward_norm<Amx>,
    amx::rotate<Amx>,            amx::differentiate_nats<Amx>,
    amx::forward_gate<Amx>,      amx::backward_gate<Amx>,
    amx::take_largest<Amx>,
    amx::pick_tokens<Amx>};
}
