// Latent attention over pages, absorbed: queries carried to the latent space meet cached latents
// (arXiv 2412.19437, eq. 1-11), with a running softmax (FlashAttention, arXiv 2205.14135).
//
// A task packs the keys of a span like weights, so that scores and mixtures are the same products
// as everything else. Next: memory.h, run.h.

#pragma once

#include "multiply.h"
#include "plan.h"

namespace moestro::MOESTRO_ISA {

// Keys whose scores are held at once.
constexpr int64_t SPAN = 64;
// Below any score, and still a number.
constexpr float NOTHING = -1e30f;

// The running softmax of one query over some keys; its mixture is not divided by `sum` yet.
struct Part {
  float most;
  float sum;
};

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

// One thread's memory for a task.
struct Span {
  Span(Workspace& workspace, Format format, int64_t cache_width, int64_t width)
      : keys{nullptr, format, 1, SPAN, cache_width, SPAN / PANEL},
        values{nullptr, format, 1, width, SPAN, width / PANEL},
        key_words(workspace.take<uint32_t>(keys.stride() * keys.num_panels / STRIP / 4)),
        value_words(workspace.take<uint32_t>(values.stride() * values.num_panels / STRIP / 4)),
        queries(InputMemory(workspace, cache_width, TASK_QUERIES), keys),
        weights(InputMemory(workspace, SPAN, TASK_QUERIES), values),
        scores(workspace.take<float>(TASK_QUERIES * SPAN)),
        parts(workspace.take<Part>(TASK_QUERIES)),
        mixtures(workspace.take<float>(TASK_QUERIES * width)),
        no_key(workspace.take<uint32_t>(cache_width + PANEL)) {
    keys.data = reinterpret_cast<const char*>(key_words);
    values.data = reinterpret_cast<const char*>(value_words);
    std::memset(no_key, 0, sizeof(uint32_t) * (cache_width + PANEL));
  }

  Matrices keys, values;
  uint32_t* key_words;
  uint32_t* value_words;
  Inputs queries, weights;
  float* scores;
  Part* parts;
  float* mixtures;
  uint32_t* no_key;
};

// One layer's latents, and the rows that attend to them.
struct Cached {
  char* slots;
  Format format;
  int64_t block_size;
  int64_t width;

  int64_t slot_bytes() const { return width * (format == Format::float32 ? 4 : 2); }
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
    const Blocks blocks(task.num_queries);
    put_queries(task, blocks, span);
    const int64_t index = plan_.num_parts(task.sequence) == 1 ? 0 : task.first_chunk;
    const int64_t place = plan_.part(task.sequence, index, task.first_query);
    Part* totals = parts_ + place;
    float* mixtures = mixtures_ + place * width_;
    take_chunk(task, task.first_chunk, blocks, span, totals, mixtures);
    for (int64_t chunk = task.first_chunk + 1; chunk < task.last_chunk; ++chunk) {
      take_chunk(task, chunk, blocks, span, span.parts, span.mixtures);
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
  static constexpr int64_t STEP = STRIP * PANEL;

  void put_queries(const AttentionTask& task, const Blocks& blocks, Span& span) const {
    const int64_t first_row = step_.sequences[task.sequence].first_row;
    const float* from = queries_ + (first_row * shape_.num_heads + task.first_query) * cached_.width;
    for (int64_t q = 0; q < task.num_queries; ++q) {
      const int64_t b = q / blocks.size;
      put_row<Isa>(from + q * cached_.width, cached_.format, cached_.width, q % blocks.size,
                   span.queries.block(blocks.first(b), blocks.rows(b)));
    }
  }

  void take_chunk(const AttentionTask& task, int64_t chunk, const Blocks& blocks, Span& span,
                  Part* parts, float* mixtures) const {
    const int64_t last_query = task.first_query + task.num_queries - 1;
    const int64_t end =
        smaller((chunk + 1) * CHUNK, plan_.num_keys(task.sequence, last_query));
    for (int64_t q = 0; q < task.num_queries; ++q) parts[q] = {NOTHING, 0.0f};
    std::memset(mixtures, 0, sizeof(float) * task.num_queries * width_);
    for (int64_t start = chunk * CHUNK; start < end; start += SPAN) {
      pack(task, start, smaller(SPAN, end - start), span);
      for (int64_t b = 0; b < blocks.number; ++b) {
        fill_scores(blocks, b, span);
        for (int64_t r = 0; r < blocks.rows(b); ++r) {
          const int64_t q = blocks.first(b) + r;
          const int64_t num_keys = plan_.num_keys(task.sequence, task.first_query + q) - start;
          weigh(q, num_keys, parts[q], mixtures + q * width_, span);
          put_row<Isa>(span.scores + q * SPAN, cached_.format, SPAN, r,
                       span.weights.block(blocks.first(b), blocks.rows(b)));
        }
        add_mixtures(blocks, b, span, mixtures);
      }
    }
  }

  // Packs a span's keys twice: as the scores' weights, and its latents as the mixtures'.
  void pack(const AttentionTask& task, int64_t start, int64_t count, Span& span) const {
    const int64_t* table = step_.sequences[task.sequence].table;
    const uint32_t* rows[SPAN];
    for (int64_t k = 0; k < SPAN; ++k) {
      rows[k] = k < count ? reinterpret_cast<const uint32_t*>(cached_.key(table, start + k))
                          : span.no_key;
    }
    const int64_t words = num_words(cached_.format, cached_.width);
    for (int64_t p = 0; p < SPAN / PANEL; ++p) {
      uint32_t* to = panel_words(span.key_words, span.keys, p);
      for (int64_t w = 0; w < words; w += PANEL) pack_words(rows + p * PANEL, w, words, to);
    }
    for (int64_t c = 0; c < width_; c += PANEL) {
      pack_values(rows, c, panel_words(span.value_words, span.values, c / PANEL));
    }
  }

  static uint32_t* panel_words(uint32_t* words, const Matrices& packed, int64_t panel) {
    return words + panel / STRIP * packed.stride() / 4 + panel % STRIP * PANEL;
  }

  void pack_words(const uint32_t* const* rows, int64_t start, int64_t words, uint32_t* to) const {
    if (start + PANEL <= words && cached_.width % 2 == 0) {
      return Isa::transpose(rows, start, STEP, to + start * STEP);
    }
    const int64_t bytes = cached_.slot_bytes();
    for (int64_t w = start; w < smaller(start + PANEL, words); ++w) {
      for (int64_t r = 0; r < PANEL; ++r) {
        uint32_t word = 0;
        std::memcpy(&word, reinterpret_cast<const char*>(rows[r]) + 4 * w,
                    smaller(4, bytes - 4 * w));
        to[w * STEP + r] = word;
      }
    }
  }

  // Latent columns from `c` on. Those beyond the latent's are of no use and do no harm.
  void pack_values(const uint32_t* const* rows, int64_t c, uint32_t* to) const {
    const int64_t count = smaller(PANEL, cached_.width - c);
    if (cached_.format == Format::float32) {
      for (int64_t k = 0; k < SPAN; ++k, to += STEP) copy_some(rows[k] + c, count, to);
      return;
    }
    for (int64_t k = 0; k < SPAN; k += 2, to += STEP) {
      const uint16_t* even = reinterpret_cast<const uint16_t*>(rows[k]) + c;
      const uint16_t* odd = reinterpret_cast<const uint16_t*>(rows[k + 1]) + c;
      if (count == PANEL) {
        Isa::interleave(even, odd, to);
      } else {
        for (int64_t i = 0; i < PANEL; ++i) {
          to[i] = i < count ? even[i] | static_cast<uint32_t>(odd[i]) << 16 : 0;
        }
      }
    }
  }

  static void copy_some(const uint32_t* from, int64_t count, uint32_t* to) {
    for (int64_t i = 0; i < PANEL; ++i) to[i] = i < count ? from[i] : 0;
  }

  void fill_scores(const Blocks& blocks, int64_t b, Span& span) const {
    float* scores = span.scores + blocks.first(b) * SPAN;
    multiply_cached(span.keys, span.queries.block(blocks.first(b), blocks.rows(b)),
                    [&](const Outputs& outputs) {
                      for (int64_t r = 0; r < outputs.num_rows; ++r) {
                        std::memcpy(scores + r * SPAN + outputs.panel * PANEL, outputs.row(r),
                                    outputs.num_panels * PANEL * sizeof(float));
                      }
                    });
  }

  void add_mixtures(const Blocks& blocks, int64_t b, Span& span, float* mixtures) const {
    float* to = mixtures + blocks.first(b) * width_;
    multiply_cached(span.values, span.weights.block(blocks.first(b), blocks.rows(b)),
                    [&](const Outputs& outputs) {
                      for (int64_t r = 0; r < outputs.num_rows; ++r) {
                        float* row = to + r * width_ + outputs.panel * PANEL;
                        for (int64_t p = 0; p < outputs.num_panels * PANEL; p += PANEL) {
                          Isa::store(Isa::add(Isa::load(row + p), Isa::load(outputs.row(r) + p)),
                                     row + p);
                        }
                      }
                    });
  }

  template <class Emit>
  void multiply_cached(const Matrices& packed, const Block& block, Emit emit) const {
    if (cached_.format == Format::float32) {
      multiply_block<Isa, Format::float32>(packed, 0, 0, packed.num_panels, block, emit);
    } else {
      multiply_block<Isa, Format::bfloat16>(packed, 0, 0, packed.num_panels, block, emit);
    }
  }

  // Turns one query's scores over a span to weights, and brings its part so far to their measure.
  void weigh(int64_t q, int64_t num_keys, Part& part, float* mixture, Span& span) const {
    using Lanes = typename Isa::Lanes;
    float* scores = span.scores + q * SPAN;
    Lanes most = Isa::fill(part.most), sum = Isa::fill(0.0f);
    for (int64_t k = 0; k < SPAN; k += PANEL) {
      Isa::store(Isa::multiply(Isa::load(scores + k), Isa::fill(shape_.softmax_scale)), scores + k);
    }
    for (int64_t k = larger(num_keys, 0); k < SPAN; ++k) scores[k] = NOTHING;
    for (int64_t k = 0; k < SPAN; k += PANEL) most = Isa::larger(most, Isa::load(scores + k));
    const float peak = Isa::largest(most);
    for (int64_t k = 0; k < SPAN; k += PANEL) {
      const Lanes below = Isa::add(Isa::load(scores + k), Isa::fill(-peak));
      Isa::store(exponential<Isa>(below), scores + k);
    }
    // An exponential is never quite nothing; what is not seen weighs nothing at all.
    for (int64_t k = larger(num_keys, 0); k < SPAN; ++k) scores[k] = 0.0f;
    for (int64_t k = 0; k < SPAN; k += PANEL) sum = Isa::add(sum, Isa::load(scores + k));
    const float factor = exponential_of<Isa>(part.most - peak);
    part = {peak, part.sum * factor + Isa::sum(sum)};
    if (factor == 1.0f) return;
    for (int64_t c = 0; c < width_; c += PANEL) {
      Isa::store(Isa::multiply(Isa::load(mixture + c), Isa::fill(factor)), mixture + c);
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
