// Picked tokens: every instruction set like the portable one, the same bits on any number of
// threads, nothing read or written out of bounds. What is picked is tested against numpy.

#include <cmath>
#include <limits>

#include "../picking.h"
#include "../workspace.h"
#include "check.h"
#include "matrix.h"

namespace moestro::check {

namespace {

constexpr int MOST_THREADS = 3;
constexpr int64_t ROWS = 9, ALTERNATIVES = 5;

struct Settings {
  float temperature;
  int64_t top_k;
  double top_p;
  float floor;
};
constexpr Settings SETTINGS[] = {{0.0f, 0, 1.0, -41.0f},  {1.0f, 0, 1.0, -41.0f}, {0.5f, 3, 1.0, -41.0f},
                                 {1.0f, 0, 0.9, -41.0f},  {2.0f, 70, 0.5, -3.0f}, {1.0f, 0, 1.0, -1.0f},
                                 {1e-38f, 2, 0.1, -41.0f}};

struct Picks {
  explicit Picks(int64_t number) : tokens(number * ALTERNATIVES), logprobs(tokens.size()), each(number) {
    for (int64_t i = 0; i < number; ++i) {
      each[i].alternatives = tokens.data() + i * ALTERNATIVES;
      each[i].logprobs = logprobs.data() + i * ALTERNATIVES;
    }
  }
  std::vector<int64_t> tokens;
  std::vector<double> logprobs;
  std::vector<Pick> each;
};

void check_size(const Named& set, int64_t size, bool has_ties) {
  Random random;
  Workspace workspace;
  std::vector<float> logits = random.normals(ROWS * size, 3.0f);
  if (has_ties) {
    for (float& logit : logits) logit = std::round(logit);
  }
  const std::vector<float> edited = random.normals(size, 2.0f);
  std::vector<uint32_t> allowed(divide_up(size, 32));
  for (uint32_t& word : allowed) word = static_cast<uint32_t>(random.below(1 << 30)) * 5u;
  logits[(ROWS - 1) * size] = std::numeric_limits<float>::quiet_NaN();
  for (const Settings& settings : SETTINGS) {
    std::vector<PickRow> rows;
    for (int64_t i = 0; i < ROWS; ++i) {
      const float* own = logits.data() + i * size;
      rows.push_back({own, i % 4 == 1 ? edited.data() : own, i % 3 == 2 ? allowed.data() : nullptr,
                      settings.temperature, settings.top_k, settings.top_p, settings.floor,
                      static_cast<uint64_t>(i * 77 + size), i % 5, i == 5 ? size - 1 : -1,
                      i % 2 == 0 ? ALTERNATIVES : -1});
    }
    Picks expected(ROWS), alone(ROWS);
    portable_kernels.pick_tokens(rows.data(), ROWS, size, expected.each.data(), workspace, 1);
    set.kernels->pick_tokens(rows.data(), ROWS, size, alone.each.data(), workspace, 1);
    for (int64_t i = 0; i < ROWS; ++i) {
      require(alone.each[i].token == expected.each[i].token, std::string(set.name) + ": a pick");
      require(alone.each[i].token < size, std::string(set.name) + ": a token that there is");
    }
    require(alone.tokens == expected.tokens, std::string(set.name) + ": alternatives");
    for (int threads = 1; threads <= MOST_THREADS; ++threads) {
      Picks among(ROWS);
      set.kernels->pick_tokens(rows.data(), ROWS, size, among.each.data(), workspace, threads);
      bool is_same = among.tokens == alone.tokens && among.logprobs == alone.logprobs;
      for (int64_t i = 0; i < ROWS; ++i) {
        is_same &= among.each[i].token == alone.each[i].token;
        is_same &= among.each[i].logprob == alone.each[i].logprob;
      }
      require(is_same, std::string(set.name) + ": a pick's bits on other threads");
    }
  }
}

}  // namespace

void check_picks() {
  for (const Named& set : runnable_kernels()) {
    for (int64_t size : {1, 7, 16, 31, 33, 1025, 16000}) {
      check_size(set, size, false);
      check_size(set, size, true);
    }
  }
}

}  // namespace moestro::check
