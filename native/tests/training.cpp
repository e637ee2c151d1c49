// Training's passes: every instruction set near the portable one, the same bits on any number of
// threads, nothing read or written out of bounds. What they compute is tested against torch.

#include <cmath>
#include <memory>

#include "../training.h"
#include "../workspace.h"
#include "check.h"
#include "matrix.h"

namespace moestro::check {

namespace {

constexpr int MOST_THREADS = 3;
// What a slot that is not in use may name in place of an
// expert: nothing may be read or written there.
constexpr int64_t NOBODY = int64_t{1} << 40;
using Halves = std::vector<uint16_t>;

Halves halves(Random& random, int64_t number, float scale) {
  Halves out;
  for (float each : random.normals(number, scale)) out.push_back(to_bfloat16(each));
  return out;
}

std::vector<float> floats(const Halves& from) {
  std::vector<float> out;
  for (uint16_t each : from) out.push_back(from_bits(static_cast<uint32_t>(each) << 16));
  return out;
}

// All that a pass wrote, one number after the other.
using Results = std::vector<float>;

void append(Results& results, const std::vector<float>& more) {
  results.insert(results.end(), more.begin(), more.end());
}

struct ExpertShape {
  int64_t rows, slots, number, width, hidden;
};
constexpr ExpertShape EXPERTS[] = {
    {0, 2, 3, 32, 32}, {1, 1, 1, 32, 64}, {75, 3, 4, 96, 64}, {131, 1, 1, 64, 160}};

Results run_experts(const Kernels& kernels, const ExpertShape& shape, int threads) {
  Random random;
  Workspace workspace;
  const int64_t slots = shape.rows * shape.slots, size = shape.hidden * shape.width;
  const Halves gate_up = halves(random, shape.number * 2 * size, 0.1f);
  const Halves down = halves(random, shape.number * size, 0.1f);
  const Halves x = halves(random, shape.rows * shape.width, 1.0f);
  const Halves dout = halves(random, shape.rows * shape.width, 1.0f);
  const std::vector<float> weights = random.normals(slots);
  std::vector<int64_t> experts;
  const std::unique_ptr<bool[]> is_used(new bool[slots]);
  int64_t num_used = 0;
  for (int64_t i = 0; i < slots; ++i) {
    experts.push_back((i / shape.slots * 7 + i) % shape.number);
    is_used[i] = random.below(4) > 0;
    num_used += is_used[i];
    if (!is_used[i]) experts[i] = NOBODY;
  }
  Halves hidden(num_used * 2 * shape.hidden), out(x.size()), dx(x.size());
  Halves dgate_up(gate_up.size()), ddown(down.size());
  std::vector<float> dweights(slots);
  const Visits visits{experts.data(), weights.data(), is_used.get(), shape.rows, shape.slots};
  const TrainedExperts trained{gate_up.data(), down.data(), shape.number, shape.width,
                               shape.hidden};
  kernels.forward_experts({x.data(), dout.data(), x.data(), visits, trained, hidden.data(), out.data()},
                          workspace, threads);
  kernels.backward_experts({x.data(), x.data(), hidden.data(), dout.data(), visits,
                            trained, dx.data(),
                            dweights.data(), dgate_up.data(), ddown.data()},
                           workspace, threads);
  Results results = dweights;
  for (const Halves* each : {&out, &dx, &dgate_up, &ddown}) append(results, floats(*each));
  return results;
}

constexpr AttentionShape ATTENTION[] = {
    {2, 96, 3, 16, 16, 32, 0.3f}, {1, 32, 1, 16, 48, 64, 0.2f}, {3, 160, 2, 32, 32, 32, 0.1f}};

// A head's numbers side by side in each token's row.
HeadRows rows_of(Halves& data, int64_t heads, int64_t width) {
  return {data.data(), heads * width, heads == 1 ? 0 : width};
}

Results run_attention(const Kernels& kernels, const AttentionShape& shape, int threads) {
  Random random;
  Workspace workspace;
  const int64_t tokens = shape.num_sequences * shape.length, heads = shape.num_heads;
  const auto parts_of = [&](std::vector<Halves>& data) {
    return AttentionParts{rows_of(data[0], heads, shape.nope), rows_of(data[1], heads, shape.rotary),
                          rows_of(data[2], heads, shape.nope), rows_of(data[3], 1, shape.rotary),
                          rows_of(data[4], heads, shape.value)};
  };
  std::vector<Halves> inputs, gradients;
  for (int64_t width : {heads * shape.nope, heads * shape.rotary, heads * shape.nope, shape.rotary,
                        heads * shape.value}) {
    inputs.push_back(halves(random, tokens * width, 1.0f));
    gradients.emplace_back(tokens * width);
  }
  Halves dout = halves(random, tokens * heads * shape.value, 1.0f), out(dout.size());
  std::vector<float> log_totals(tokens * heads), ropes(tokens * heads * shape.rotary);
  const AttentionParts parts = parts_of(inputs);
  const HeadRows out_rows = rows_of(out, heads, shape.value);
  kernels.forward_attention({shape, parts, out_rows, log_totals.data()}, workspace, threads);
  kernels.backward_attention({shape, parts, out_rows, rows_of(dout, heads, shape.value),
                              log_totals.data(), parts_of(gradients), ropes.data()},
                             workspace, threads);
  Results results = log_totals;
  append(results, floats(out));
  for (const Halves& each : gradients) append(results, floats(each));
  return results;
}

struct RowShape {
  int64_t rows, width, heads, pairs;
};
constexpr RowShape ROWS[] = {{0, 16, 1, 4}, {1, 16, 1, 8}, {130, 144, 3, 24}};

Results run_rows(const Kernels& kernels, const RowShape& shape, int threads) {
  Random random;
  Workspace workspace;
  const int64_t size = shape.rows * shape.width, turned = shape.rows * shape.heads * 2 * shape.pairs;
  const std::vector<float> weight = random.normals(shape.width);
  const Halves x = halves(random, size, 1.0f), dy = halves(random, size, 1.0f);
  Halves y(size), sum(size), of_sum(size), dx(size);
  std::vector<float> dweight(shape.width);
  const NormRows norm{x.data(), shape.width, shape.rows, shape.width, weight.data(), 1e-6f};
  kernels.forward_norm({norm, nullptr, nullptr, y.data()}, workspace, threads);
  kernels.forward_norm({norm, dy.data(), sum.data(), of_sum.data()}, workspace, threads);
  kernels.backward_norm({norm, dy.data(), y.data(), dx.data(), shape.width, dweight.data()},
                        workspace, threads);
  Halves heads = halves(random, turned, 1.0f), rotated(turned), back(turned);
  const int64_t length = 13, row = shape.heads * 2 * shape.pairs;
  const std::vector<float> cosines = random.normals(length * shape.pairs);
  const std::vector<float> sines = random.normals(length * shape.pairs);
  Rotation rotation{{heads.data(), row, 2 * shape.pairs}, shape.rows, length, shape.heads,
                    shape.pairs, cosines.data(), sines.data(), true, false,
                    {rotated.data(), row, 2 * shape.pairs}};
  kernels.rotate(rotation, workspace, threads);
  rotation.is_inverse = true;
  rotation.y = {back.data(), row, 2 * shape.pairs};
  kernels.rotate(rotation, workspace, threads);
  Results results = dweight;
  for (const Halves* each : {&y, &sum, &of_sum, &dx, &rotated, &back}) append(results, floats(*each));
  return results;
}

struct ProductShape {
  int64_t rows, width, outputs;
};
constexpr ProductShape PRODUCTS[] = {{0, 32, 32}, {1, 96, 64}, {200, 64, 160}, {64, 32, 32}};

Results run_product(const Kernels& kernels, const ProductShape& shape, int threads) {
  Random random;
  Workspace workspace;
  const Halves x = halves(random, shape.rows * shape.width, 1.0f);
  const Halves weight = halves(random, shape.outputs * shape.width, 0.1f);
  const Halves dy = halves(random, shape.rows * shape.outputs, 1.0f);
  Halves y(dy.size()), dx(x.size()), dweight(weight.size());
  const TrainedProduct product{x.data(), weight.data(), shape.rows, shape.width, shape.outputs};
  kernels.forward_product({product, y.data()}, workspace, threads);
  kernels.backward_product({product, dy.data(), dx.data(), dweight.data()}, workspace, threads);
  Results results = floats(y);
  append(results, floats(dx));
  append(results, floats(dweight));
  return results;
}

struct LossShape {
  int64_t rows, width, vocabulary;
};
constexpr LossShape LOSSES[] = {{0, 32, 32}, {1, 32, 96}, {45, 96, 160}, {530, 32, 64}};

Results run_loss(const Kernels& kernels, const LossShape& shape, int threads) {
  Random random;
  Workspace workspace;
  const Halves x = halves(random, shape.rows * shape.width, 1.0f);
  const Halves head = halves(random, shape.vocabulary * shape.width, 0.3f);
  const std::vector<float> weights = random.normals(shape.rows);
  std::vector<int64_t> targets;
  for (int64_t t = 0; t < shape.rows; ++t) targets.push_back(random.below(shape.vocabulary));
  Halves dx(x.size());
  std::vector<float> nats(shape.rows), dhead(head.size());
  kernels.differentiate_loss({x.data(), head.data(), targets.data(), weights.data(), shape.rows,
                              shape.width, shape.vocabulary, nats.data(), dx.data(),
                              dhead.data()},
                             workspace, threads);
  Results results = nats;
  append(results, dhead);
  append(results, floats(dx));
  return results;
}

struct GateShape {
  int64_t sequences, length, width, experts, slots, groups;
  bool is_sigmoid;
};
constexpr GateShape GATES[] = {
    {1, 1, 16, 1, 1, 1, true}, {5, 29, 48, 20, 6, 4, true}, {2, 65, 96, 16, 4, 1, false}};
constexpr float FRACTIONS[] = {0.0f, 0.5f, 1.0f}, THRESHOLDS[] = {0.0f, -0.05f, -0.2f};

Results run_gate(const Kernels& kernels, const GateShape& shape, int threads) {
  Random random;
  Workspace workspace;
  const int64_t rows = shape.sequences * shape.length, all = rows * shape.experts;
  const int64_t slots = rows * shape.slots;
  const Halves x = halves(random, rows * shape.width, 1.0f);
  const std::vector<float> weight = random.normals(shape.experts * shape.width, 0.1f);
  const std::vector<float> bias = random.normals(shape.experts, 0.1f);
  std::vector<float> fractions;
  for (int64_t t = 0; t < rows; ++t) fractions.push_back(static_cast<float>(t % 5) / 4.0f);
  const ChoiceRule rule{shape.slots, 1, shape.groups, (shape.groups + 1) / 2, 2,
                        shape.is_sigmoid, shape.is_sigmoid, 1.5f, 3, FRACTIONS};
  const GateRows gate{x.data(), rows, shape.width, weight.data(), shape.experts,
                      rule, bias.data(), THRESHOLDS, fractions.data()};
  std::vector<float> logits(all), scores(all), selection(all), ranked(slots), weights(slots);
  std::vector<int64_t> experts(slots);
  const std::unique_ptr<bool[]> is_used(new bool[slots]);
  kernels.forward_gate({gate, logits.data(), scores.data(), selection.data(),
                        {experts.data(), weights.data(), is_used.get(), ranked.data()}},
                       workspace, threads);
  for (int64_t i = 0; i < slots; ++i) experts[i] = is_used[i] ? experts[i] : NOBODY;
  std::vector<float> dlogits(all), dscores(all), dweight(weight.size());
  const float loss = kernels.differentiate_balance(
      {logits.data(), scores.data(), experts.data(), is_used.get(), rows, shape.experts,
       shape.slots, shape.sequences, 0.5f, 0.1f, dlogits.data(), dscores.data()},
      workspace, threads);
  const std::vector<float> dweights = random.normals(slots);
  Halves dx(x.size());
  kernels.backward_gate({gate, scores.data(), experts.data(), weights.data(), is_used.get(),
                         dlogits.data(), dscores.data(), dweights.data(), dx.data(),
                         dweight.data()},
                        workspace, threads);
  Results results{loss};
  for (const auto* each : {&logits, &scores, &weights, &dlogits, &dscores, &dweight}) {
    append(results, *each);
  }
  append(results, floats(dx));
  return results;
}

struct MatrixShape {
  int64_t number, rows, columns;
};
constexpr MatrixShape MATRICES[] = {{1, 1, 5}, {5, 37, 51}, {3, 96, 64}, {2, 150, 170}};

Results run_matrices(const Kernels& kernels, const MatrixShape& shape, int threads) {
  Random random;
  Workspace workspace;
  const int64_t size = shape.number * shape.rows * shape.columns;
  const Halves x = halves(random, size, 1.0f);
  Halves y(size);
  // Two steps: each multiplies what rounding did to the one before.
  kernels.orthogonalize({x.data(), shape.number, shape.rows, shape.columns, 2, 3.4445f, -4.7750f,
                         2.0315f, y.data()},
                        workspace, threads);
  return floats(y);
}

template <class Shape>
void check_pass(Results (*run)(const Kernels&, const Shape&, int), const Shape& shape,
                const std::string& name) {
  const Results first = run(portable_kernels, shape, 1);
  for (const Named& set : runnable_kernels()) {
    const Results alone = run(*set.kernels, shape, 1);
    double error = 0.0, size = 0.0;
    for (size_t i = 0; i < alone.size(); ++i) {
      error += std::pow(alone[i] - first[i], 2);
      size += std::pow(first[i], 2);
    }
    require(std::sqrt(error) <= 1e-2 * std::sqrt(size), std::string(set.name) + ": " + name);
    for (int threads = 2; threads <= MOST_THREADS; ++threads) {
      const Results together = run(*set.kernels, shape, threads);
      require(same_bits(together.data(), alone.data(), static_cast<int64_t>(alone.size())),
              std::string(set.name) + ": bits on more threads of " + name);
    }
  }
}

}  // namespace

void check_training() {
  for (const ExpertShape& shape : EXPERTS) check_pass(run_experts, shape, "experts in training");
  for (const MatrixShape& shape : MATRICES) check_pass(run_matrices, shape, "orthogonal matrices");
  for (const AttentionShape& shape : ATTENTION) {
    check_pass(run_attention, shape, "attention in training");
  }
  for (const RowShape& shape : ROWS) check_pass(run_rows, shape, "rows in training");
  for (const ProductShape& shape : PRODUCTS) check_pass(run_product, shape, "a product in training");
  for (const LossShape& shape : LOSSES) check_pass(run_loss, shape, "a head's loss");
  for (const GateShape& shape : GATES) check_pass(run_gate, shape, "a gate in training");
}

}  // namespace moestro::check
