// Products and experts of odd shapes equal plain loops; rows keep their bits in any company.

#include <cmath>

#include "../workspace.h"
#include "check.h"
#include "reference.h"

namespace moestro::check {

namespace {

constexpr int MOST_THREADS = 3;

struct ProductShape {
  int64_t rows, number, depth, outputs;
};
constexpr ProductShape PRODUCTS[] = {{0, 1, 8, 8},    {1, 1, 1, 1},    {1, 1, 64, 130}, {2, 1, 7, 16},
                                     {3, 4, 33, 17},  {6, 1, 31, 64},  {7, 2, 65, 15},  {13, 1, 95, 150},
                                     {20, 3, 32, 200}};

void check_product(const Named& set, Format format, const ProductShape& shape) {
  Random random;
  Workspace workspace;
  const Matrix weights(random, format, shape.number, shape.outputs, shape.depth);
  const std::vector<float> bias = random.normals(shape.outputs);
  const int64_t width = shape.number * shape.outputs, taken = shape.number * shape.depth;
  const std::vector<float> x = random.normals(shape.rows * taken);
  std::vector<float> y(shape.rows * width), part(shape.rows * width);
  set.kernels->multiply({x.data(), shape.rows, weights.view(bias.data()), y.data()}, workspace, 1);
  for (int64_t i = 0; i < shape.rows * shape.number; ++i) {
    const std::vector<float> row = rounded(x.data() + i * shape.depth, shape.depth, format);
    for (int64_t n = 0; n < shape.outputs; ++n) {
      Sum sum = dot(row, weights.row(i % shape.number, n));
      sum.add(bias[n], std::fabs(bias[n]));
      require(is_near(y[i * shape.outputs + n], sum, 1e-5), std::string(set.name) + ": a product");
    }
  }
  for (int threads = 1; threads <= MOST_THREADS; ++threads) {
    for (int64_t first = 0; first < shape.rows; ++first) {
      const int64_t count = shape.rows - first;
      set.kernels->multiply({x.data() + first * taken, count, weights.view(bias.data()), part.data()},
                            workspace, threads);
      require(same_bits(part.data(), y.data() + first * width, count * width),
              std::string(set.name) + ": a product's bits in other company");
    }
  }
}

struct ExpertShape {
  int64_t rows, slots, hidden, number, width;
};
constexpr ExpertShape EXPERTS[] = {{0, 2, 8, 4, 4},    {1, 1, 8, 1, 4},    {1, 4, 64, 8, 40},
                                   {5, 2, 33, 3, 17},  {23, 1, 40, 1, 24}, {40, 3, 70, 6, 95},
                                   {9, 2, 130, 2, 64}, {4, 0, 16, 2, 16}};

// Who visits whom: some slots not in use, no expert twice.
struct OwnVisits {
  OwnVisits(Random& random, const ExpertShape& shape)
      : weights(random.normals(shape.rows * shape.slots)), is_used(new bool[weights.size()]) {
    for (int64_t t = 0; t < shape.rows; ++t) {
      const int64_t start = random.below(shape.number);
      for (int64_t k = 0; k < shape.slots; ++k) {
        experts.push_back((start + k) % shape.number);
        is_used[t * shape.slots + k] = random.below(4) > 0;
      }
    }
  }
  ~OwnVisits() { delete[] is_used; }
  OwnVisits(const OwnVisits&) = delete;
  OwnVisits& operator=(const OwnVisits&) = delete;

  Visits from(int64_t row, const ExpertShape& shape) const {
    const int64_t place = row * shape.slots;
    return {experts.data() + place, weights.data() + place, is_used + place, shape.rows - row,
            shape.slots};
  }

  std::vector<int64_t> experts;
  std::vector<float> weights;
  bool* is_used;
};

// Adds one expert's output for a row.
void add_expert(const Matrix& gate_up, const Matrix& down, const ExpertShape& shape, Format format,
                int64_t expert, float weight, const std::vector<float>& x, std::vector<Sum>& out) {
  std::vector<float> hidden(shape.width);
  for (int64_t f = 0; f < shape.width; ++f) {
    const int64_t gate = f / PANEL * 2 * PANEL + f % PANEL;
    const double raw = dot(x, gate_up.row(expert, gate)).value;
    const double up = dot(x, gate_up.row(expert, gate + PANEL)).value;
    hidden[f] = static_cast<float>(raw / (1.0 + std::exp(-raw)) * up * weight);
  }
  const std::vector<float> passed_on = rounded(hidden.data(), shape.width, format);
  for (int64_t d = 0; d < shape.hidden; ++d) {
    const Sum sum = dot(passed_on, down.row(expert, d));
    out[d].add(sum.value, sum.size);
  }
}

void check_expert(const Named& set, Format format, const ExpertShape& shape) {
  Random random;
  Workspace workspace;
  const Matrix gate_up(random, format, shape.number, shape.width, shape.hidden, true);
  const Matrix down(random, format, shape.number, shape.hidden, shape.width);
  const OwnVisits visits(random, shape);
  const Experts experts{gate_up.view(), down.view()};
  const std::vector<float> x = random.normals(shape.rows * shape.hidden);
  std::vector<float> out(x.size()), part(x.size());
  set.kernels->apply_experts({x.data(), visits.from(0, shape), experts, out.data()}, workspace, 1);
  // A hidden number next to a border is rounded to either side.
  const double tolerance = format == Format::float32 ? 1e-5 : 5e-3;
  for (int64_t t = 0; t < shape.rows; ++t) {
    const std::vector<float> row = rounded(x.data() + t * shape.hidden, shape.hidden, format);
    std::vector<Sum> sums(shape.hidden);
    for (int64_t i = t * shape.slots; i < (t + 1) * shape.slots; ++i) {
      if (!visits.is_used[i]) continue;
      add_expert(gate_up, down, shape, format, visits.experts[i], visits.weights[i], row, sums);
    }
    for (int64_t d = 0; d < shape.hidden; ++d) {
      require(is_near(out[t * shape.hidden + d], sums[d], tolerance),
              std::string(set.name) + ": experts");
    }
  }
  for (int threads = 1; threads <= MOST_THREADS; ++threads) {
    for (int64_t first = 0; first < shape.rows; first += 2) {
      set.kernels->apply_experts({x.data() + first * shape.hidden, visits.from(first, shape),
                                  experts, part.data()},
                                 workspace, threads);
      require(same_bits(part.data(), out.data() + first * shape.hidden,
                        (shape.rows - first) * shape.hidden),
              std::string(set.name) + ": experts' bits in other company");
    }
  }
}

}  // namespace

void check_products() {
  for (const Named& set : runnable_kernels()) {
    for (Format format : FORMATS) {
      for (const ProductShape& shape : PRODUCTS) check_product(set, format, shape);
    }
  }
}

void check_experts() {
  for (const Named& set : runnable_kernels()) {
    for (Format format : FORMATS) {
      for (const ExpertShape& shape : EXPERTS) check_expert(set, format, shape);
    }
  }
}

}  // namespace moestro::check
