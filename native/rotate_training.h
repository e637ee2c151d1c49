// Rotary positions in training, both ways. Next: kernels.h.

#pragma once

#include <cstring>

#include "rows_training.h"
#include "training.h"
#include "workspace.h"

namespace moestro::MOESTRO_ISA {

// Some of a row's pairs, sixteen at the most. Numbers that are known where these are inlined make a
// few moves of whole registers of each: `count` of what is turned, `room` of what may be read, as a
// read of what has just been written in part waits for the writing.
template <class Isa>
struct RotaryPairs {
  typename Isa::Lanes first, second;

  [[gnu::always_inline]] static RotaryPairs neighbors(const uint16_t* x, int64_t room) {
    uint32_t words[PANEL] = {}, low[PANEL], high[PANEL];
    std::memcpy(words, x, 4 * room);
    // A bfloat16 is the upper half of a float.
    for (int64_t i = 0; i < PANEL; ++i) {
      low[i] = words[i] << 16;
      high[i] = words[i] & 0xffff0000u;
    }
    float a[PANEL], b[PANEL];
    std::memcpy(a, low, sizeof a);
    std::memcpy(b, high, sizeof b);
    return {Isa::load(a), Isa::load(b)};
  }

  [[gnu::always_inline]] static RotaryPairs apart(const uint16_t* x, int64_t distance,
                                                  int64_t room) {
    uint16_t a[PANEL] = {}, b[PANEL] = {};
    std::memcpy(a, x, 2 * room);
    std::memcpy(b, x + distance, 2 * room);
    return {Isa::load_bfloat16(a), Isa::load_bfloat16(b)};
  }

  RotaryPairs turned(typename Isa::Lanes cosine, typename Isa::Lanes sine) const {
    const auto minus = Isa::multiply(second, Isa::fill(-1.0f));
    return {Isa::multiply_add(minus, sine, Isa::multiply(first, cosine)),
            Isa::multiply_add(first, sine, Isa::multiply(second, cosine))};
  }

  [[gnu::always_inline]] void store_neighbors(uint16_t* to, int64_t count) const {
    uint32_t words[PANEL];
    Isa::store_pairs(first, second, words);
    std::memcpy(to, words, 4 * count);
  }

  [[gnu::always_inline]] void store_apart(uint16_t* to, int64_t distance, int64_t count) const {
    uint16_t a[PANEL], b[PANEL];
    Isa::store_bfloat16(first, a);
    Isa::store_bfloat16(second, b);
    std::memcpy(to, a, 2 * count);
    std::memcpy(to + distance, b, 2 * count);
  }
};

// Turns some of the pairs of a token's heads, from `p` on.
template <class Isa>
[[gnu::always_inline]] inline void turn_heads(const Rotation& rotation, int64_t t, int64_t p,
                                              int64_t count, int64_t room) {
  const int64_t pairs = rotation.num_pairs, place = t % rotation.length * pairs + p;
  float cosines[PANEL] = {}, sines[PANEL] = {};
  std::memcpy(cosines, rotation.cosines + place, 4 * room);
  std::memcpy(sines, rotation.sines + place, 4 * room);
  const auto cosine = Isa::load(cosines);
  const auto sine = Isa::multiply(Isa::load(sines), Isa::fill(rotation.is_inverse ? -1.0f : 1.0f));
  for (int64_t h = 0; h < rotation.num_heads; ++h) {
    const uint16_t* x = rotation.x.row(t, h);
    uint16_t* y = rotation.y.row(t, h);
    if (rotation.is_interleaved && !rotation.is_inverse) {
      const auto given = RotaryPairs<Isa>::neighbors(x + 2 * p, room);
      given.turned(cosine, sine).store_apart(y + p, pairs, count);
      continue;
    }
    const auto turned = RotaryPairs<Isa>::apart(x + p, pairs, room).turned(cosine, sine);
    if (rotation.is_interleaved) {
      turned.store_neighbors(y + 2 * p, count);
    } else {
      turned.store_apart(y + p, pairs, count);
    }
  }
}

// Rotates pairs; the way back, from halves to pairs as they were, is the inverse rotation.
template <class Isa>
void rotate(const Rotation& rotation, Workspace&, int num_threads) {
  constexpr int64_t FEW = PANEL / 2;
  const int64_t pairs = rotation.num_pairs, last_place = rotation.length - 1;
  run_team(num_threads, [&](Team& team) {
    each_row(team, rotation.num_rows, [&](int64_t t, int64_t) {
      int64_t p = 0;
      for (; p + PANEL <= pairs; p += PANEL) turn_heads<Isa>(rotation, t, p, PANEL, PANEL);
      // Behind a row and its angles lie the next, of as many pairs, unless it is the last.
      if (p + FEW <= pairs && t + 1 < rotation.num_rows && t % rotation.length < last_place) {
        turn_heads<Isa>(rotation, t, p, FEW, PANEL);
        p += FEW;
      }
      if (p < pairs) turn_heads<Isa>(rotation, t, p, pairs - p, pairs - p);
    });
  });
}

}  // namespace moestro::MOESTRO_ISA
