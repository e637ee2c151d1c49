// Symmetric products: half of them multiplied, the rest copied. Next: orthogonalize.h.

#pragma once

#include "band_products.h"

namespace moestro::MOESTRO_ISA {

// How many rows and columns a block of a symmetric product has.
constexpr int64_t MIRROR_BLOCK = 2 * PANEL;
static_assert(WIDTH_MULTIPLE % MIRROR_BLOCK == 0, "matrices are whole blocks");

// multiply_bands where the product is symmetric: the blocks on and above its diagonal, and all that
// comes with them in a band. A sum of the same numbers in the same order, the rest has the same
// bits, and `mirror` copies it.
template <class Isa, class Left, class Emit>
void multiply_symmetric(const Left& left, int64_t num_rows, const Bands<Isa>& right, Emit emit) {
  for (int64_t b = 0; b < right.plan.number; ++b) {
    const int64_t first = right.plan.first(b);
    const int64_t end = round_up(first + right.plan.width(b), MIRROR_BLOCK);
    multiply_band<Isa>(left, smaller(num_rows, end), right, b, right.num_words,
                       [&](int64_t row, int64_t column, typename Isa::Lanes sums) {
                         emit(row, first + column, sums);
                       });
  }
}

// Completes a symmetric matrix of which the blocks on and above the diagonal are there.
template <class Isa>
void mirror(uint16_t* matrix, int64_t size) {
  uint32_t* words = reinterpret_cast<uint32_t*>(matrix);
  for (int64_t first = 0; first < size; first += MIRROR_BLOCK) {
    const int64_t next = first + MIRROR_BLOCK;
    turn_rows<Isa>(matrix + first * size + next, size, MIRROR_BLOCK, size - next,
                   words + (next * size + first) / 2, size / 2);
  }
}

}  // namespace moestro::MOESTRO_ISA
