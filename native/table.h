// All kernels of one instruction set, in the order of `Kernels`.

#pragma once

#include "attention_training.h"
#include "balance_training.h"
#include "experts_training.h"
#include "gate_training.h"
#include "loss_training.h"
#include "norm_training.h"
#include "orthogonalize.h"
#include "packing.h"
#include "pick.h"
#include "products_training.h"
#include "rotate_training.h"
#include "run.h"

namespace moestro::MOESTRO_ISA {

// Known when this is compiled: nothing of it may run on a processor that lacks the instructions.
template <class Isa>
constexpr Kernels table() {
  return {interleave<Isa>,         multiply<Isa>,           apply_experts<Isa>,
          fill_sigmoids<Isa>,      run<Isa>,                forward_experts<Isa>,
          backward_experts<Isa>,   forward_product<Isa>,    backward_product<Isa>,
          forward_attention<Isa>,  backward_attention<Isa>, forward_norm<Isa>,
          backward_norm<Isa>,      rotate<Isa>,             differentiate_loss<Isa>,
          forward_gate<Isa>,       backward_gate<Isa>,      differentiate_balance<Isa>,
          pick_tokens<Isa>,        orthogonalize<Isa>};
}

}  // namespace moestro::MOESTRO_ISA
