// Matrices of one shape that training packs for its products, band by band as tasks.
// Next: experts_training.h.

#pragma once

#include "bands.h"
#include "workspace.h"

namespace moestro::MOESTRO_ISA {

// Some matrices of one shape, packed one behind the other.
template <class Isa>
struct PackedMatrices {
  PackedMatrices(Workspace& workspace, int64_t matrices, int64_t columns, int64_t depth)
      : number(matrices),
        plan(columns),
        num_words(depth / 2),
        data(workspace.take<uint32_t>(matrices * columns * num_words)) {}

  Bands<Isa> matrix(int64_t m) const {
    return {data + m * plan.num_columns * num_words, plan.num_columns, num_words};
  }
  int64_t num_tasks() const { return number * plan.number; }
  void pack_transposed_task(const uint16_t* from, int64_t task) const {
    const int64_t m = task / plan.number;
    pack_transposed<Isa>(from + m * size(), matrix(m), task % plan.number);
  }
  void pack_task(const uint16_t* from, int64_t task) const {
    const int64_t m = task / plan.number;
    pack_rows<Isa>(from + m * size(), num_words, matrix(m), task % plan.number, 0);
  }

 private:
  int64_t size() const { return plan.num_columns * num_words * 2; }

  const int64_t number;
  const BandPlan<Isa> plan;
  const int64_t num_words;
  uint32_t* const data;
};

}  // namespace moestro::MOESTRO_ISA
