// The gradients of experts' matrices: products of two factors whose rows are an expert's pairs,
// which threads put down block by block before they sum over them. Next: experts_training.h.

#pragma once

#include "band_products.h"
#include "training_pairs.h"

namespace moestro::MOESTRO_ISA {

// Experts that make whole ones fit tasks: fewer would leave threads waiting for the last.
constexpr int64_t TASKS_PER_THREAD = 8;

// Where the factors of an expert's gradients lie. A thread that takes whole experts has one place,
// so that they stay in its cache; else every expert has one, for all threads to read.
struct FactorPlaces {
  FactorPlaces(const TrainingPairs& sorted, int64_t num_experts, int num_threads)
      : pairs(sorted), are_by_thread(num_experts >= TASKS_PER_THREAD * num_threads) {
    for (int64_t e = 0; e < num_experts; ++e) most_words = larger(most_words, pairs.num_words(e));
    num_words = are_by_thread ? num_threads * most_words : pairs.first_word[num_experts];
  }

  int64_t first_word(int64_t expert, int rank) const {
    return are_by_thread ? rank * most_words : pairs.first_word[expert];
  }

  const TrainingPairs& pairs;
  const bool are_by_thread;
  int64_t most_words = 0, num_words = 0;
};

// A factor of the matrices' gradients: rows of an expert's pairs.
struct PairFactor {
  PairFactor(Workspace& workspace, const FactorPlaces& given, int64_t columns)
      : places(given),
        num_columns(columns),
        data(workspace.take<uint32_t>(given.num_words * columns)) {}

  uint32_t* expert(int64_t e, int rank) const {
    return data + places.first_word(e, rank) * num_columns;
  }
  int64_t num_words(int64_t e) const { return places.pairs.num_words(e); }
  // The first word of a block of an expert's pairs.
  int64_t first_word(const TrainingPairs::Block& block) const {
    return (block.first_pair - places.pairs.first[block.expert]) / 2;
  }

  const FactorPlaces& places;
  const int64_t num_columns;
  uint32_t* const data;
};

// The right one, in bands.
template <class Isa>
struct PairBands : PairFactor {
  using PairFactor::PairFactor;

  Bands<Isa> bands(int64_t e, int rank) const {
    return {expert(e, rank), num_columns, num_words(e)};
  }
  // Takes a block's rows, filled up.
  void put(const TrainingPairs::Block& block, const uint16_t* rows, int rank) const {
    const Bands<Isa> to = bands(block.expert, rank);
    const int64_t words = round_up(block.num_pairs, ROW_MULTIPLE) / 2;
    for (int64_t b = 0; b < to.plan.number; ++b) {
      pack_rows<Isa>(rows, words, to, b, first_word(block));
    }
  }
};

// The left one, in columns.
template <class Isa>
struct PairColumns : PairFactor {
  using PairFactor::PairFactor;

  ColumnFactor<Isa> columns(int64_t e, int rank) const {
    return {expert(e, rank), num_columns, num_words(e)};
  }
  void put(const TrainingPairs::Block& block, const uint16_t* rows, int rank) const {
    columns(block.expert, rank)
        .put(rows, num_columns, round_up(block.num_pairs, ROW_MULTIPLE), first_word(block));
  }
};

// The gradient of all experts' matrices of one kind: out[e] = left[e]^T right[e].
template <class Isa>
struct MatrixGradient {
  MatrixGradient(const PairColumns<Isa>& left_factor, const PairBands<Isa>& right_factor,
                 uint16_t* gradient)
      : left(left_factor),
        right(right_factor),
        left_plan(left.num_columns),
        right_plan(right.num_columns),
        out(gradient) {}

  int64_t tasks_of_one() const { return left_plan.number * right_plan.number; }

  void run(int64_t expert, int64_t part, int rank) const {
    const int64_t a = part / right_plan.number, b = part % right_plan.number;
    const int64_t columns = right.num_columns, rows = left_plan.width(a);
    uint16_t* to = out + (expert * left.num_columns + left_plan.first(a)) * columns;
    to += right_plan.first(b);
    const Bands<Isa> factors = right.bands(expert, rank);
    multiply_band<Isa>(left.columns(expert, rank).from(left_plan.first(a)), rows, factors, b,
                       factors.num_words, to_rows<Isa>(to, columns));
  }

  const PairColumns<Isa>& left;
  const PairBands<Isa>& right;
  const BandPlan<Isa> left_plan, right_plan;
  uint16_t* const out;
};

}  // namespace moestro::MOESTRO_ISA
