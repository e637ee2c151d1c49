// The border to Python: addresses and sizes in, nothing out. Checks nothing; moestro/ops/native.py
// does. Addresses rather than arrays, because exchanging an array costs more than a small product.

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "own_stack.h"
#include "picking.h"
#include "processor.h"
#include "training.h"

namespace nb = nanobind;
using namespace moestro;

namespace {

// What this processor can run, the fastest first.
std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const NamedKernels& each : runnable_kernels()) names.push_back(each.name);
  return names;
}

const Kernels& find(const std::string& name) {
  for (const NamedKernels& each : runnable_kernels()) {
    if (each.name == name) return *each.kernels;
  }
  throw std::invalid_argument("no kernels for " + name);
}

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

// Room for what comes of rows, which take turns: (step, row).
class Picks {
 public:
  Picks(const std::vector<PickRow>& rows, int64_t number, int64_t size) : picks_(number) {
    int64_t room = 0;
    for (const PickRow& row : rows) room = larger(room, smaller(row.num_alternatives, size));
    alternatives_.resize(number * room);
    logprobs_.resize(number * room);
    for (int64_t i = 0; i < number; ++i) {
      picks_[i].alternatives = alternatives_.data() + i * room;
      picks_[i].logprobs = logprobs_.data() + i * room;
    }
  }

  Pick* data() { return picks_.data(); }

  // For each of the steps, for each row: token, log-probability, alternatives.
  nb::list told(const std::vector<PickRow>& rows, int64_t num_steps) const {
    nb::list all;
    for (size_t i = 0; i < num_steps * rows.size(); ++i) {
      all.append(tell(rows[i % rows.size()], picks_[i]));
    }
    return all;
  }

 private:
  std::vector<Pick> picks_;
  std::vector<int64_t> alternatives_;
  std::vector<double> logprobs_;
};

// Returns what came of each row, step by step; see OwnStack::decode.
nb::list decode(const OwnStack& stack, int64_t num_layers, int64_t num_steps,
                const StepParts& parts, Address tokens, const std::vector<PickRow>& rows,
                const std::vector<std::vector<int64_t>>& stops, int wake_file, Address logits,
                int64_t num_logits, int num_threads) {
  Answers answers{at<int64_t>(tokens), rows, stops, wake_file};
  Picks picks(rows, num_steps * static_cast<int64_t>(rows.size()), num_logits);
  int64_t num_run = 0;
  {
    const nb::gil_scoped_release unlocked;
    num_run = stack.decode(num_layers, num_steps, parts, answers, at<float>(logits), picks.data(),
                           num_threads);
  }
  return picks.told(rows, num_run);
}

class Library {
 public:
  explicit Library(const std::string& instruction_set) : kernels_(find(instruction_set)) {}

  void interleave(const std::vector<SourceRows>& sources, Address panels, int format,
                  int64_t depth, int64_t panels_of_source, int64_t panel_step,
                  int num_threads) const {
    kernels_.interleave(sources.data(), static_cast<int64_t>(sources.size()),
                        {at<char>(panels), static_cast<Format>(format), depth, panels_of_source,
                         panel_step},
                        num_threads);
  }

  void multiply(Address x, int64_t num_rows, const Matrices& weights, Address y,
                int num_threads) const {
    kernels_.multiply({at<const float>(x), num_rows, weights, at<float>(y)}, workspace(),
                      num_threads);
  }

  void fill_sigmoids(Address x, int64_t number, Address y) const {
    kernels_.fill_sigmoids(at<const float>(x), number, at<float>(y));
  }

  void apply_experts(Address x, Address experts, Address weights, Address is_used,
                     int64_t num_rows, int64_t num_slots, const Matrices& gate_up,
                     const Matrices& down, Address out, int num_threads) const {
    const Visits visits{at<const int64_t>(experts), at<const float>(weights),
                        at<const bool>(is_used), num_rows, num_slots};
    kernels_.apply_experts({at<const float>(x), visits, {gate_up, down}, at<float>(out)},
                           workspace(), num_threads);
  }

  void forward_experts(Address x, Address before, Address also_before, const Visits& visits,
                       const TrainedExperts& experts, Address hidden, Address out,
                       int num_threads) const {
    const SumsBefore sums{{at<const uint16_t>(before), at<const uint16_t>(also_before)}};
    kernels_.forward_experts({at<const uint16_t>(x), sums, visits, experts, at<uint16_t>(hidden),
                              at<uint16_t>(out)},
                             workspace(), num_threads);
  }

  void backward_experts(Address x, Address before, Address hidden, Address dout,
                        const Visits& visits, const TrainedExperts& experts, Address dx,
                        Address dweights, Address dgate_up, Address ddown,
                        int num_threads) const {
    kernels_.backward_experts({at<const uint16_t>(x),
                               {{at<const uint16_t>(before), nullptr}},
                               at<const uint16_t>(hidden), at<const uint16_t>(dout), visits,
                               experts, at<uint16_t>(dx), at<float>(dweights),
                               at<uint16_t>(dgate_up), at<uint16_t>(ddown)},
                              workspace(), num_threads);
  }

  void forward_attention(const AttentionShape& shape, const AttentionParts& inputs,
                         const HeadRows& out, Address log_totals, int num_threads) const {
    kernels_.forward_attention({shape, inputs, out, at<float>(log_totals)}, workspace(),
                               num_threads);
  }

  void forward_product(Address x, Address weight, int64_t num_rows, int64_t width,
                       int64_t num_outputs, Address y, int num_threads) const {
    kernels_.forward_product({at<const uint16_t>(x), at<const uint16_t>(weight), num_rows, width,
                              num_outputs},
                             at<uint16_t>(y), workspace(), num_threads);
  }

  void backward_product(Address x, Address weight, int64_t num_rows, int64_t width,
                        int64_t num_outputs, Address dy, Address dx, Address dweight,
                        int num_threads) const {
    kernels_.backward_product({at<const uint16_t>(x), at<const uint16_t>(weight), num_rows, width,
                               num_outputs},
                              at<const uint16_t>(dy), at<uint16_t>(dx), at<uint16_t>(dweight),
                              workspace(), num_threads);
  }

  void backward_attention(const AttentionShape& shape, const AttentionParts& inputs,
                          const HeadRows& out, const HeadRows& dout, Address log_totals,
                          const AttentionParts& gradients, Address dkey_ropes,
                          int num_threads) const {
    kernels_.backward_attention({shape, inputs, out, dout, at<const float>(log_totals), gradients,
                                 at<float>(dkey_ropes)},
                                workspace(), num_threads);
  }

  void forward_norm(const NormRows& norm, Address more, Address sum, Address y,
                    int num_threads) const {
    kernels_.forward_norm({norm, at<const uint16_t>(more), at<uint16_t>(sum), at<uint16_t>(y)},
                          workspace(), num_threads);
  }

  void backward_norm(const NormRows& norm, Address dy, Address drows, Address dx, int64_t dx_step,
                     Address dweight, int num_threads) const {
    kernels_.backward_norm({norm, at<const uint16_t>(dy), at<const uint16_t>(drows),
                            at<uint16_t>(dx), dx_step, at<float>(dweight)},
                           workspace(), num_threads);
  }

  void rotate(const HeadRows& x, int64_t num_rows, int64_t length, int64_t num_heads,
              int64_t num_pairs, Address cosines, Address sines, bool is_interleaved,
              bool is_inverse, const HeadRows& y, int num_threads) const {
    kernels_.rotate({x, num_rows, length, num_heads, num_pairs, at<const float>(cosines),
                     at<const float>(sines), is_interleaved, is_inverse, y},
                    workspace(), num_threads);
  }

  void differentiate_loss(Address x, Address head, Address targets, Address weights,
                          int64_t num_rows, int64_t width, int64_t vocabulary, Address nats,
                          Address dx, Address dhead, int num_threads) const {
    kernels_.differentiate_loss(
        {at<const uint16_t>(x), at<const uint16_t>(head), at<const int64_t>(targets),
         at<const float>(weights), num_rows, width, vocabulary, at<float>(nats), at<uint16_t>(dx),
         at<float>(dhead)},
        workspace(), num_threads);
  }

  void forward_gate(const GateRows& gate, Address logits, Address scores, Address selection,
                    Address ranked, Address experts, Address weights, Address is_used,
                    int num_threads) const {
    kernels_.forward_gate({gate, at<float>(logits), at<float>(scores), at<float>(selection),
                           {at<int64_t>(experts), at<float>(weights), at<bool>(is_used),
                            at<float>(ranked)}},
                          workspace(), num_threads);
  }

  void backward_gate(const GateRows& gate, Address scores, Address experts, Address weights,
                     Address is_used, Address dlogits, Address dscores, Address dweights,
                     Address dx, Address dweight, int num_threads) const {
    kernels_.backward_gate(
        {gate, at<const float>(scores), at<const int64_t>(experts), at<const float>(weights),
         at<const bool>(is_used), at<const float>(dlogits), at<const float>(dscores),
         at<const float>(dweights), at<uint16_t>(dx), at<float>(dweight)},
        workspace(), num_threads);
  }

  float differentiate_balance(Address logits, Address scores, Address experts, Address is_used,
                              int64_t num_rows, int64_t num_experts, int64_t num_slots,
                              int64_t num_sequences, float sequence_weight, float z_weight,
                              Address dlogits, Address dscores, int num_threads) const {
    return kernels_.differentiate_balance(
        {at<const float>(logits), at<const float>(scores), at<const int64_t>(experts),
         at<const bool>(is_used), num_rows, num_experts, num_slots, num_sequences,
         sequence_weight, z_weight, at<float>(dlogits), at<float>(dscores)},
        workspace(), num_threads);
  }

  void orthogonalize(Address x, int64_t number, int64_t num_rows, int64_t num_columns,
                     int num_steps, const std::vector<float>& quintic, Address y,
                     int num_threads) const {
    kernels_.orthogonalize({at<const uint16_t>(x), number, num_rows, num_columns, num_steps,
                            quintic.at(0), quintic.at(1), quintic.at(2), at<uint16_t>(y)},
                           workspace(), num_threads);
  }

  nb::list pick_tokens(const std::vector<PickRow>& rows, int64_t size, int num_threads) const {
    Picks picks(rows, static_cast<int64_t>(rows.size()), size);
    {
      const nb::gil_scoped_release unlocked;
      kernels_.pick_tokens(rows.data(), static_cast<int64_t>(rows.size()), size, picks.data(),
                           workspace(), num_threads);
    }
    return picks.told(rows, 1);
  }

  const Kernels& kernels() const { return kernels_; }

 private:
  const Kernels& kernels_;
};

void bind_parts(nb::module_& m) {
  m.def("strip_bytes", [](int format, int64_t depth) {
    return strip_bytes(static_cast<Format>(format), depth);
  });
  nb::class_<Matrices>(m, "Matrices")
      .def("__init__", [](Matrices* self, Address data, int format, int64_t num_matrices,
                          int64_t num_outputs, int64_t depth, int64_t num_panels, Address bias) {
        new (self) Matrices{at<const char>(data), static_cast<Format>(format), num_matrices,
                            num_outputs, depth, num_panels, at<const float>(bias)};
      });
  nb::class_<SourceRows>(m, "SourceRows")
      .def("__init__", [](SourceRows* self, Address data, Address scales, int64_t num_rows,
                          int64_t row_bytes, int64_t first_panel) {
        new (self) SourceRows{at<const char>(data), at<const uint16_t>(scales), num_rows, row_bytes,
                              first_panel};
      });
  nb::class_<Visits>(m, "Visits")
      .def("__init__", [](Visits* self, Address experts, Address weights, Address is_used,
                          int64_t num_rows, int64_t num_slots) {
        new (self) Visits{at<const int64_t>(experts), at<const float>(weights),
                          at<const bool>(is_used), num_rows, num_slots};
      });
  nb::class_<TrainedExperts>(m, "TrainedExperts")
      .def("__init__", [](TrainedExperts* self, Address gate_up, Address down, int64_t num_experts,
                          int64_t width, int64_t hidden_width) {
        new (self) TrainedExperts{at<const uint16_t>(gate_up), at<const uint16_t>(down),
                                  num_experts, width, hidden_width};
      });
  nb::class_<AttentionShape>(m, "AttentionShape")
      .def("__init__", [](AttentionShape* self, int64_t num_sequences, int64_t length,
                          int64_t num_heads, int64_t nope, int64_t rotary, int64_t value,
                          float scale) {
        new (self) AttentionShape{num_sequences, length, num_heads, nope, rotary, value, scale};
      });
  nb::class_<HeadRows>(m, "HeadRows")
      .def("__init__", [](HeadRows* self, Address data, int64_t row_step, int64_t head_step) {
        new (self) HeadRows{at<uint16_t>(data), row_step, head_step};
      });
  nb::class_<AttentionParts>(m, "AttentionParts")
      .def("__init__",
           [](AttentionParts* self, const HeadRows& query_nope, const HeadRows& query_rope,
              const HeadRows& key_nope, const HeadRows& key_rope, const HeadRows& value) {
             new (self) AttentionParts{query_nope, query_rope, key_nope, key_rope, value};
           });
  nb::class_<ChoiceRule>(m, "ChoiceRule")
      .def(nb::init<>())
      .def_rw("num_slots", &ChoiceRule::num_slots)
      .def_rw("fewest", &ChoiceRule::fewest)
      .def_rw("num_expert_groups", &ChoiceRule::num_expert_groups)
      .def_rw("topk_group", &ChoiceRule::topk_group)
      .def_rw("best_of_group", &ChoiceRule::best_of_group)
      .def_rw("is_sigmoid", &ChoiceRule::is_sigmoid)
      .def_rw("is_normalized", &ChoiceRule::is_normalized)
      .def_rw("routed_scaling_factor", &ChoiceRule::routed_scaling_factor)
      .def_rw("num_fractions", &ChoiceRule::num_fractions)
      .def_prop_rw(
          "fractions", [](const ChoiceRule& rule) { return Address(rule.fractions); },
          [](ChoiceRule& rule, Address address) { rule.fractions = at<const float>(address); });
  nb::class_<GateRows>(m, "GateRows")
      .def("__init__", [](GateRows* self, Address x, int64_t num_rows, int64_t width,
                          Address weight, int64_t num_experts, const ChoiceRule& rule,
                          Address bias, Address thresholds, Address fractions) {
        new (self) GateRows{at<const uint16_t>(x), num_rows, width, at<const float>(weight),
                            num_experts, rule, at<const float>(bias),
                            at<const float>(thresholds), at<const float>(fractions)};
      });
  nb::class_<NormRows>(m, "NormRows")
      .def("__init__", [](NormRows* self, Address x, int64_t step, int64_t num_rows, int64_t width,
                          Address weight, float epsilon) {
        new (self) NormRows{at<const uint16_t>(x), step, num_rows, width, at<const float>(weight),
                            epsilon};
      });
  nb::class_<PickRow>(m, "PickRow")
      .def("__init__",
           [](PickRow* self, Address logits, Address edited, std::optional<nb::bytes> allowed,
              float temperature, int64_t top_k, double top_p, float floor,
              uint64_t stream, int64_t position, int64_t target, int64_t num_alternatives) {
             const void* bits = allowed ? allowed->data() : nullptr;
             new (self) PickRow{at<const float>(logits), at<const float>(edited),
                                static_cast<const uint32_t*>(bits), temperature, top_k, top_p,
                                floor, stream, position, target, num_alternatives};
           });
  nb::class_<StepParts>(m, "StepParts")
      .def("__init__",
           [](StepParts* self, Address x, int64_t num_rows, Address positions, Address slots,
              Address fractions, Address sequences, int64_t num_sequences, Address tables,
              int64_t num_table_entries, Address pages, int cache_format, int64_t layer_slots,
              int64_t block_size, bool may_expand, Address experts, Address weights,
              Address is_used) {
             new (self) StepParts{x, num_rows, positions, slots, fractions, sequences,
                                  num_sequences, tables, num_table_entries, pages, cache_format,
                                  layer_slots, block_size, may_expand, experts, weights, is_used};
           });
  nb::class_<Norm>(m, "Norm").def("__init__", [](Norm* self, Address weight, float epsilon) {
    new (self) Norm{at<const float>(weight), epsilon};
  });
  nb::class_<Gate>(m, "Gate").def(
      "__init__", [](Gate* self, const Matrices& weight, Address bias, Address thresholds) {
        new (self) Gate{weight, at<const float>(bias), at<const float>(thresholds)};
      });
  nb::class_<Experts>(m, "Experts")
      .def("__init__", [](Experts* self, const Matrices& gate_up, const Matrices& down) {
        new (self) Experts{gate_up, down};
      });
  nb::class_<Mtp>(m, "Mtp").def(
      "__init__", [](Mtp* self, const Norm& enorm, const Norm& hnorm, const Matrices& eh_proj,
                    const Norm& norm) {
        new (self) Mtp{enorm, hnorm, eh_proj, norm};
      });
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
  nb::class_<Shape, ChoiceRule>(m, "Shape")
      .def(nb::init<>())
      .def_rw("hidden", &Shape::hidden)
      .def_rw("num_heads", &Shape::num_heads)
      .def_rw("nope", &Shape::nope)
      .def_rw("rotary", &Shape::rotary)
      .def_rw("value", &Shape::value)
      .def_rw("latent", &Shape::latent)
      .def_rw("softmax_scale", &Shape::softmax_scale)
      .def_rw("is_interleaved", &Shape::is_interleaved)
      .def_prop_rw(
          "frequencies", [](const Shape& shape) { return Address(shape.frequencies); },
          [](Shape& shape, Address address) { shape.frequencies = at<const float>(address); })
      .def_rw("rotary_factor", &Shape::rotary_factor);
}

}  // namespace

NB_MODULE(_native, m) {
  // Kernels are chosen once for a process, so they are still there when it ends.
  nb::set_leak_warnings(false);
  m.def("instruction_sets", &instruction_sets);
  bind_parts(m);
  nb::class_<Library>(m, "Library")
      .def(nb::init<const std::string&>())
      .def("interleave", &Library::interleave, nb::call_guard<nb::gil_scoped_release>())
      .def("multiply", &Library::multiply, nb::call_guard<nb::gil_scoped_release>())
      .def("fill_sigmoids", &Library::fill_sigmoids, nb::call_guard<nb::gil_scoped_release>())
      .def("apply_experts", &Library::apply_experts, nb::call_guard<nb::gil_scoped_release>())
      .def("forward_experts", &Library::forward_experts, nb::call_guard<nb::gil_scoped_release>())
      .def("backward_experts", &Library::backward_experts,
           nb::call_guard<nb::gil_scoped_release>())
      .def("forward_product", &Library::forward_product, nb::call_guard<nb::gil_scoped_release>())
      .def("backward_product", &Library::backward_product,
           nb::call_guard<nb::gil_scoped_release>())
      .def("forward_attention", &Library::forward_attention,
           nb::call_guard<nb::gil_scoped_release>())
      .def("backward_attention", &Library::backward_attention,
           nb::call_guard<nb::gil_scoped_release>())
      .def("forward_norm", &Library::forward_norm, nb::call_guard<nb::gil_scoped_release>())
      .def("backward_norm", &Library::backward_norm, nb::call_guard<nb::gil_scoped_release>())
      .def("rotate", &Library::rotate, nb::call_guard<nb::gil_scoped_release>())
      .def("forward_gate", &Library::forward_gate, nb::call_guard<nb::gil_scoped_release>())
      .def("backward_gate", &Library::backward_gate, nb::call_guard<nb::gil_scoped_release>())
      .def("differentiate_balance", &Library::differentiate_balance,
           nb::call_guard<nb::gil_scoped_release>())
      .def("pick_tokens", &Library::pick_tokens)
      .def("orthogonalize", &Library::orthogonalize, nb::call_guard<nb::gil_scoped_release>())
      .def("differentiate_loss", &Library::differentiate_loss,
           nb::call_guard<nb::gil_scoped_release>());
  nb::class_<OwnStack>(m, "Stack")
      .def("__init__", [](OwnStack* self, const Library& library, const Shape& shape,
                          const std::vector<Layer>& layers) {
        new (self) OwnStack(library.kernels(), shape, layers);
      })
      .def("set_final_norm", &OwnStack::set_final_norm)
      .def("set_ends",
           [](OwnStack& self, Address embeddings, int format, const Matrices& head) {
             self.set_ends({at<const char>(embeddings), static_cast<Format>(format), head});
           })
      .def("set_expansion", &OwnStack::set_expansion)
      .def("decode", &decode)
      .def("run", &OwnStack::run, nb::call_guard<nb::gil_scoped_release>());
}
