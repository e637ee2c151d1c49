// Experts in training: forward, and the gradients of inputs, weights of visits, and matrices.
//
// Pairs of a row and an expert are sorted by expert and taken in blocks, each by one thread from
// gathering to the experts' outputs, so that a block's numbers stay in a core's cache. Rows are
// then summed over their slots in order. Matrices' gradients are sums over all pairs of an expert,
// each one chain: no result depends on threads. Next: pair_rows.h, pair_gradients.h,
// attention_training.h.

#pragma once

#include <algorithm>

#include "band_products.h"
#include "numbers.h"
#include "packed_matrices.h"
#include "pair_gradients.h"
#include "pair_rows.h"
#include "pairs.h"

namespace moestro::MOESTRO_ISA {

// hidden = (gate, up) of each pair; out = sum over slots of down(weight * silu(gate) * up).
template <class Isa>
class ForwardExperts {
 public:
  ForwardExperts(const ExpertsForward& given, Workspace& workspace, int num_threads)
      : pass_(given),
        width_(given.experts.width),
        hidden_(given.experts.hidden_width),
        pairs_(workspace, given.visits, given.experts.num_experts),
        gate_up_(workspace, given.experts.num_experts, 2 * hidden_, width_),
        down_(workspace, given.experts.num_experts, width_, hidden_),
        x_(workspace, width_, num_threads),
        raw_(workspace, 2 * hidden_, num_threads),
        active_(workspace, hidden_, num_threads),
        out_(workspace.take<uint16_t>(pairs_.num_slots() * width_)) {}

  void run(Team& team) {
    team.each(gate_up_.num_tasks() + down_.num_tasks(), [&](int64_t task) {
      const int64_t of_gate_up = gate_up_.num_tasks();
      if (task < of_gate_up) return gate_up_.pack_transposed_task(pass_.experts.gate_up, task);
      down_.pack_transposed_task(pass_.experts.down, task - of_gate_up);
    });
    team.barrier();
    team.each(pairs_.num_blocks, [&](int64_t b) { visit(pairs_.blocks[b], team.rank()); });
    team.barrier();
    sum_slots<Isa>(team, pairs_, out_, width_, {{pass_.before, pass_.also_before}}, pass_.out);
    team.barrier();
  }

 private:
  using Block = TrainingPairs::Block;
  using Lanes = typename Isa::Lanes;

  void visit(const Block& block, int rank) {
    uint16_t* x = x_.rows(rank);
    gather(pairs_, block, pass_.x, width_, x);
    float* raw = raw_.rows(rank);
    multiply_bands<Isa>(by_rows(x, width_), block.num_pairs, gate_up_.matrix(block.expert),
                        to_rows<Isa>(raw, 2 * hidden_));
    uint16_t* active = active_.rows(rank);
    for (int64_t i = 0; i < block.num_pairs; ++i) {
      activate(raw + i * 2 * hidden_, block.first_pair + i, active + i * hidden_);
    }
    uint16_t* out = out_ + block.first_pair * width_;
    multiply_bands<Isa>(by_rows(active, hidden_), block.num_pairs, down_.matrix(block.expert),
                        to_rows<Isa>(out, width_));
  }

  void activate(const float* raw, int64_t pair, uint16_t* active) const {
    uint16_t* kept = pass_.hidden + pair * 2 * hidden_;
    const Lanes weight = Isa::fill(pairs_.weight(pair));
    for (int64_t c = 0; c < hidden_; c += PANEL) {
      const Lanes gate = Isa::load(raw + c), up = Isa::load(raw + hidden_ + c);
      Isa::store_bfloat16(gate, kept + c);
      Isa::store_bfloat16(up, kept + hidden_ + c);
      const Lanes scaled = Isa::multiply(up, weight);
      Isa::store_bfloat16(Isa::multiply(silu<Isa, BFLOAT16_TERMS>(gate), scaled), active + c);
    }
  }

  const ExpertsForward& pass_;
  const int64_t width_, hidden_;
  const TrainingPairs pairs_;
  const PackedMatrices<Isa> gate_up_, down_;
  const BlockRows<uint16_t> x_;
  const BlockRows<float> raw_;
  const BlockRows<uint16_t> active_;
  uint16_t* const out_;
};

// A thread that takes whole experts sums their matrices' gradients while the pairs are in its
// cache; where experts are too few for that, all pairs come first.
template <class Isa>
class BackwardExperts {
 public:
  BackwardExperts(const ExpertsBackward& given, Workspace& workspace, int num_threads)
      : pass_(given),
        number_(given.experts.num_experts),
        width_(given.experts.width),
        hidden_(given.experts.hidden_width),
        pairs_(workspace, given.visits, number_),
        gate_up_(workspace, number_, width_, 2 * hidden_),
        down_(workspace, number_, hidden_, width_),
        x_(workspace, width_, num_threads),
        dout_(workspace, width_, num_threads),
        dscaled_(workspace, hidden_, num_threads),
        active_(workspace, hidden_, num_threads),
        dhidden_(workspace, 2 * hidden_, num_threads),
        places_(pairs_, number_, num_threads),
        all_x_(workspace, places_, width_),
        all_active_(workspace, places_, hidden_),
        all_dout_(workspace, places_, width_),
        all_dhidden_(workspace, places_, 2 * hidden_),
        dx_(workspace.take<uint16_t>(pairs_.num_slots() * width_)),
        dgate_up_(all_dhidden_, all_x_, given.dgate_up),
        ddown_(all_dout_, all_active_, given.ddown) {}

  void run(Team& team) {
    team.each(gate_up_.num_tasks() + down_.num_tasks(), [&](int64_t task) {
      const int64_t of_gate_up = gate_up_.num_tasks();
      if (task < of_gate_up) return gate_up_.pack_task(pass_.experts.gate_up, task);
      down_.pack_task(pass_.experts.down, task - of_gate_up);
    });
    team.barrier();
    const int rank = team.rank();
    if (places_.are_by_thread) {
      team.each(number_, [&](int64_t e) {
        for (int64_t b = pairs_.first_block[e]; b < pairs_.first_block[e + 1]; ++b) {
          visit(pairs_.blocks[b], rank);
        }
        for (int64_t i = 0; i < tasks_of_one(); ++i) sum_pairs(e * tasks_of_one() + i, rank);
      });
    } else {
      team.each(pairs_.num_blocks, [&](int64_t b) { visit(pairs_.blocks[b], rank); });
      team.barrier();
      team.each(number_ * tasks_of_one(), [&](int64_t task) { sum_pairs(task, rank); });
    }
    team.barrier();
    sum_slots<Isa>(team, pairs_, dx_, width_, {{pass_.before, nullptr}}, pass_.dx);
    team.barrier();
  }

 private:
  using Block = TrainingPairs::Block;
  using Lanes = typename Isa::Lanes;

  void visit(const Block& block, int rank) {
    uint16_t *x = x_.rows(rank), *dout = dout_.rows(rank), *active = active_.rows(rank);
    uint16_t* dhidden = dhidden_.rows(rank);
    float* dscaled = dscaled_.rows(rank);
    gather(pairs_, block, pass_.x, width_, x);
    gather(pairs_, block, pass_.dout, width_, dout);
    multiply_bands<Isa>(by_rows(dout, width_), block.num_pairs, down_.matrix(block.expert),
                        to_rows<Isa>(dscaled, hidden_));
    for (int64_t i = 0; i < block.num_pairs; ++i) {
      go_back(block.first_pair + i, dscaled + i * hidden_, active + i * hidden_,
              dhidden + i * 2 * hidden_);
    }
    fill_up(block, hidden_, active);
    fill_up(block, 2 * hidden_, dhidden);
    uint16_t* dx = dx_ + block.first_pair * width_;
    multiply_bands<Isa>(by_rows(dhidden, 2 * hidden_), block.num_pairs,
                        gate_up_.matrix(block.expert), to_rows<Isa>(dx, width_));
    all_x_.put(block, x, rank);
    all_dout_.put(block, dout, rank);
    all_active_.put(block, active, rank);
    all_dhidden_.put(block, dhidden, rank);
  }

  int64_t tasks_of_one() const { return dgate_up_.tasks_of_one() + ddown_.tasks_of_one(); }

  // A part of the gradients of an expert's matrices.
  void sum_pairs(int64_t task, int rank) const {
    const int64_t expert = task / tasks_of_one(), part = task % tasks_of_one();
    const int64_t of_gate_up = dgate_up_.tasks_of_one();
    if (part < of_gate_up) return dgate_up_.run(expert, part, rank);
    ddown_.run(expert, part - of_gate_up, rank);
  }

  // From the gradient of a pair's scaled activations to that of its gate and up, and its weight's.
  void go_back(int64_t pair, const float* dscaled, uint16_t* active, uint16_t* dhidden) const {
    const uint16_t* kept = pass_.hidden + pair * 2 * hidden_;
    const Lanes weight = Isa::fill(pairs_.weight(pair)), one = Isa::fill(1.0f);
    Lanes dweight = Isa::fill(0.0f);
    for (int64_t c = 0; c < hidden_; c += PANEL) {
      const Lanes gate = Isa::load_bfloat16(kept + c);
      const Lanes up = Isa::load_bfloat16(kept + hidden_ + c);
      const Lanes sigmoid =
          Isa::divide(one, one_plus_inverse_exponential<Isa, BFLOAT16_TERMS>(gate));
      const Lanes silu = Isa::multiply(gate, sigmoid), both = Isa::multiply(silu, up);
      const Lanes scaled = Isa::load(dscaled + c), dactive = Isa::multiply(scaled, weight);
      dweight = Isa::multiply_add(scaled, both, dweight);
      Isa::store_bfloat16(Isa::multiply(both, weight), active + c);
      Isa::store_bfloat16(Isa::multiply(dactive, silu), dhidden + hidden_ + c);
      // d silu(g) / dg = sigmoid(g) (1 + g (1 - sigmoid(g))) = sigmoid + silu - silu sigmoid
      const Lanes rest = Isa::multiply(silu, Isa::multiply(sigmoid, Isa::fill(-1.0f)));
      const Lanes slope = Isa::add(Isa::add(sigmoid, silu), rest);
      Isa::store_bfloat16(Isa::multiply(Isa::multiply(dactive, up), slope), dhidden + c);
    }
    pass_.dweights[pairs_.slot[pair]] = Isa::sum(dweight);
  }

  const ExpertsBackward& pass_;
  const int64_t number_, width_, hidden_;
  const TrainingPairs pairs_;
  const PackedMatrices<Isa> gate_up_, down_;
  const BlockRows<uint16_t> x_, dout_;
  const BlockRows<float> dscaled_;
  const BlockRows<uint16_t> active_, dhidden_;
  const FactorPlaces places_;
  const PairBands<Isa> all_x_, all_active_;
  const PairColumns<Isa> all_dout_, all_dhidden_;
  uint16_t* const dx_;
  const MatrixGradient<Isa> dgate_up_, ddown_;
};

template <class Isa>
void forward_experts(const ExpertsForward& pass, Workspace& workspace, int num_threads) {
  check_visits(pass.visits, pass.experts.num_experts);
  workspace.reset();
  ForwardExperts<Isa> work(pass, workspace, num_threads);
  run_with_tiles<Isa>(num_threads, [&](Team& team) { work.run(team); });
}

template <class Isa>
void backward_experts(const ExpertsBackward& pass, Workspace& workspace, int num_threads) {
  check_visits(pass.visits, pass.experts.num_experts);
  workspace.reset();
  // Slots that are not in use have no gradient.
  std::fill_n(pass.dweights, pass.visits.num_rows * pass.visits.num_slots, 0.0f);
  BackwardExperts<Isa> work(pass, workspace, num_threads);
  run_with_tiles<Isa>(num_threads, [&](Team& team) { work.run(team); });
}

}  // namespace moestro::MOESTRO_ISA
