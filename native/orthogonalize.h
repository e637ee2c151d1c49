// Muon's matrices made orthogonal: Newton-Schulz iterations on bfloat16, a matrix to a task.
//
// Every matrix is read so that its short side is its rows, and is filled up with zeros to whole
// panels, which stay zero. A matrix of training's sizes fits a core's caches with all that it
// needs. Next: symmetric.h.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "symmetric.h"
#include "team.h"
#include "workspace.h"

namespace moestro::MOESTRO_ISA {

// Keeps a matrix of zeros from being divided by zero, as the twin does.
constexpr float LEAST_NORM = 1e-7f;

inline float from_bfloat16(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float out;
  std::memcpy(&out, &word, sizeof out);
  return out;
}

// One thread's iteration on one matrix after the other, and the memory for it.
template <class Isa>
class Orthogonalizer {
  using Lanes = typename Isa::Lanes;

 public:
  Orthogonalizer(const Orthogonals& given, Workspace& workspace)
      : given_(given),
        is_tall_(given.num_rows > given.num_columns),
        rows_(round_up(std::min(given.num_rows, given.num_columns), WIDTH_MULTIPLE)),
        columns_(round_up(std::max(given.num_rows, given.num_columns), WIDTH_MULTIPLE)),
        x_(workspace.take<uint16_t>(rows_ * columns_)),
        gram_(workspace.take<uint16_t>(rows_ * rows_)),
        factor_(workspace.take<uint16_t>(rows_ * rows_)),
        words_(workspace.take<uint32_t>(rows_ * columns_ / 2)) {}

  void run(int64_t matrix) {
    const int64_t size = given_.num_rows * given_.num_columns;
    load(given_.x + matrix * size);
    for (int i = 0; i < given_.num_steps; ++i) improve();
    store(given_.y + matrix * size);
  }

 private:
  // x := a x + (b g + c g g) x, where g = x x^T.
  void improve() {
    multiply_symmetric<Isa>(by_rows(x_, columns_), rows_,
                            pack_all_transposed<Isa>(x_, rows_, columns_, words_),
                            to_rows<Isa>(gram_, rows_));
    mirror<Isa>(gram_, rows_);
    // A gram matrix is its own transpose, and so is its square.
    multiply_symmetric<Isa>(by_rows(gram_, rows_), rows_,
                            pack_all_rows<Isa>(gram_, rows_, rows_, words_),
                            [&](int64_t row, int64_t column, Lanes sums) {
                              const int64_t at = row * rows_ + column;
                              put(given_.b, gram_ + at,
                                  Isa::multiply(sums, Isa::fill(given_.c)), factor_ + at);
                            });
    mirror<Isa>(factor_, rows_);
    multiply_bands<Isa>(by_rows(factor_, rows_), rows_,
                        pack_all_rows<Isa>(x_, columns_, rows_, words_),
                        [&](int64_t row, int64_t column, Lanes sums) {
                          uint16_t* at = x_ + row * columns_ + column;
                          put(given_.a, at, sums, at);
                        });
  }

  // to := share * from + more.
  static void put(float share, const uint16_t* from, Lanes more, uint16_t* to) {
    Isa::store_bfloat16(Isa::multiply_add(Isa::fill(share), Isa::load_bfloat16(from), more), to);
  }

  // The matrix over its norm, which no singular value exceeds.
  void load(const uint16_t* from) {
    const Lanes scale = Isa::fill(1.0f / (norm(from) + LEAST_NORM));
    std::memset(x_, 0, sizeof(uint16_t) * rows_ * columns_);
    each_piece([&](int64_t row, int64_t column, int64_t count) {
      uint16_t piece[PANEL] = {};
      std::memcpy(piece, from + row * given_.num_columns + column, sizeof(uint16_t) * count);
      Isa::store_bfloat16(Isa::multiply(Isa::load_bfloat16(piece), scale), piece);
      for (int64_t i = 0; i < count; ++i) *place(row, column + i) = piece[i];
    });
  }

  void store(uint16_t* to) const {
    each_piece([&](int64_t row, int64_t column, int64_t count) {
      uint16_t* piece = to + row * given_.num_columns + column;
      for (int64_t i = 0; i < count; ++i) piece[i] = *place(row, column + i);
    });
  }

  // Calls work(row, column, count) for all pieces of the rows of the matrix as it was given.
  template <class Work>
  void each_piece(Work work) const {
    for (int64_t row = 0; row < given_.num_rows; ++row) {
      for (int64_t column = 0; column < given_.num_columns; column += PANEL) {
        work(row, column, smaller(PANEL, given_.num_columns - column));
      }
    }
  }

  // Where a number of the matrix as it was given lies here.
  uint16_t* place(int64_t row, int64_t column) const {
    return is_tall_ ? x_ + column * columns_ + row : x_ + row * columns_ + column;
  }

  float norm(const uint16_t* from) const {
    const int64_t size = given_.num_rows * given_.num_columns, whole = size / PANEL * PANEL;
    Lanes squares = Isa::fill(0.0f);
    for (int64_t i = 0; i < whole; i += PANEL) {
      const Lanes a = Isa::load_bfloat16(from + i);
      squares = Isa::multiply_add(a, a, squares);
    }
    float total = Isa::sum(squares);
    for (int64_t i = whole; i < size; ++i) total += from_bfloat16(from[i]) * from_bfloat16(from[i]);
    return std::sqrt(total);
  }

  const Orthogonals given_;
  const bool is_tall_;
  const int64_t rows_, columns_;
  uint16_t *const x_, *const gram_, *const factor_;
  uint32_t* const words_;
};

template <class Isa>
void orthogonalize(const Orthogonals& given, Workspace& workspace, int num_threads) {
  workspace.reset();
  std::vector<Orthogonalizer<Isa>> own;
  for (int i = 0; i < num_threads; ++i) own.emplace_back(given, workspace);
  run_with_tiles<Isa>(num_threads, [&](Team& team) {
    team.each(given.number, [&](int64_t matrix) { own[team.rank()].run(matrix); });
    team.barrier();
  });
}

}  // namespace moestro::MOESTRO_ISA
