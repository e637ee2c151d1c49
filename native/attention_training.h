// Causal attention in training, a sequence's head at a time: forward, and the gradients of all that
// it takes. Scores of some queries live in a core's cache; the way back computes them anew.
//
// Softmax is float32, what is multiplied bfloat16. Every number is one thread's work in one order,
// so that no result depends on threads. Next: kernels.h.

#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "head_work.h"
#include "numbers.h"
#include "team.h"

namespace moestro::MOESTRO_ISA {

template <class Isa>
class ForwardHead : HeadWork<Isa> {
 public:
  using typename HeadWork<Isa>::Lanes;

  ForwardHead(Workspace& workspace, const AttentionForward& given)
      : HeadWork<Isa>(workspace, given.shape),
        pass_(given),
        value_words_(this->take_words(workspace, given.shape.value)) {}

  void run(int64_t task) {
    const AttentionShape& shape = this->shape;
    this->load(pass_.inputs, task);
    const Bands<Isa> values =
        pack_all_rows<Isa>(this->value, shape.value, shape.length, value_words_);
    uint16_t* out = head_rows(pass_.out, shape, task);
    float* totals = pass_.log_totals + task * shape.length;
    for (int64_t first = 0; first < shape.length; first += BLOCK_QUERIES) {
      const int64_t count = smaller(BLOCK_QUERIES, shape.length - first), keys = first + count;
      float inverse[BLOCK_QUERIES];
      this->fill_scores(first, count);
      for (int64_t i = 0; i < count; ++i) {
        inverse[i] = weigh(i, first + i + 1, keys, totals + first + i);
      }
      multiply_bands<Isa>(by_rows(this->weights, keys), count, values, shape.value, keys / 2,
                          [&](int64_t row, int64_t column, Lanes sums) {
                            uint16_t* to = out + (first + row) * pass_.out.row_step + column;
                            Isa::store_bfloat16(Isa::multiply(sums, Isa::fill(inverse[row])), to);
                          });
    }
  }

 private:
  // Turns a query's scores of so many keys into weights, up to a factor, which it returns.
  float weigh(int64_t i, int64_t num_keys, int64_t step, float* log_total) const {
    float* scores = this->scores + i * this->shape.length;
    uint16_t* weights = this->weights + i * step;
    const int64_t whole = round_up(num_keys, PANEL);
    for (int64_t k = num_keys; k < whole; ++k) scores[k] = scores[0];
    Lanes most = Isa::load(scores);
    for (int64_t k = PANEL; k < whole; k += PANEL) most = Isa::larger(most, Isa::load(scores + k));
    const float scale = this->shape.scale, largest = Isa::largest(most);
    for (int64_t k = num_keys; k < whole; ++k) scores[k] = -INFINITY;
    Lanes total = Isa::fill(0.0f);
    for (int64_t k = 0; k < whole; k += PANEL) {
      const Lanes below = Isa::add(Isa::load(scores + k), Isa::fill(-largest));
      const Lanes weight = exponential<Isa, BFLOAT16_TERMS>(Isa::multiply(below, Isa::fill(scale)));
      total = Isa::add(total, weight);
      Isa::store_bfloat16(weight, weights + k);
    }
    std::memset(weights + num_keys, 0, 2 * (step - num_keys));
    const float sum = Isa::sum(total);
    *log_total = largest * scale + std::log(sum);
    return 1.0f / sum;
  }

  const AttentionForward& pass_;
  uint32_t* const value_words_;
};

template <class Isa>
class BackwardHead : HeadWork<Isa> {
 public:
  using typename HeadWork<Isa>::Lanes;

  BackwardHead(Workspace& workspace, const AttentionBackward& given)
      : HeadWork<Isa>(workspace, given.shape),
        pass_(given),
        dout_(this->take_rows(workspace, given.shape.value)),
        key_words_(this->take_words(workspace, given.shape.query_width())),
        value_columns_(this->take_words(workspace, given.shape.value)),
        factors_(workspace.take<uint32_t>(BLOCK_QUERIES * wider() / 2)),
        turned_(workspace.take<uint32_t>(BLOCK_QUERIES * given.shape.length / 2)),
        dweights_(workspace.take<float>(BLOCK_QUERIES * given.shape.length)),
        dscores_(workspace.take<uint16_t>(BLOCK_QUERIES * given.shape.length)),
        dkey_(workspace.take<float>(given.shape.length * given.shape.query_width())),
        dvalue_(workspace.take<float>(given.shape.length * given.shape.value)) {}

  void run(int64_t task) {
    const AttentionShape& shape = this->shape;
    const int64_t width = shape.query_width(), length = shape.length;
    this->load(pass_.inputs, task);
    gather_head(pass_.dout, shape, task, shape.value, dout_, shape.value);
    const Bands<Isa> keys = pack_all_rows<Isa>(this->key, width, length, key_words_);
    const Bands<Isa> values =
        pack_all_transposed<Isa>(this->value, length, shape.value, value_columns_);
    std::memset(dkey_, 0, sizeof(float) * length * width);
    std::memset(dvalue_, 0, sizeof(float) * length * shape.value);
    for (int64_t first = 0; first < length; first += BLOCK_QUERIES) {
      go_back(task, first, smaller(BLOCK_QUERIES, length - first), keys, values);
    }
    put(dkey_, width, pass_.gradients.key_nope, shape.nope, task);
    put(dvalue_, shape.value, pass_.gradients.value, shape.value, task);
    // Of the part that all heads share each has its own, until they are summed in order.
    for (int64_t t = 0; t < length; ++t) {
      std::memcpy(pass_.dkey_ropes + (task * length + t) * shape.rotary,
                  dkey_ + t * width + shape.nope, sizeof(float) * shape.rotary);
    }
  }

 private:
  int64_t wider() const { return larger(this->shape.query_width(), this->shape.value); }

  void go_back(int64_t task, int64_t first, int64_t count, const Bands<Isa>& keys,
               const Bands<Isa>& values) {
    const AttentionShape& shape = this->shape;
    const int64_t width = shape.query_width(), length = shape.length, num_keys = first + count;
    const uint16_t *dout = dout_ + first * shape.value, *query = this->query + first * width;
    this->fill_scores(first, count);
    multiply_bands<Isa>(by_rows(dout, shape.value), count, values, num_keys, shape.value / 2,
                        to_rows<Isa>(dweights_, length));
    for (int64_t i = 0; i < count; ++i) differentiate(task, first, i, num_keys);
    add_product(this->weights, num_keys, count, dout, shape.value, dvalue_);
    add_product(dscores_, num_keys, count, query, width, dkey_);
    const HeadRows &dnope = pass_.gradients.query_nope, &drope = pass_.gradients.query_rope;
    const auto put_nope = to_rows<Isa>(head_rows(dnope, shape, task, first), dnope.row_step);
    const auto put_rope = to_rows<Isa>(head_rows(drope, shape, task, first), drope.row_step);
    multiply_bands<Isa>(by_rows(dscores_, num_keys), count, keys, width, num_keys / 2,
                        [&](int64_t row, int64_t column, Lanes sums) {
                          if (column < shape.nope) return put_nope(row, column, sums);
                          put_rope(row, column - shape.nope, sums);
                        });
  }

  // A query's weights and the gradients of its scores, scale included.
  void differentiate(int64_t task, int64_t first, int64_t i, int64_t step) const {
    const AttentionShape& shape = this->shape;
    const int64_t t = first + i, num_keys = t + 1, whole = round_up(num_keys, PANEL);
    const float* scores = this->scores + i * shape.length;
    const float* dweights = dweights_ + i * shape.length;
    uint16_t *weights = this->weights + i * step, *dscores = dscores_ + i * step;
    const Lanes scale = Isa::fill(shape.scale), mean = Isa::fill(-mean_gradient(task, t));
    const Lanes log_total = Isa::fill(-pass_.log_totals[task * shape.length + t]);
    for (int64_t k = 0; k < whole; k += PANEL) {
      const Lanes scaled = Isa::multiply_add(Isa::load(scores + k), scale, log_total);
      const Lanes weight = exponential<Isa, BFLOAT16_TERMS>(scaled);
      const Lanes change = Isa::multiply(Isa::add(Isa::load(dweights + k), mean), scale);
      Isa::store_bfloat16(weight, weights + k);
      Isa::store_bfloat16(Isa::multiply(weight, change), dscores + k);
    }
    std::memset(weights + num_keys, 0, 2 * (step - num_keys));
    std::memset(dscores + num_keys, 0, 2 * (step - num_keys));
  }

  // The mean over keys, by weight, of the gradients of a query's weights.
  float mean_gradient(int64_t task, int64_t t) const {
    const uint16_t* out = head_rows(pass_.out, this->shape, task, t);
    const uint16_t* dout = dout_ + t * this->shape.value;
    Lanes sum = Isa::fill(0.0f);
    for (int64_t c = 0; c < this->shape.value; c += PANEL) {
      sum = Isa::multiply_add(Isa::load_bfloat16(out + c), Isa::load_bfloat16(dout + c), sum);
    }
    return Isa::sum(sum);
  }

  // sums += left^T right, for a block's rows.
  void add_product(const uint16_t* left, int64_t left_width, int64_t rows, const uint16_t* right,
                   int64_t right_width, float* sums) {
    const ColumnFactor<Isa> columns{turned_, left_width, rows / 2};
    columns.put(left, left_width, rows, 0);
    const Bands<Isa> factors = pack_all_rows<Isa>(right, right_width, rows, factors_);
    multiply_bands<Isa>(columns.from(0), left_width, factors,
                        [&](int64_t row, int64_t column, Lanes more) {
                          float* to = sums + row * right_width + column;
                          Isa::store(Isa::add(Isa::load(to), more), to);
                        });
  }

  void put(const float* sums, int64_t step, const HeadRows& part, int64_t width,
           int64_t task) const {
    uint16_t* to = head_rows(part, this->shape, task);
    for (int64_t t = 0; t < this->shape.length; ++t) {
      for (int64_t c = 0; c < width; c += PANEL) {
        Isa::store_bfloat16(Isa::load(sums + t * step + c), to + t * part.row_step + c);
      }
    }
  }

  const AttentionBackward& pass_;
  uint16_t* const dout_;
  uint32_t *const key_words_, *const value_columns_, *const factors_, *const turned_;
  float* const dweights_;
  uint16_t* const dscores_;
  float *const dkey_, *const dvalue_;
};

// Sums what the heads have of a key's shared part.
template <class Isa>
void sum_heads(const AttentionBackward& pass, int64_t sequence) {
  const AttentionShape& shape = pass.shape;
  const int64_t size = shape.length * shape.rotary;
  const int64_t row_step = pass.gradients.key_rope.row_step;
  uint16_t* to = pass.gradients.key_rope.data + sequence * shape.length * row_step;
  const float* from = pass.dkey_ropes + sequence * shape.num_heads * size;
  for (int64_t i = 0; i < size; i += PANEL) {
    typename Isa::Lanes sum = Isa::load(from + i);
    for (int64_t h = 1; h < shape.num_heads; ++h) {
      sum = Isa::add(sum, Isa::load(from + h * size + i));
    }
    Isa::store_bfloat16(sum, to + i / shape.rotary * row_step + i % shape.rotary);
  }
}

template <class Isa>
void forward_attention(const AttentionForward& pass, Workspace& workspace, int num_threads) {
  workspace.reset();
  std::vector<ForwardHead<Isa>> heads;
  for (int i = 0; i < num_threads; ++i) heads.emplace_back(workspace, pass);
  run_with_tiles<Isa>(num_threads, [&](Team& team) {
    team.each(pass.shape.num_tasks(), [&](int64_t task) { heads[team.rank()].run(task); });
    team.barrier();
  });
}

template <class Isa>
void backward_attention(const AttentionBackward& pass, Workspace& workspace, int num_threads) {
  workspace.reset();
  std::vector<BackwardHead<Isa>> heads;
  for (int i = 0; i < num_threads; ++i) heads.emplace_back(workspace, pass);
  run_with_tiles<Isa>(num_threads, [&](Team& team) {
    team.each(pass.shape.num_tasks(), [&](int64_t task) { heads[team.rank()].run(task); });
    team.barrier();
    team.each(pass.shape.num_sequences, [&](int64_t s) { sum_heads<Isa>(pass, s); });
    team.barrier();
  });
}

}  // namespace moestro::MOESTRO_ISA
