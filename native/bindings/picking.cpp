// Tokens picked from rows of logits. Next: ../picking.h.

#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <vector>

#include "picks.h"

namespace moestro {

namespace {

// A row's outcome as Python has it.
nb::tuple tell(const PickRow& row, const Pick& pick) {
  if (pick.token < 0 || row.num_alternatives < 0) {
    return nb::make_tuple(pick.token, nb::none(), nb::make_tuple());
  }
  nb::list alternatives;
  for (int64_t i = 0; i < pick.num_alternatives; ++i) {
    alternatives.append(nb::make_tuple(pick.alternatives[i], pick.logprobs[i]));
  }
  return nb::make_tuple(pick.token, pick.logprob, nb::tuple(alternatives));
}

nb::list pick_tokens(const Library& library, const std::vector<PickRow>& rows, int64_t size,
                     int num_threads) {
  Picks picks(rows, 1, size);
  {
    const nb::gil_scoped_release unlocked;
    library.kernels.pick_tokens(rows.data(), static_cast<int64_t>(rows.size()), size, picks.data(),
                                own_workspace(), num_threads);
  }
  return picks.told(rows, 1);
}

}  // namespace

Picks::Picks(const std::vector<PickRow>& rows, int64_t num_steps, int64_t size)
    : picks_(num_steps * rows.size()) {
  int64_t room = 0;
  for (const PickRow& row : rows) room = larger(room, smaller(row.num_alternatives, size));
  alternatives_.resize(picks_.size() * room);
  logprobs_.resize(picks_.size() * room);
  for (size_t i = 0; i < picks_.size(); ++i) {
    picks_[i].alternatives = alternatives_.data() + i * room;
    picks_[i].logprobs = logprobs_.data() + i * room;
  }
}

nb::list Picks::told(const std::vector<PickRow>& rows, int64_t num_steps) const {
  nb::list all;
  for (size_t i = 0; i < num_steps * rows.size(); ++i) {
    all.append(tell(rows[i % rows.size()], picks_[i]));
  }
  return all;
}

void bind_picking(nb::module_& m, nb::class_<Library>& library) {
  // By hand, for the bits of `allowed`: Python has no address of bytes. They are not copied.
  nb::class_<PickRow>(m, "PickRow")
      .def(
          "__init__",
          [](PickRow* self, uintptr_t logits, uintptr_t edited,
             const std::optional<nb::bytes>& allowed, float temperature, int64_t top_k,
             double top_p, float floor, uint64_t stream, int64_t position, int64_t target,
             int64_t num_alternatives) {
            const void* bits = allowed ? allowed->data() : nullptr;
            new (self) PickRow{from_python<const float*>(logits),
                               from_python<const float*>(edited),
                               static_cast<const uint32_t*>(bits),
                               temperature,
                               top_k,
                               top_p,
                               floor,
                               stream,
                               position,
                               target,
                               num_alternatives};
          },
          nb::kw_only(), nb::arg("logits"), nb::arg("edited"), nb::arg("allowed").none(),
          nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"), nb::arg("floor"),
          nb::arg("stream"), nb::arg("position"), nb::arg("target"), nb::arg("num_alternatives"));
  library.def("pick_tokens", &pick_tokens, nb::arg("rows"), nb::arg("size"),
              nb::arg("num_threads"));
}

}  // namespace moestro
