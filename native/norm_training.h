// Norms in training, forward and back. Next: rotate_training.h.

#pragma once

#include <algorithm>
#include <cmath>

#include "rows_training.h"
#include "training.h"
#include "workspace.h"

namespace moestro::MOESTRO_ISA {

// 1 / sqrt(mean(x^2) + epsilon).
template <class Isa>
float inverse_size(const NormRows& norm, const uint16_t* x) {
  typename Isa::Lanes squares = Isa::fill(0.0f);
  for (int64_t c = 0; c < norm.width; c += PANEL) {
    const auto a = Isa::load_bfloat16(x + c);
    squares = Isa::multiply_add(a, a, squares);
  }
  const float mean = Isa::sum(squares) / static_cast<float>(norm.width);
  return 1.0f / std::sqrt(mean + norm.epsilon);
}

// to = a + b.
template <class Isa>
void add_rows(const uint16_t* a, const uint16_t* b, int64_t width, uint16_t* to) {
  for (int64_t c = 0; c < width; c += PANEL) {
    Isa::store_bfloat16(Isa::add(Isa::load_bfloat16(a + c), Isa::load_bfloat16(b + c)), to + c);
  }
}

template <class Isa>
void forward_norm(const NormForward& pass, Workspace&, int num_threads) {
  const NormRows& norm = pass.norm;
  run_team(num_threads, [&](Team& team) {
    each_row(team, norm.num_rows, [&](int64_t t, int64_t) {
      const uint16_t* x = norm.x + t * norm.step;
      if (pass.more != nullptr) {
        uint16_t* sum = pass.sum + t * norm.width;
        add_rows<Isa>(x, pass.more + t * norm.width, norm.width, sum);
        x = sum;
      }
      const auto inverse = Isa::fill(inverse_size<Isa>(norm, x));
      for (int64_t c = 0; c < norm.width; c += PANEL) {
        const auto scaled = Isa::multiply(Isa::load_bfloat16(x + c), inverse);
        Isa::store_bfloat16(Isa::multiply(scaled, Isa::load(norm.weight + c)),
                            pass.y + t * norm.width + c);
      }
    });
  });
}

// One row's gradient, and what it adds to the weight's. With n = x r: dx = r (w dy - n mean(w dy
// n)), and dw is the sum of dy n over rows.
template <class Isa>
void backward_norm_row(const NormBackward& pass, int64_t t, float* dweight) {
  const NormRows& norm = pass.norm;
  const int64_t width = norm.width;
  const uint16_t *x = norm.x + t * norm.step, *dy = pass.dy + t * width;
  const auto scale = Isa::fill(inverse_size<Isa>(norm, x));
  typename Isa::Lanes total = Isa::fill(0.0f);
  for (int64_t c = 0; c < width; c += PANEL) {
    const auto normed = Isa::multiply(Isa::load_bfloat16(x + c), scale);
    const auto change = Isa::multiply(Isa::load_bfloat16(dy + c), normed);
    total = Isa::multiply_add(change, Isa::load(norm.weight + c), total);
    Isa::store(Isa::add(Isa::load(dweight + c), change), dweight + c);
  }
  const auto mean = Isa::fill(-Isa::sum(total) / static_cast<float>(width));
  for (int64_t c = 0; c < width; c += PANEL) {
    const auto normed = Isa::multiply(Isa::load_bfloat16(x + c), scale);
    const auto weighed = Isa::multiply(Isa::load_bfloat16(dy + c), Isa::load(norm.weight + c));
    auto change = Isa::multiply(Isa::multiply_add(normed, mean, weighed), scale);
    if (pass.drows != nullptr) {
      change = Isa::add(change, Isa::load_bfloat16(pass.drows + t * width + c));
    }
    Isa::store_bfloat16(change, pass.dx + t * pass.dx_step + c);
  }
}

template <class Isa>
void backward_norm(const NormBackward& pass, Workspace& workspace, int num_threads) {
  workspace.reset();
  const int64_t width = pass.norm.width, pieces = divide_up(pass.norm.num_rows, PIECE_ROWS);
  float* sums = workspace.take<float>(pieces * width);
  std::fill_n(sums, pieces * width, 0.0f);
  run_team(num_threads, [&](Team& team) {
    each_row(team, pass.norm.num_rows, [&](int64_t t, int64_t piece) {
      backward_norm_row<Isa>(pass, t, sums + piece * width);
    });
  });
  std::fill_n(pass.dweight, width, 0.0f);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    for (int64_t c = 0; c < width; ++c) pass.dweight[c] += sums[piece * width + c];
  }
}

}  // namespace moestro::MOESTRO_ISA
