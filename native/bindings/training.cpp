// What training takes and gives. Next: ../training.h.

#include "../training.h"

#include "bindings.h"

namespace moestro {

namespace {

void bind_experts(nb::module_& m, nb::class_<Library>& library) {
  bind_struct<TrainedExperts>(m, "TrainedExperts",
      FIELD(TrainedExperts, gate_up), FIELD(TrainedExperts, down),
      FIELD(TrainedExperts, num_experts), FIELD(TrainedExperts, width),
      FIELD(TrainedExperts, hidden_width));
  bind_struct<ExpertsForward>(m, "ExpertsForward",
      FIELD(ExpertsForward, x), FIELD(ExpertsForward, before), FIELD(ExpertsForward, also_before),
      FIELD(ExpertsForward, visits), FIELD(ExpertsForward, experts), FIELD(ExpertsForward, hidden),
      FIELD(ExpertsForward, out));
  bind_struct<ExpertsBackward>(m, "ExpertsBackward",
      FIELD(ExpertsBackward, x), FIELD(ExpertsBackward, before), FIELD(ExpertsBackward, hidden),
      FIELD(ExpertsBackward, dout), FIELD(ExpertsBackward, visits), FIELD(ExpertsBackward, experts),
      FIELD(ExpertsBackward, dx), FIELD(ExpertsBackward, dweights),
      FIELD(ExpertsBackward, dgate_up), FIELD(ExpertsBackward, ddown));
  bind_kernel(library, "forward_experts", &Kernels::forward_experts);
  bind_kernel(library, "backward_experts", &Kernels::backward_experts);
}

void bind_linear_layers(nb::module_& m, nb::class_<Library>& library) {
  bind_struct<TrainedProduct>(m, "TrainedProduct",
      FIELD(TrainedProduct, x), FIELD(TrainedProduct, weight), FIELD(TrainedProduct, num_rows),
      FIELD(TrainedProduct, width), FIELD(TrainedProduct, num_outputs));
  bind_struct<ProductForward>(m, "ProductForward",
      FIELD(ProductForward, product), FIELD(ProductForward, y));
  bind_struct<ProductBackward>(m, "ProductBackward",
      FIELD(ProductBackward, product), FIELD(ProductBackward, dy), FIELD(ProductBackward, dx),
      FIELD(ProductBackward, dweight));
  bind_kernel(library, "forward_product", &Kernels::forward_product);
  bind_kernel(library, "backward_product", &Kernels::backward_product);
}

void bind_attention(nb::module_& m, nb::class_<Library>& library) {
  bind_struct<AttentionShape>(m, "AttentionShape",
      FIELD(AttentionShape, num_sequences), FIELD(AttentionShape, length),
      FIELD(AttentionShape, num_heads), FIELD(AttentionShape, nope), FIELD(AttentionShape, rotary),
      FIELD(AttentionShape, value), FIELD(AttentionShape, scale));
  bind_struct<AttentionParts>(m, "AttentionParts",
      FIELD(AttentionParts, query_nope), FIELD(AttentionParts, query_rope),
      FIELD(AttentionParts, key_nope), FIELD(AttentionParts, key_rope),
      FIELD(AttentionParts, value));
  bind_struct<AttentionForward>(m, "AttentionForward",
      FIELD(AttentionForward, shape), FIELD(AttentionForward, inputs), FIELD(AttentionForward, out),
      FIELD(AttentionForward, log_totals));
  bind_struct<AttentionBackward>(m, "AttentionBackward",
      FIELD(AttentionBackward, shape), FIELD(AttentionBackward, inputs),
      FIELD(AttentionBackward, out), FIELD(AttentionBackward, dout),
      FIELD(AttentionBackward, log_totals), FIELD(AttentionBackward, gradients),
      FIELD(AttentionBackward, dkey_ropes));
  bind_kernel(library, "forward_attention", &Kernels::forward_attention);
  bind_kernel(library, "backward_attention", &Kernels::backward_attention);
}

void bind_rows(nb::module_& m, nb::class_<Library>& library) {
  bind_struct<HeadRows>(m, "HeadRows",
      FIELD(HeadRows, data), FIELD(HeadRows, row_step), FIELD(HeadRows, head_step));
  bind_struct<NormRows>(m, "NormRows",
      FIELD(NormRows, x), FIELD(NormRows, step), FIELD(NormRows, num_rows), FIELD(NormRows, width),
      FIELD(NormRows, weight), FIELD(NormRows, epsilon));
  bind_struct<NormForward>(m, "NormForward",
      FIELD(NormForward, norm), FIELD(NormForward, more), FIELD(NormForward, sum),
      FIELD(NormForward, y));
  bind_struct<NormBackward>(m, "NormBackward",
      FIELD(NormBackward, norm), FIELD(NormBackward, dy), FIELD(NormBackward, drows),
      FIELD(NormBackward, dx), FIELD(NormBackward, dx_step), FIELD(NormBackward, dweight));
  bind_struct<Rotation>(m, "Rotation",
      FIELD(Rotation, x), FIELD(Rotation, num_rows), FIELD(Rotation, length),
      FIELD(Rotation, num_heads), FIELD(Rotation, num_pairs), FIELD(Rotation, cosines),
      FIELD(Rotation, sines), FIELD(Rotation, is_interleaved), FIELD(Rotation, is_inverse),
      FIELD(Rotation, y));
  bind_kernel(library, "forward_norm", &Kernels::forward_norm);
  bind_kernel(library, "backward_norm", &Kernels::backward_norm);
  bind_kernel(library, "rotate", &Kernels::rotate);
}

void bind_gate(nb::module_& m, nb::class_<Library>& library) {
  bind_struct<ChoiceRule>(m, "ChoiceRule",
      FIELD(ChoiceRule, num_slots), FIELD(ChoiceRule, fewest), FIELD(ChoiceRule, num_expert_groups),
      FIELD(ChoiceRule, topk_group), FIELD(ChoiceRule, best_of_group),
      FIELD(ChoiceRule, is_sigmoid), FIELD(ChoiceRule, is_normalized),
      FIELD(ChoiceRule, routed_scaling_factor), FIELD(ChoiceRule, num_fractions),
      FIELD(ChoiceRule, fractions));
  bind_struct<GateRows>(m, "GateRows",
      FIELD(GateRows, x), FIELD(GateRows, num_rows), FIELD(GateRows, width),
      FIELD(GateRows, weight), FIELD(GateRows, num_experts), FIELD(GateRows, rule),
      FIELD(GateRows, bias), FIELD(GateRows, thresholds), FIELD(GateRows, fractions));
  bind_struct<ChoiceSlots>(m, "ChoiceSlots",
      FIELD(ChoiceSlots, experts), FIELD(ChoiceSlots, weights), FIELD(ChoiceSlots, is_used),
      FIELD(ChoiceSlots, ranked));
  bind_struct<GateForward>(m, "GateForward",
      FIELD(GateForward, gate), FIELD(GateForward, logits), FIELD(GateForward, scores),
      FIELD(GateForward, selection), FIELD(GateForward, slots));
  bind_struct<GateBackward>(m, "GateBackward",
      FIELD(GateBackward, gate), FIELD(GateBackward, scores), FIELD(GateBackward, experts),
      FIELD(GateBackward, weights), FIELD(GateBackward, is_used), FIELD(GateBackward, dlogits),
      FIELD(GateBackward, dscores), FIELD(GateBackward, dweights), FIELD(GateBackward, dx),
      FIELD(GateBackward, dweight));
  bind_kernel(library, "forward_gate", &Kernels::forward_gate);
  bind_kernel(library, "backward_gate", &Kernels::backward_gate);
}

void bind_losses(nb::module_& m, nb::class_<Library>& library) {
  bind_struct<BalanceRows>(m, "BalanceRows",
      FIELD(BalanceRows, logits), FIELD(BalanceRows, scores), FIELD(BalanceRows, experts),
      FIELD(BalanceRows, is_used), FIELD(BalanceRows, num_rows), FIELD(BalanceRows, num_experts),
      FIELD(BalanceRows, num_slots), FIELD(BalanceRows, num_sequences),
      FIELD(BalanceRows, sequence_weight), FIELD(BalanceRows, z_weight),
      FIELD(BalanceRows, dlogits), FIELD(BalanceRows, dscores));
  bind_struct<LossRows>(m, "LossRows",
      FIELD(LossRows, x), FIELD(LossRows, head), FIELD(LossRows, targets), FIELD(LossRows, weights),
      FIELD(LossRows, num_rows), FIELD(LossRows, width), FIELD(LossRows, vocabulary),
      FIELD(LossRows, nats), FIELD(LossRows, dx), FIELD(LossRows, dhead));
  bind_kernel(library, "differentiate_balance", &Kernels::differentiate_balance);
  bind_kernel(library, "differentiate_loss", &Kernels::differentiate_loss);
}

void bind_updates(nb::module_& m, nb::class_<Library>& library) {
  bind_struct<Orthogonals>(m, "Orthogonals",
      FIELD(Orthogonals, x), FIELD(Orthogonals, number), FIELD(Orthogonals, num_rows),
      FIELD(Orthogonals, num_columns), FIELD(Orthogonals, num_steps), FIELD(Orthogonals, a),
      FIELD(Orthogonals, b), FIELD(Orthogonals, c), FIELD(Orthogonals, y));
  bind_kernel(library, "orthogonalize", &Kernels::orthogonalize);
}

}  // namespace

void bind_training(nb::module_& m, nb::class_<Library>& library) {
  bind_rows(m, library);
  bind_experts(m, library);
  bind_linear_layers(m, library);
  bind_attention(m, library);
  bind_gate(m, library);
  bind_losses(m, library);
  bind_updates(m, library);
}

}  // namespace moestro
