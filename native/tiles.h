// A team whose threads have a processor's tiles ready,
// where it has any. Next: band_products.h, multiply.h.

#pragma once

#include "team.h"

namespace moestro::MOESTRO_ISA {

template <class Isa, class Work>
void run_with_tiles(int num_threads, Work work) {
  run_team(num_threads, [&](Team& team) {
    [[maybe_unused]] const typename Isa::Tiles tiles;
    work(team);
  });
}

}  // namespace moestro::MOESTRO_ISA
