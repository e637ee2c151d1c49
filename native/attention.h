// Latent attention over pages, absorbed: queries carried to the latent space meet cached latents
// (arXiv 2412.19437, eq. 1-11), with a running softmax (FlashAttention, arXiv 2205.14135).
//
// A task's queries lie side by side in lanes, from their scores to their weights. Next: expanded.h,
// layer_attention.h.

#pragma once

#include "mixtures.h"
#include "multiply.h"
#include "plan.h"
#include "weigh.h"

namespace moestro::MOESTRO_ISA {

template <class Isa>
float exponential_of(float x) {
  float lanes[PANEL];
  Isa::store(exponential<Isa>(Isa::fill(x)), lanes);
  return lanes[0];
}

// mixture = mixture * factor + added * share, for widths of whole panels.
template <class Isa>
void blend(float* mixture, float factor, const float* added, float share, int64_t width) {
  for (int64_t c = 0; c < width; c += PANEL) {
    const auto scaled = Isa::multiply(Isa::load(added + c), Isa::fill(share));
    Isa::store(Isa::multiply_add(Isa::load(mixture + c), Isa::fill(factor), scaled), mixture + c);
  }
}

// Adds a later chunk's part to the total of the earlier ones.
template <class Isa>
void merge(Part& total, float* mixture, const Part& part, const float* added, int64_t width) {
  const float most = total.most > part.most ? total.most : part.most;
  const float old = exponential_of<Isa>(total.most - most);
  const float fresh = exponential_of<Isa>(part.most - most);
  total = {most, total.sum * old + part.sum * fresh};
  blend<Isa>(mixture, old, added, fresh, width);
}

// One layer's latents, and the rows that attend to them.
struct Cached {
  char* slots;
  Format format;
  int64_t block_size;
  int64_t width;

  int64_t slot_bytes() const { return width * bytes_per_number(format); }
  char* slot(int64_t number) const { return slots + number * slot_bytes(); }
  const char* key(const int64_t* table, int64_t k) const {
    return slot(table[k / block_size] * block_size + k % block_size);
  }
};

template <class Isa>
class Attention {
 public:
  // `mixture_width` is the latent width in whole panels; `queries` are (row, head, cache width).
  Attention(const AttentionPlan& plan, const Step& step, const Shape& shape, const Cached& cached,
            const float* queries, int64_t mixture_width, Part* parts, float* mixtures)
      : plan_(plan), step_(step), shape_(shape), cached_(cached), queries_(queries),
        width_(mixture_width), parts_(parts), mixtures_(mixtures) {}

  void run(const AttentionTask& task, Span& span) const {
    put_queries(task, span);
    const int64_t index = plan_.num_parts(task.sequence) == 1 ? 0 : task.first_chunk;
    const int64_t place = plan_.part(task.sequence, index, task.first_query);
    Part* totals = parts_ + place;
    float* mixtures = mixtures_ + place * width_;
    take_chunk(task, task.first_chunk, span, totals, mixtures);
    for (int64_t chunk = task.first_chunk + 1; chunk < task.last_chunk; ++chunk) {
      take_chunk(task, chunk, span, span.parts, span.mixtures);
      for (int64_t q = 0; q < task.num_queries; ++q) {
        merge<Isa>(totals[q], mixtures + q * width_, span.parts[q], span.mixtures + q * width_,
                   width_);
      }
    }
  }

  // The finished mixture of one query, to `out` of the latent width.
  void finish(int64_t sequence, int64_t query, float* out) const {
    float* mixture = mixtures_ + plan_.part(sequence, 0, query) * width_;
    Part total = parts_[plan_.part(sequence, 0, query)];
    for (int64_t i = 1; i < plan_.num_parts(sequence); ++i) {
      const int64_t place = plan_.part(sequence, i, query);
      merge<Isa>(total, mixture, parts_[place], mixtures_ + place * width_, width_);
    }
    const auto inverse = Isa::fill(1.0f / total.sum);
    by_lanes<Isa>(mixture, shape_.latent, 0.0f, [&](auto a, int64_t start, int64_t count) {
      store_some<Isa>(Isa::multiply(a, inverse), out + start, count);
    });
  }

 private:
  static int64_t num_panels(const AttentionTask& task) {
    return divide_up(task.num_queries, PANEL);
  }

  void put_queries(const AttentionTask& task, Span& span) const {
    const int64_t first_row = step_.sequences[task.sequence].first_row;
    const int64_t first_query = first_row * shape_.num_heads + task.first_query;
    const float* from = queries_ + first_query * cached_.width;
    const int64_t lanes = num_panels(task) * PANEL;
    if (lanes > task.num_queries) {
      std::memset(span.queries, 0,
                  sizeof(uint32_t) * lanes * num_words(cached_.format, cached_.width));
    }
    for (int64_t q = 0; q < task.num_queries; ++q) {
      put_row<Isa>(from + q * cached_.width, cached_.format, cached_.width, q,
                   {span.queries, nullptr, nullptr, lanes});
    }
  }

  void take_chunk(const AttentionTask& task, int64_t chunk, Span& span, Part* parts,
                  float* mixtures) const {
    const int64_t last_query = task.first_query + task.num_queries - 1;
    const int64_t num_keys = plan_.num_keys(task.sequence, last_query);
    const int64_t end = smaller((chunk + 1) * CHUNK, num_keys);
    const int64_t last = smaller(task.last_chunk * CHUNK, num_keys);
    for (int64_t q = 0; q < TASK_QUERIES; ++q) span.begin(q, {NOTHING, 0.0f});
    std::memset(mixtures, 0, sizeof(float) * task.num_queries * width_);
    for (int64_t start = chunk * CHUNK; start < end; start += SPAN) {
      const int64_t number = smaller(SPAN, end - start);
      find_keys(task, start, number, last, span);
      group(task, start, number, span);
      if (cached_.format == Format::float32) {
        take_span<Format::float32>(task, number, span, mixtures);
      } else {
        take_span<Format::bfloat16>(task, number, span, mixtures);
      }
    }
    for (int64_t q = 0; q < task.num_queries; ++q) parts[q] = {span.most[q], span.sums[q]};
  }

  // Lists a span's keys; behind them are zeros, and behind those of a whole span the next ones.
  void find_keys(const AttentionTask& task, int64_t start, int64_t number, int64_t last,
                 Span& span) const {
    const int64_t* table = step_.sequences[task.sequence].table;
    for (int64_t k = 0; k < SPAN + AHEAD; ++k) {
      if (k >= (k < SPAN ? number : last - start)) {
        span.keys[k] = span.no_key;
      } else if (span.is_copied && k < SPAN) {
        uint32_t* copy = span.copies + k * span.row_words;
        std::memset(copy, 0, sizeof(uint32_t) * span.row_words);
        std::memcpy(copy, cached_.key(table, start + k), cached_.slot_bytes());
        span.keys[k] = copy;
      } else {
        span.keys[k] = reinterpret_cast<const uint32_t*>(cached_.key(table, start + k));
      }
    }
  }

  // Groups queries by their row in the batch. What a row does not see yet is not there for it: a
  // weight of zero would not do, if a later row's latent is no number.
  void group(const AttentionTask& task, int64_t start, int64_t number, Span& span) const {
    span.num_groups = 0;
    int64_t q = 0;
    while (q < task.num_queries) {
      const int64_t query = task.first_query + q, heads = shape_.num_heads;
      const int64_t count = smaller(heads - query % heads, task.num_queries - q);
      const int64_t visible = plan_.num_keys(task.sequence, query) - start;
      const int64_t num_seen = larger(0, smaller(number, visible));
      for (int64_t i = q; i < q + count; ++i) span.num_seen[i] = num_seen;
      const uint32_t** keys = span.keys;
      if (num_seen < number) {
        keys = span.seen + span.num_groups * SPAN;
        for (int64_t k = 0; k < SPAN; ++k) keys[k] = k < num_seen ? span.keys[k] : span.no_key;
      }
      span.groups[span.num_groups++] = {q, count, keys, num_seen};
      q += count;
    }
  }

  template <Format F>
  void take_span(const AttentionTask& task, int64_t number, Span& span, float* mixtures) const {
    weigh<Isa, F>(number, task.num_queries, num_words(F, cached_.width), shape_.softmax_scale,
                  span);
    const Weights weights{span.weights, num_panels(task) * PANEL, span.factors};
    // Later rows see more: those that see all keys of a whole span come last.
    int64_t num_groups = span.num_groups;
    if (span.is_tiled) {
      while (num_groups > 0 && span.groups[num_groups - 1].num_keys == SPAN) --num_groups;
    }
    for (int64_t c = 0; c < width_; c += MIXED) {
      for (int64_t g = 0; g < num_groups; ++g) {
        mix_columns<Isa, F>(span.groups[g], 0, weights, c, mixtures, width_);
      }
    }
    if constexpr (Isa::HAS_TILES) {
      if (num_groups == span.num_groups) return;
      turn_weights<Isa>(weights, span.turned);
      for (int64_t c = 0; c < width_; c += MIXED) {
        mix_tiled<Isa>(span.keys, span.groups[num_groups].first, task.num_queries, span.turned,
                       span.factors, c, mixtures, width_);
      }
    }
  }

  const AttentionPlan& plan_;
  const Step& step_;
  const Shape& shape_;
  const Cached cached_;
  const float* queries_;
  const int64_t width_;
  Part* parts_;
  float* mixtures_;
};

}  // namespace moestro::MOESTRO_ISA
