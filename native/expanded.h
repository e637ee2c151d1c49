// Latent attention for prompts: latents are expanded to a head's keys and values before they are
// attended to (arXiv 2412.19437, eq. 1-5). Where many rows read the same latents this multiplies
// less than carrying every query to them (attention.h), but sums in another order.
//
// A task is one head of one sequence's rows. Keys are expanded some at a time, so that they stay in
// a core's cache until all rows have read them. Next: layer_attention.h.

#pragma once

#include "attention.h"

namespace moestro::MOESTRO_ISA {

// Keys that are expanded at once.
constexpr int64_t EXPANDED_KEYS = 256;
static_assert(EXPANDED_KEYS % SPAN == 0, "whole spans");

// One thread's memory for a head: expanded keys and values,
// and its rows' queries and softmax so far.
struct HeadRoom {
  HeadRoom(Workspace& workspace, const Shape& shape, Format format, int64_t most_rows,
           bool has_tiles)
      : value_width(round_up(shape.value, MIXED)),
        key_words(num_words(format, shape.query_width())),
        value_words(num_words(format, value_width)),
        span(workspace, format, shape.query_width(), value_width, has_tiles),
        latents(workspace, shape.latent, TILED_ROWS, format),
        query(workspace.take<float>(shape.query_width())),
        queries(workspace.take<uint32_t>(round_up(most_rows, TASK_QUERIES) * key_words)),
        keys(workspace.take<uint32_t>(EXPANDED_KEYS * key_words)),
        values(workspace.take<uint32_t>((EXPANDED_KEYS + 1) * value_words)),
        parts(workspace.take<Part>(most_rows)),
        mixtures(workspace.take<float>(most_rows * value_width)) {
    // Columns that fill a value up, and the value of no key, behind the others.
    std::memset(values, 0, sizeof(uint32_t) * (EXPANDED_KEYS + 1) * value_words);
  }

  const int64_t value_width, key_words, value_words;
  Span span;
  InputMemory latents;
  float* query;
  uint32_t *queries, *keys, *values;
  Part* parts;
  float* mixtures;
};

template <class Isa>
class Expanded {
 public:
  Expanded(const Step& step, const Shape& shape, const Layer& layer, const Cached& cached)
      : step_(step), shape_(shape), layer_(layer), cached_(cached) {}

  // Attends with head `h` of a sequence's rows. put_query(row of the batch, to) gives a row's
  // query, rotated; out(row of the batch) is where its mixture of values goes.
  template <class PutQuery, class Out>
  void run(const Sequence& sequence, int64_t h, HeadRoom& room, PutQuery put_query, Out out) const {
    const int64_t rows = sequence.num_rows, first_row = sequence.first_row;
    for (int64_t r = 0; r < rows; ++r) {
      put_query(first_row + r, room.query);
      const int64_t place = r % TASK_QUERIES, first = r - place;
      const int64_t lanes = round_up(smaller(TASK_QUERIES, rows - first), PANEL);
      uint32_t* words = room.queries + first * room.key_words;
      if (place == 0) std::memset(words, 0, sizeof(uint32_t) * lanes * room.key_words);
      put_row<Isa>(room.query, cached_.format, shape_.query_width(), place,
                   {words, nullptr, nullptr, lanes});
      room.parts[r] = {NOTHING, 0.0f};
    }
    std::memset(room.mixtures, 0, sizeof(float) * rows * room.value_width);
    const int64_t num_keys = step_.positions[first_row + rows - 1] + 1;
    for (int64_t start = 0; start < num_keys; start += EXPANDED_KEYS) {
      const int64_t number = smaller(EXPANDED_KEYS, num_keys - start);
      if (cached_.format == Format::float32) {
        take_keys<Format::float32>(sequence, h, start, number, room);
      } else {
        take_keys<Format::bfloat16>(sequence, h, start, number, room);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const auto inverse = Isa::fill(1.0f / room.parts[r].sum);
      float* to = out(first_row + r);
      by_lanes<Isa>(room.mixtures + r * room.value_width, shape_.value, 0.0f,
                    [&](auto a, int64_t column, int64_t count) {
                      store_some<Isa>(Isa::multiply(a, inverse), to + column, count);
                    });
    }
  }

 private:
  template <Format F>
  void take_keys(const Sequence& sequence, int64_t h, int64_t start, int64_t number,
                 HeadRoom& room) const {
    expand<F>(sequence, h, start, number, room);
    const int64_t rows = sequence.num_rows;
    for (int64_t r = 0; r < rows; r += TASK_QUERIES) {
      const int64_t count = smaller(TASK_QUERIES, rows - r);
      const int64_t last_seen = step_.positions[sequence.first_row + r + count - 1];
      if (last_seen < start) continue;
      Span& span = room.span;
      span.queries = room.queries + r * room.key_words;
      for (int64_t q = 0; q < count; ++q) span.begin(q, room.parts[r + q]);
      for (int64_t k = 0; k < number && start + k <= last_seen; k += SPAN) {
        take_span<F>(sequence, r, count, start, k, smaller(SPAN, number - k), room);
      }
      for (int64_t q = 0; q < count; ++q) room.parts[r + q] = {span.most[q], span.sums[q]};
    }
  }

  // Some rows' queries meet `number` of the expanded keys, from `first` on.
  template <Format F>
  void take_span(const Sequence& sequence, int64_t row, int64_t count, int64_t start, int64_t first,
                 int64_t number, HeadRoom& room) const {
    Span& span = room.span;
    const uint32_t* values[SPAN];
    for (int64_t k = 0; k < SPAN; ++k) {
      const bool is_there = k < number;
      span.keys[k] = is_there ? room.keys + (first + k) * room.key_words : span.no_key;
      values[k] = room.values + (is_there ? first + k : EXPANDED_KEYS) * room.value_words;
    }
    for (int64_t k = SPAN; k < SPAN + AHEAD; ++k) span.keys[k] = span.no_key;
    for (int64_t q = 0; q < count; ++q) {
      const int64_t visible = step_.positions[sequence.first_row + row + q] + 1 - start - first;
      span.num_seen[q] = larger(0, smaller(number, visible));
    }
    weigh<Isa, F>(number, count, room.key_words, shape_.softmax_scale, span);
    const Weights weights{span.weights, round_up(count, PANEL), span.factors};
    float* mixtures = room.mixtures + row * room.value_width;
    if constexpr (Isa::HAS_TILES) {
      if (span.is_tiled && number == SPAN) {
        turn_weights<Isa>(weights, span.turned);
        for (int64_t c = 0; c < room.value_width; c += MIXED) {
          mix_tiled<Isa>(values, 0, count, span.turned, span.factors, c, mixtures,
                         room.value_width);
        }
        return;
      }
    }
    const Seeing all{0, count, values, number};
    for (int64_t c = 0; c < room.value_width; c += MIXED) {
      mix_columns<Isa, F>(all, 0, weights, c, mixtures, room.value_width);
    }
  }

  // Latents of `number` keys, from `start` on, to keys and values, a block at a time.
  template <Format F>
  void expand(const Sequence& sequence, int64_t h, int64_t start, int64_t number,
              HeadRoom& room) const {
    const Matrices &keys = layer_.expanded_keys, &values = layer_.expanded_values;
    const bool are_tiled = takes_tiles<Isa>(keys) && takes_tiles<Isa>(values);
    const Inputs inputs(room.latents, keys, are_tiled);
    const Blocks blocks(number, block_rows(are_tiled));
    for (int64_t b = 0; b < blocks.number; ++b) {
      const int64_t first = blocks.first(b);
      const Block block = inputs.block(0, blocks.rows(b));
      for (int64_t r = 0; r < block.num_rows; ++r) {
        const char* latent = cached_.key(sequence.table, start + first + r);
        put_latent<F>(latent, r, block);
        auto* key = reinterpret_cast<char*>(room.keys + (first + r) * room.key_words);
        put_rotary<F>(latent, key);
      }
      multiply_block<Isa, F>(keys, h, 0, keys.num_panels, block, [&](const Outputs& outputs) {
        store_rounded<F>(outputs, keys.num_outputs, room.keys + first * room.key_words,
                         room.key_words);
      });
      multiply_block<Isa, F>(values, h, 0, values.num_panels, block, [&](const Outputs& outputs) {
        store_rounded<F>(outputs, values.num_outputs, room.values + first * room.value_words,
                         room.value_words);
      });
    }
  }

  template <Format F>
  static constexpr int64_t BYTES = bytes_per_number(F);

  // A cached latent as row `r` of a block: it is rounded already.
  template <Format F>
  void put_latent(const char* latent, int64_t r, const Block& block) const {
    const int64_t bytes = shape_.latent * BYTES<F>;
    const bool are_rows = block.row_words != 0;
    uint32_t* to = block.words + (are_rows ? r * block.row_words : r);
    if (are_rows) {
      std::memcpy(to, latent, bytes);
      return;
    }
    const int64_t whole = bytes / 4;
    for (int64_t w = 0; w < whole; ++w) std::memcpy(to + w * block.num_rows, latent + 4 * w, 4);
    if (whole * 4 < bytes) {
      uint32_t last = 0;
      std::memcpy(&last, latent + 4 * whole, bytes - 4 * whole);
      to[whole * block.num_rows] = last;
    }
  }

  // A key's part with rotary position, which all heads share, and zero where it ends within a word.
  template <Format F>
  void put_rotary(const char* latent, char* key) const {
    const int64_t from = shape_.nope * BYTES<F>, bytes = shape_.rotary * BYTES<F>;
    std::memcpy(key + from, latent + shape_.latent * BYTES<F>, bytes);
    if ((from + bytes) % 4 != 0) std::memset(key + from + bytes, 0, 2);
  }

  // A tile's outputs as rows of words, `row_words` apart.
  template <Format F>
  static void store_rounded(const Outputs& outputs, int64_t num_outputs, uint32_t* rows,
                            int64_t row_words) {
    for (int64_t p = 0; p < outputs.num_panels; ++p) {
      const int64_t column = (outputs.panel + p) * PANEL;
      const int64_t count = smaller(PANEL, num_outputs - column);
      for (int64_t r = 0; r < outputs.num_rows; ++r) {
        char* to = reinterpret_cast<char*>(rows + r * row_words) + column * BYTES<F>;
        const float* from = outputs.row(r) + p * PANEL;
        if constexpr (F == Format::float32) {
          if (count > 0) std::memcpy(to, from, sizeof(float) * count);
        } else {
          alignas(32) uint16_t some[PANEL];
          Isa::store_bfloat16(Isa::load(from), some);
          if (count > 0) std::memcpy(to, some, 2 * count);
        }
      }
    }
  }

  const Step& step_;
  const Shape& shape_;
  const Layer& layer_;
  const Cached cached_;
};

}  // namespace moestro::MOESTRO_ISA
