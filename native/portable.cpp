// The kernels for any processor.

#define MOESTRO_ISA portable
#include "isa_portable.h"
#include "attention_training.h"
#include "experts_training.h"
#include "gate_training.h"
#include "pick.h"
#include "rows_training.h"
#include "run.h"

namespace moestro {
const Kernels portable_kernels = {
    portable::multiply<Portable>,          portable::apply_experts<Portable>,
    portable::fill_sigmoids<Portable>,     portable::run<Portable>,
    portable::forward_experts<Portable>,   portable::backward_experts<Portable>,
    portable::forward_attention<Portable>, portable::backward_attention<Portable>,
    portable::forward_norm<Portable>,      portable::backward_norm<Portable>,
    portable::rotate<Portable>,            portable::differentiate_nats<Portable>,
    portable::forward_gate<Portable>,      portable::backward_gate<Portable>,
    portable::take_largest<Portable>,
    portable::pick_tokens<Portable>};
}
