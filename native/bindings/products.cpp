// Packed weights, and products with them. Next: ../kernels.h.

#include <nanobind/stl/vector.h>

#include <vector>

#include "bindings.h"

namespace moestro {

namespace {

void bind_packing(nb::module_& m, nb::class_<Library>& library) {
  m.def("strip_bytes", [](int format, int64_t depth) {
    return strip_bytes(static_cast<Format>(format), depth);
  });
  bind_struct<Matrices>(m, "Matrices",
      FIELD(Matrices, data), FIELD(Matrices, format), FIELD(Matrices, num_matrices),
      FIELD(Matrices, num_outputs), FIELD(Matrices, depth), FIELD(Matrices, num_panels),
      FIELD(Matrices, bias));
  bind_struct<SourceRows>(m, "SourceRows",
      FIELD(SourceRows, data), FIELD(SourceRows, scales), FIELD(SourceRows, num_rows),
      FIELD(SourceRows, row_bytes), FIELD(SourceRows, first_panel));
  bind_struct<PanelPlaces>(m, "PanelPlaces",
      FIELD(PanelPlaces, data), FIELD(PanelPlaces, format), FIELD(PanelPlaces, depth),
      FIELD(PanelPlaces, panels_of_source), FIELD(PanelPlaces, panel_step));
  library.def(
      "interleave",
      [](const Library& self, const std::vector<SourceRows>& sources, const PanelPlaces& places,
         int num_threads) {
        self.kernels.interleave(sources.data(), static_cast<int64_t>(sources.size()), places,
                                num_threads);
      },
      nb::arg("sources"), nb::arg("places"), nb::arg("num_threads"),
      nb::call_guard<nb::gil_scoped_release>());
}

void bind_multiplying(nb::module_& m, nb::class_<Library>& library) {
  bind_struct<Product>(m, "Product",
      FIELD(Product, x), FIELD(Product, num_rows), FIELD(Product, weights), FIELD(Product, y));
  bind_struct<Experts>(m, "Experts", FIELD(Experts, gate_up), FIELD(Experts, down));
  bind_struct<Visits>(m, "Visits",
      FIELD(Visits, experts), FIELD(Visits, weights), FIELD(Visits, is_used),
      FIELD(Visits, num_rows), FIELD(Visits, num_slots));
  bind_struct<ExpertProduct>(m, "ExpertProduct",
      FIELD(ExpertProduct, x), FIELD(ExpertProduct, visits), FIELD(ExpertProduct, experts),
      FIELD(ExpertProduct, out));
  bind_kernel(library, "multiply", &Kernels::multiply);
  bind_kernel(library, "apply_experts", &Kernels::apply_experts);
}

}  // namespace

void bind_products(nb::module_& m, nb::class_<Library>& library) {
  bind_packing(m, library);
  bind_multiplying(m, library);
  library.def(
      "fill_sigmoids",
      [](const Library& self, uintptr_t x, int64_t number, uintptr_t y) {
        self.kernels.fill_sigmoids(from_python<const float*>(x), number, from_python<float*>(y));
      },
      nb::kw_only(), nb::arg("x"), nb::arg("number"), nb::arg("y"),
      nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace moestro
