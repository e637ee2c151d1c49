// A model's layers, and its steps. Next: ../own_stack.h.

#include <nanobind/stl/vector.h>

#include <vector>

#include "../own_stack.h"
#include "picks.h"

namespace moestro {

namespace {

// Returns what came of each row, step by step; see OwnStack::decode.
nb::list decode(const OwnStack& stack, int64_t num_layers, int64_t num_steps,
                const StepParts& step, uintptr_t tokens, const std::vector<PickRow>& rows,
                const std::vector<std::vector<int64_t>>& stops, int wake_file, uintptr_t logits,
                int64_t num_logits, int num_threads) {
  Answers answers{from_python<int64_t*>(tokens), rows, stops, wake_file};
  Picks picks(rows, num_steps, num_logits);
  int64_t num_run = 0;
  {
    const nb::gil_scoped_release unlocked;
    num_run = stack.decode(num_layers, num_steps, step, answers, from_python<float*>(logits),
                           picks.data(), num_threads);
  }
  return picks.told(rows, num_run);
}

// What a layer is made of.
void bind_parts(nb::module_& m) {
  bind_struct<Norm>(m, "Norm", FIELD(Norm, weight), FIELD(Norm, epsilon));
  bind_struct<Gate>(m, "Gate",
      FIELD(Gate, weight), FIELD(Gate, selection_bias), FIELD(Gate, thresholds));
  bind_struct<Mtp>(m, "Mtp",
      FIELD(Mtp, enorm), FIELD(Mtp, hnorm), FIELD(Mtp, eh_proj), FIELD(Mtp, norm));
}

// The one that is not built from all its fields: a layer lacks what its model does without.
void bind_layer(nb::module_& m) {
  nb::class_<Layer>(m, "Layer")
      .def(nb::init<>())
      .def_rw("input_norm", &Layer::input_norm)
      .def_rw("query_a", &Layer::query_a)
      .def_rw("query_norm", &Layer::query_norm)
      .def_rw("query", &Layer::query)
      .def_rw("latent", &Layer::latent)
      .def_rw("latent_norm", &Layer::latent_norm)
      .def_rw("w_uk", &Layer::w_uk)
      .def_rw("w_uv", &Layer::w_uv)
      .def_rw("out", &Layer::out)
      .def_rw("post_norm", &Layer::post_norm)
      .def_rw("gate", &Layer::gate)
      .def_rw("routed", &Layer::routed)
      .def_rw("shared", &Layer::shared)
      .def_rw("mtp", &Layer::mtp);
}

void bind_shape(nb::module_& m) {
  bind_struct<Shape>(m, "Shape",
      FIELD(Shape, num_slots), FIELD(Shape, fewest), FIELD(Shape, num_expert_groups),
      FIELD(Shape, topk_group), FIELD(Shape, best_of_group), FIELD(Shape, is_sigmoid),
      FIELD(Shape, is_normalized), FIELD(Shape, routed_scaling_factor), FIELD(Shape, num_fractions),
      FIELD(Shape, fractions), FIELD(Shape, hidden), FIELD(Shape, num_heads), FIELD(Shape, nope),
      FIELD(Shape, rotary), FIELD(Shape, value), FIELD(Shape, latent), FIELD(Shape, softmax_scale),
      FIELD(Shape, is_interleaved), FIELD(Shape, frequencies), FIELD(Shape, rotary_factor));
}

void bind_step(nb::module_& m) {
  bind_struct<Choices>(m, "Choices",
      FIELD(Choices, experts), FIELD(Choices, weights), FIELD(Choices, is_used),
      FIELD(Choices, layer_rows));
  bind_struct<StepParts>(m, "StepParts",
      FIELD(StepParts, x), FIELD(StepParts, num_rows), FIELD(StepParts, positions),
      FIELD(StepParts, slots), FIELD(StepParts, fractions), FIELD(StepParts, sequences),
      FIELD(StepParts, num_sequences), FIELD(StepParts, tables),
      FIELD(StepParts, num_table_entries), FIELD(StepParts, pages), FIELD(StepParts, cache_format),
      FIELD(StepParts, layer_slots), FIELD(StepParts, block_size), FIELD(StepParts, may_expand),
      FIELD(StepParts, choices));
}

}  // namespace

void bind_stack(nb::module_& m) {
  bind_parts(m);
  bind_layer(m);
  bind_shape(m);
  bind_step(m);
  bind_struct<Ends>(m, "Ends", FIELD(Ends, embeddings), FIELD(Ends, format), FIELD(Ends, head));
  nb::class_<OwnStack>(m, "Stack")
      .def("__init__",
           [](OwnStack* self, const Library& library, const Shape& shape,
              const std::vector<Layer>& layers) {
             new (self) OwnStack(library.kernels, shape, layers);
           })
      .def("set_final_norm", &OwnStack::set_final_norm)
      .def("set_ends", &OwnStack::set_ends)
      .def("set_expansion", &OwnStack::set_expansion, nb::arg("layer"), nb::kw_only(),
           nb::arg("keys"), nb::arg("values"))
      .def(
          "run",
          [](const OwnStack& self, int64_t first_layer, int64_t last_layer, const StepParts& step,
             uintptr_t hidden, bool has_final_norm, int num_threads) {
            self.run(first_layer, last_layer, step, from_python<const float*>(hidden),
                     has_final_norm, num_threads);
          },
          nb::kw_only(), nb::arg("first_layer"), nb::arg("last_layer"), nb::arg("step"),
          nb::arg("hidden"), nb::arg("has_final_norm"), nb::arg("num_threads"),
          nb::call_guard<nb::gil_scoped_release>())
      .def("decode", &decode, nb::kw_only(), nb::arg("num_layers"), nb::arg("num_steps"),
           nb::arg("step"), nb::arg("tokens"), nb::arg("rows"), nb::arg("stops"),
           nb::arg("wake_file"), nb::arg("logits"), nb::arg("num_logits"),
           nb::arg("num_threads"));
}

}  // namespace moestro
