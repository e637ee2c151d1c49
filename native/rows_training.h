// What training does with each row by itself: norms and rotary positions.
// Sums over rows go through sums of fixed pieces, in order: no result depends on threads.
// Next: kernels.h.

#pragma once

#include <algorithm>
#include <cmath>

#include "numbers.h"
#include "team.h"
#include "training.h"
#include "workspace.h"

namespace moestro::MOESTRO_ISA {

// Rows of a task, and of a piece of a sum over rows.
constexpr int64_t PIECE_ROWS = 64;

// Calls work(row) for all rows, shared out among threads in pieces.
template <class Work>
void each_row(Team& team, int64_t num_rows, Work work) {
  team.each(divide_up(num_rows, PIECE_ROWS), [&](int64_t piece) {
    const int64_t last = smaller(num_rows, (piece + 1) * PIECE_ROWS);
    for (int64_t t = piece * PIECE_ROWS; t < last; ++t) work(t, piece);
  });
  team.barrier();
}

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

template <class Isa>
void forward_norm(const NormRows& norm, uint16_t* y, Workspace&, int num_threads) {
  run_team(num_threads, [&](Team& team) {
    each_row(team, norm.num_rows, [&](int64_t t, int64_t) {
      const uint16_t* x = norm.x + t * norm.step;
      const auto inverse = Isa::fill(inverse_size<Isa>(norm, x));
      for (int64_t c = 0; c < norm.width; c += PANEL) {
        const auto scaled = Isa::multiply(Isa::load_bfloat16(x + c), inverse);
        Isa::store_bfloat16(Isa::multiply(scaled, Isa::load(norm.weight + c)),
                            y + t * norm.width + c);
      }
    });
  });
}

// With n = x r: dx = r (w dy - n mean(w dy n)), and dw is the sum of dy n over rows.
template <class Isa>
void backward_norm(const NormRows& norm, const uint16_t* dy, uint16_t* dx, int64_t dx_step,
                   float* dweight, Workspace& workspace, int num_threads) {
  workspace.reset();
  const int64_t width = norm.width, pieces = divide_up(norm.num_rows, PIECE_ROWS);
  float* sums = workspace.take<float>(pieces * width);
  std::fill_n(sums, pieces * width, 0.0f);
  run_team(num_threads, [&](Team& team) {
    each_row(team, norm.num_rows, [&](int64_t t, int64_t piece) {
      const uint16_t *x = norm.x + t * norm.step, *g = dy + t * width;
      const float inverse = inverse_size<Isa>(norm, x);
      const auto scale = Isa::fill(inverse);
      float* sum = sums + piece * width;
      typename Isa::Lanes total = Isa::fill(0.0f);
      for (int64_t c = 0; c < width; c += PANEL) {
        const auto normed = Isa::multiply(Isa::load_bfloat16(x + c), scale);
        const auto change = Isa::multiply(Isa::load_bfloat16(g + c), normed);
        total = Isa::multiply_add(change, Isa::load(norm.weight + c), total);
        Isa::store(Isa::add(Isa::load(sum + c), change), sum + c);
      }
      const auto mean = Isa::fill(-Isa::sum(total) / static_cast<float>(width));
      for (int64_t c = 0; c < width; c += PANEL) {
        const auto normed = Isa::multiply(Isa::load_bfloat16(x + c), scale);
        const auto weighed =
            Isa::multiply(Isa::load_bfloat16(g + c), Isa::load(norm.weight + c));
        const auto change = Isa::multiply_add(normed, mean, weighed);
        Isa::store_bfloat16(Isa::multiply(change, scale), dx + t * dx_step + c);
      }
    });
  });
  std::fill_n(dweight, width, 0.0f);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    for (int64_t c = 0; c < width; ++c) dweight[c] += sums[piece * width + c];
  }
}

// Sixteen pairs of a row, or as many as are left: the numbers that turn with each other.
template <class Isa>
struct RotaryPairs {
  typename Isa::Lanes first, second;

  // From neighbors or from two places, `step` apart from pair to pair.
  static RotaryPairs load(const uint16_t* first, const uint16_t* second, int64_t step, int64_t count) {
    uint16_t a[PANEL] = {}, b[PANEL] = {};
    for (int64_t i = 0; i < count; ++i) {
      a[i] = first[i * step];
      b[i] = second[i * step];
    }
    return {Isa::load_bfloat16(a), Isa::load_bfloat16(b)};
  }

  void store(uint16_t* to_first, uint16_t* to_second, int64_t step, int64_t count) const {
    uint16_t a[PANEL], b[PANEL];
    Isa::store_bfloat16(first, a);
    Isa::store_bfloat16(second, b);
    for (int64_t i = 0; i < count; ++i) {
      to_first[i * step] = a[i];
      to_second[i * step] = b[i];
    }
  }

  RotaryPairs turned(typename Isa::Lanes cosine, typename Isa::Lanes sine) const {
    const auto minus = Isa::multiply(sine, Isa::fill(-1.0f));
    return {Isa::add(Isa::multiply(first, cosine), Isa::multiply(second, minus)),
            Isa::add(Isa::multiply(second, cosine), Isa::multiply(first, sine))};
  }
};

// Rotates pairs; the way back, from halves to pairs as they were, is the inverse rotation.
template <class Isa>
void rotate(const Rotation& rotation, Workspace&, int num_threads) {
  const int64_t pairs = rotation.num_pairs;
  // Where pairs lie in a head's row: as they come, and in halves.
  struct Places {
    int64_t step, second;
  };
  const Places given = rotation.is_interleaved ? Places{2, 1} : Places{1, pairs};
  const Places halves{1, pairs};
  const bool is_inverse = rotation.is_inverse;
  const Places from = is_inverse ? halves : given, to = is_inverse ? given : halves;
  run_team(num_threads, [&](Team& team) {
    each_row(team, rotation.num_rows, [&](int64_t t, int64_t) {
      const float* cosines = rotation.cosines + t % rotation.length * pairs;
      const float* sines = rotation.sines + t % rotation.length * pairs;
      for (int64_t p = 0; p < pairs; p += PANEL) {
        const int64_t count = smaller(PANEL, pairs - p);
        float cosine[PANEL] = {}, sine[PANEL] = {};
        for (int64_t i = 0; i < count; ++i) {
          cosine[i] = cosines[p + i];
          sine[i] = is_inverse ? -sines[p + i] : sines[p + i];
        }
        const auto cos = Isa::load(cosine), sin = Isa::load(sine);
        for (int64_t h = 0; h < rotation.num_heads; ++h) {
          const uint16_t* x = rotation.x.row(t, h) + p * from.step;
          uint16_t* y = rotation.y.row(t, h) + p * to.step;
          const auto pairs_given = RotaryPairs<Isa>::load(x, x + from.second, from.step, count);
          pairs_given.turned(cos, sin).store(y, y + to.second, to.step, count);
        }
      }
    });
  });
}

}  // namespace moestro::MOESTRO_ISA
