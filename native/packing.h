// Rows of weights into panels: words of sixteen outputs side by side, scales behind each group.
// Bits change places, and int8 its signs. Next: kernels.h.

#pragma once

#include <cstring>

#include "team.h"

namespace moestro::MOESTRO_ISA {

// Words of one output that lie together in a strip: a group's, or all of them.
constexpr int64_t words_of_group(Format format, int64_t depth) {
  return is_quantized(format) ? code_bytes(format) / (STRIP * PANEL * 4) : num_words(format, depth);
}

// The kernels' products want int8 without a sign.
constexpr uint32_t flipped_signs(Format format) {
  return format == Format::int8 ? 0x80808080u : 0u;
}

// The place of a word of a panel on a `side` of its strip.
inline char* word_place(char* strip, int64_t side, int64_t word, Format format, int64_t depth) {
  const int64_t in_group = words_of_group(format, depth);
  const int64_t group = is_quantized(format) ? word / in_group : 0;
  return strip + group * (is_quantized(format) ? group_bytes(format) : 0) +
         ((word - group * in_group) * STRIP + side) * PANEL * 4;
}

template <class Isa>
void put_words(const SourceRows& source, int64_t first_row, Format format, int64_t depth,
               char* strip, int64_t side) {
  const int64_t groups = is_quantized(format) ? num_groups(depth) : 1;
  const int64_t words = groups * words_of_group(format, depth);
  const int64_t rows = larger(0, smaller(PANEL, source.num_rows - first_row));
  alignas(64) uint32_t taken[PANEL][PANEL], turned[PANEL][PANEL];
  const uint32_t* lines[PANEL];
  for (int64_t r = 0; r < PANEL; ++r) lines[r] = taken[r];
  for (int64_t w = 0; w < words; w += PANEL) {
    const int64_t bytes = smaller(PANEL * 4, source.row_bytes - w * 4);
    // What is not there is zero.
    if (rows < PANEL || bytes < PANEL * 4) std::memset(taken, 0, sizeof taken);
    for (int64_t r = 0; r < rows; ++r) {
      const char* from = source.data + (first_row + r) * source.row_bytes + w * 4;
      std::memcpy(taken[r], from, bytes);
    }
    Isa::transpose(lines, 0, PANEL, turned[0]);
    for (int64_t i = 0; i < smaller(PANEL, words - w); ++i) {
      for (uint32_t& word : turned[i]) word ^= flipped_signs(format);
      std::memcpy(word_place(strip, side, w + i, format, depth), turned[i], PANEL * 4);
    }
  }
}

inline void put_scales(const SourceRows& source, int64_t first_row, Format format, int64_t depth,
                       char* strip, int64_t side) {
  const int64_t groups = num_groups(depth);
  for (int64_t g = 0; g < groups; ++g) {
    uint16_t scales[PANEL] = {};
    for (int64_t r = 0; r < PANEL && first_row + r < source.num_rows; ++r) {
      scales[r] = source.scales[(first_row + r) * groups + g];
    }
    std::memcpy(strip + g * group_bytes(format) + code_bytes(format) + side * PANEL * 2, scales,
                sizeof scales);
  }
}

template <class Isa>
void interleave(const SourceRows* sources, int64_t number, const PanelPlaces& to, int num_threads) {
  run_team(num_threads, [&](Team& team) {
    team.each(number * to.panels_of_source, [&](int64_t task) {
      const SourceRows& source = sources[task / to.panels_of_source];
      const int64_t p = task % to.panels_of_source;
      const int64_t panel = source.first_panel + p * to.panel_step, side = panel % STRIP;
      char* strip = to.data + panel / STRIP * strip_bytes(to.format, to.depth);
      put_words<Isa>(source, p * PANEL, to.format, to.depth, strip, side);
      if (is_quantized(to.format)) {
        put_scales(source, p * PANEL, to.format, to.depth, strip, side);
      }
    });
    team.barrier();
  });
}

}  // namespace moestro::MOESTRO_ISA
