// A small stack, dense and sparse layers, of odd widths: a sequence alone, in pieces, has the bits
// that it has beside others, a burst those of its steps one by one, and instruction sets agree.
// Values are the Python tests' business.

#include <algorithm>
#include <cmath>
#include <deque>
#include <numeric>

#include "../own_stack.h"
#include "../workspace.h"
#include "check.h"
#include "matrix.h"

namespace moestro::check {

namespace {

constexpr int64_t BLOCK = 4;

struct Sizes {
  int64_t hidden, heads, nope, rotary, value, latent, rank, experts, groups, width, shared;
};
// The first has an odd cache width, the second more groups and rotary numbers than any model, the
// third widths of whole tiles.
constexpr Sizes ODD = {50, 2, 6, 4, 10, 17, 0, 5, 1, 17, 0};
constexpr Sizes LARGE = {33, 1, 8, 1040, 16, 32, 12, 600, 300, 4, 20};
constexpr Sizes TILED = {64, 3, 32, 32, 32, 64, 32, 5, 1, 32, 64};

class Model {
 public:
  Model(const Sizes& sizes, Format format) : sizes_(sizes), format_(format) {
    for (int i = 0; i < sizes.rotary / 2; ++i) frequencies_.push_back(1.0f / (1.0f + 3.0f * i));
    shape_.hidden = sizes.hidden;
    shape_.num_heads = sizes.heads;
    shape_.nope = sizes.nope;
    shape_.rotary = sizes.rotary;
    shape_.value = sizes.value;
    shape_.latent = sizes.latent;
    shape_.softmax_scale = 0.3f;
    shape_.is_interleaved = true;
    shape_.frequencies = frequencies_.data();
    shape_.rotary_factor = 1.0f;
    shape_.num_slots = 3;
    shape_.fewest = 2;
    shape_.num_expert_groups = sizes.groups;
    shape_.topk_group = (sizes.groups + 1) / 2;
    shape_.best_of_group = 2;
    shape_.is_sigmoid = shape_.is_normalized = true;
    shape_.routed_scaling_factor = 1.5f;
    shape_.num_fractions = 3;
    shape_.fractions = FRACTIONS;
    layers_.push_back(layer(false));
    layers_.push_back(layer(true));
  }

  Stack stack() const { return {shape_, layers_.data()}; }
  OwnStack own(const Named& set, int64_t vocabulary, Format embeddings) {
    OwnStack own(*set.kernels, shape_, layers_);
    own.set_final_norm(norm(sizes_.hidden));
    std::vector<float> table = random_.normals(vocabulary * sizes_.hidden);
    if (embeddings == Format::bfloat16) {
      // In place, as each takes half the room.
      for (size_t i = 0; i < table.size(); ++i) {
        const uint16_t half = static_cast<uint16_t>(to_bfloat16(table[i]));
        std::memcpy(reinterpret_cast<char*>(table.data()) + 2 * i, &half, 2);
      }
    }
    numbers_.push_back(std::move(table));
    own.set_ends({reinterpret_cast<const char*>(numbers_.back().data()), embeddings,
                  matrix(1, vocabulary, sizes_.hidden)});
    return own;
  }
  // Gives all layers what expands their latents: the numbers of their keys and values.
  void expand(Format cache_format) {
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Matrix &keys = *keys_[i], &values = *values_[i];
      matrices_.push_back(Matrix::of(
          cache_format, sizes_.heads, sizes_.nope, sizes_.latent,
          [&](int64_t h, int64_t n, int64_t d) { return keys.row(h, d)[n]; }));
      layers_[i].expanded_keys = matrices_.back().view();
      matrices_.push_back(Matrix::of(
          cache_format, sizes_.heads, sizes_.value, sizes_.latent,
          [&](int64_t h, int64_t n, int64_t d) { return values.row(h, n)[d]; }));
      layers_[i].expanded_values = matrices_.back().view();
    }
  }
  const Shape& shape() const { return shape_; }
  Norm final_norm() { return norm(sizes_.hidden); }

 private:
  static constexpr float FRACTIONS[] = {0.0f, 0.5f, 1.0f};
  static constexpr float THRESHOLDS[] = {0.0f, -0.2f, -0.5f};

  Matrices matrix(int64_t number, int64_t outputs, int64_t depth) {
    matrices_.emplace_back(random_, format_, number, outputs, depth);
    return matrices_.back().view(numbers(outputs));
  }
  Experts experts(int64_t number, int64_t width) {
    matrices_.emplace_back(random_, format_, number, width, sizes_.hidden, true);
    const Matrices gate_up = matrices_.back().view();
    matrices_.emplace_back(random_, format_, number, sizes_.hidden, width);
    return {gate_up, matrices_.back().view()};
  }
  const float* numbers(int64_t number) {
    numbers_.push_back(random_.normals(number));
    return numbers_.back().data();
  }
  Norm norm(int64_t width) { return {numbers(width), 1e-6f}; }

  Layer layer(bool is_sparse) {
    const Sizes& s = sizes_;
    Layer layer;
    layer.input_norm = norm(s.hidden);
    if (s.rank > 0) {
      layer.query_a = matrix(1, s.rank, s.hidden);
      layer.query_norm = norm(s.rank);
    }
    layer.query = matrix(1, s.heads * (s.nope + s.rotary), s.rank > 0 ? s.rank : s.hidden);
    layer.latent = matrix(1, s.latent + s.rotary, s.hidden);
    layer.latent_norm = norm(s.latent);
    layer.w_uk = matrix(s.heads, s.latent, s.nope);
    keys_.push_back(&matrices_.back());
    layer.w_uv = matrix(s.heads, s.value, s.latent);
    values_.push_back(&matrices_.back());
    layer.w_uk.bias = layer.w_uv.bias = nullptr;
    layer.out = matrix(1, s.hidden, s.heads * s.value);
    layer.post_norm = norm(s.hidden);
    if (!is_sparse) {
      layer.shared = experts(1, 2 * s.width);
      return layer;
    }
    matrices_.emplace_back(random_, Format::float32, 1, s.experts, s.hidden);
    layer.gate = {matrices_.back().view(), numbers(s.experts), THRESHOLDS};
    layer.routed = experts(s.experts, s.width);
    if (s.shared > 0) layer.shared = experts(1, s.shared);
    return layer;
  }

  const Sizes sizes_;
  const Format format_;
  Random random_;
  Shape shape_{};
  std::vector<float> frequencies_;
  std::deque<Matrix> matrices_;
  // Of each layer, among those.
  std::vector<const Matrix*> keys_, values_;
  std::deque<std::vector<float>> numbers_;
  std::vector<Layer> layers_;
};

// Sequences in pages whose blocks lie backwards, and a step for some of their rows.
class Batch {
 public:
  struct Rows {
    int64_t sequence, start, end;
  };

  Batch(const Model& model, Format cache_format, const std::vector<int64_t>& lengths)
      : model_(model), format_(cache_format) {
    int64_t blocks = 0;
    for (int64_t length : lengths) blocks += divide_up(length, BLOCK);
    int64_t next = blocks;
    for (int64_t length : lengths) {
      tables_.emplace_back();
      for (int64_t i = 0; i < divide_up(length, BLOCK); ++i) tables_.back().push_back(--next);
    }
    num_slots_ = blocks * BLOCK;
    const int64_t bytes = bytes_per_number(cache_format);
    // A NaN where nothing was written.
    pages_.assign(2 * num_slots_ * model.shape().cache_width() * bytes, static_cast<char>(0xff));
  }

  // Sends rows through all layers, in place.
  void run(const Named& set, Norm final_norm, const std::vector<Rows>& parts,
           std::vector<float>& x, int num_threads, bool may_expand = false) {
    std::vector<int64_t> positions, slots;
    std::vector<float> fractions;
    std::vector<Sequence> sequences;
    for (const Rows& part : parts) {
      const std::vector<int64_t>& table = tables_[part.sequence];
      sequences.push_back({static_cast<int64_t>(positions.size()), part.end - part.start, table.data()});
      for (int64_t i = part.start; i < part.end; ++i) {
        positions.push_back(i);
        slots.push_back(table[i / BLOCK] * BLOCK + i % BLOCK);
        fractions.push_back(static_cast<float>(i % 5) / 4.0f);
      }
    }
    const int64_t rows = static_cast<int64_t>(positions.size());
    const int64_t places = rows * model_.shape().num_slots;
    std::vector<int64_t> experts(places);
    std::vector<float> weights(places);
    std::vector<char> is_used(places);
    const Choices choices{experts.data(), weights.data(), reinterpret_cast<bool*>(is_used.data()),
                          rows};
    const Stack stack = model_.stack();
    set.kernels->run(stack, {0, 2, x.data(), nullptr, rows, positions.data(), slots.data(), fractions.data(),
                             sequences.data(), static_cast<int64_t>(sequences.size()),
                             pages_.data(), format_, num_slots_, BLOCK, choices, may_expand,
                             final_norm},
                     workspace_, num_threads);
    for (int64_t t = 0; t < rows; ++t) {
      int64_t* row = experts.data() + t * model_.shape().num_slots;
      std::sort(row, row + model_.shape().num_slots);
      require(std::unique(row, row + model_.shape().num_slots) == row + model_.shape().num_slots,
              std::string(set.name) + ": an expert is chosen twice");
    }
  }

 private:
  const Model& model_;
  const Format format_;
  int64_t num_slots_;
  std::vector<std::vector<int64_t>> tables_;
  std::vector<char> pages_;
  Workspace workspace_;
};

std::vector<float> check_company(const Named& set, Model& model, Format cache_format,
                                 const std::vector<int64_t>& lengths) {
  const int64_t hidden = model.shape().hidden;
  const Norm norm = model.final_norm();
  const int64_t rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  const std::vector<float> x = Random().normals(rows * hidden);
  std::vector<Batch::Rows> all;
  for (size_t s = 0; s < lengths.size(); ++s) {
    all.push_back({static_cast<int64_t>(s), 0, lengths[s]});
  }
  std::vector<float> together = x;
  Batch(model, cache_format, lengths).run(set, norm, all, together, 2);
  int64_t first_row = 0;
  for (size_t s = 0; s < lengths.size(); first_row += lengths[s++]) {
    Batch alone(model, cache_format, lengths);
    const int64_t length = lengths[s], prompt = larger(0, length - 4);
    // A prompt in two pieces, then answers of one, two and one row.
    const int64_t borders[] = {0, prompt / 2, prompt, length - 3, length - 1, length};
    for (int i = 0; i < 5; ++i) {
      const int64_t start = larger(borders[i], 0), end = larger(borders[i + 1], 0);
      if (start == end) continue;
      const auto from = (first_row + start) * hidden, count = (end - start) * hidden;
      std::vector<float> part(x.begin() + from, x.begin() + from + count);
      alone.run(set, norm, {{static_cast<int64_t>(s), start, end}}, part, 1 + i % 3);
      require(same_bits(part.data(), together.data() + from, count),
              std::string(set.name) + ": a row's bits in other company");
    }
  }
  return together;
}

// How far some numbers are from others, as a share of those.
double distance(const std::vector<float>& found, const std::vector<float>& expected, size_t number) {
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < number; ++i) {
    error += std::pow(found[i] - expected[i], 2);
    size += std::pow(expected[i], 2);
  }
  return std::sqrt(error / size);
}

void check_sizes(const Sizes& sizes, const std::vector<int64_t>& lengths) {
  for (Format format : FORMATS) {
    const Format cache_format = format == Format::float32 ? Format::float32 : Format::bfloat16;
    std::vector<float> first;
    for (const Named& set : runnable_kernels()) {
      Model model(sizes, format);
      const std::vector<float> found = check_company(set, model, cache_format, lengths);
      require(std::all_of(found.begin(), found.end(), [](float a) { return std::isfinite(a); }),
              std::string(set.name) + ": a number is none");
      if (first.empty()) first = found;
      // Roundings that fall to the other side now and then choose another expert.
      require(distance(found, first, found.size()) < (format == Format::float32 ? 1e-3 : 0.1),
              std::string(set.name) + ": another result than portable");
    }
  }
}

// A prompt whose latents are expanded, in one piece and in two, beside an answer that is not.
void check_expanded(const Sizes& sizes, Format format) {
  const Format cache_format = format == Format::float32 ? Format::float32 : Format::bfloat16;
  const int64_t prompt = 530, answer = 3, rows = prompt + answer;
  for (const Named& set : runnable_kernels()) {
    Model model(sizes, format);
    model.expand(cache_format);
    const int64_t hidden = model.shape().hidden;
    const Norm norm = model.final_norm();
    const std::vector<float> x = Random().normals(rows * hidden);
    const auto claim = [&](const char* what) { return std::string(set.name) + what; };
    std::vector<float> absorbed = x, expanded = x;
    const std::vector<Batch::Rows> both{{0, 0, prompt}, {1, 0, answer}};
    Batch(model, cache_format, {prompt, answer}).run(set, norm, both, absorbed, 2);
    Batch(model, cache_format, {prompt, answer}).run(set, norm, both, expanded, 2, true);
    const int64_t own = prompt * hidden;
    require(same_bits(absorbed.data() + own, expanded.data() + own, answer * hidden),
            claim(": an answer's bits beside an expanded prompt"));
    require(!same_bits(absorbed.data(), expanded.data(), own), claim(": nothing was expanded"));
    Batch pieces(model, cache_format, {prompt, answer});
    std::vector<float> first(x.begin(), x.begin() + 300 * hidden);
    std::vector<float> second(x.begin() + 300 * hidden, x.begin() + own);
    pieces.run(set, norm, {{0, 0, 300}}, first, 1, true);
    pieces.run(set, norm, {{0, 300, prompt}}, second, 1, true);
    first.insert(first.end(), second.begin(), second.end());
    const double most = format == Format::float32 ? 1e-3 : 0.1;
    require(distance(expanded, absorbed, own) < most, claim(": an expanded prompt is another"));
    require(distance(first, absorbed, own) < most, claim(": an expanded prompt in pieces is another"));
  }
}

// Three answers from their first token on, whose blocks lie
// in turns, with room for all their steps.
class Burst {
 public:
  static constexpr int64_t ROWS = 3, STEPS = 9, VOCABULARY = 40, BLOCKS = divide_up(STEPS, BLOCK);

  Burst(const OwnStack& stack, const Shape& shape)
      : stack_(stack),
        shape_(shape),
        x_(ROWS * shape.hidden),
        logits_(ROWS * VOCABULARY),
        pages_(2 * ROWS * BLOCKS * BLOCK * shape.cache_width(), std::nanf("")) {
    for (int64_t t = 0; t < ROWS; ++t) {
      sequences_.insert(sequences_.end(), {t, 1, t * BLOCKS});
      for (int64_t i = 0; i < BLOCKS; ++i) tables_.push_back(i * ROWS + t);
      slots_.push_back(tables_[t * BLOCKS] * BLOCK);
    }
  }

  // Runs so many steps and puts their tokens behind those before; returns how many there were.
  int64_t run(int64_t num_steps, int64_t stop, int num_threads) {
    Answers answers{tokens_.data(), {}, std::vector<std::vector<int64_t>>(ROWS), -1};
    if (stop >= 0) answers.stops[1] = {stop};
    const int64_t first = static_cast<int64_t>(told_.size()) / ROWS;
    for (int64_t t = 0; t < ROWS; ++t) {
      const float* logits = logits_.data() + t * VOCABULARY;
      const auto stream = static_cast<uint64_t>(t + 1);
      answers.picks.push_back(
          {logits, logits, nullptr, 0.7f * t, 0, 1.0, -41.0f, stream, first, -1, -1});
    }
    const int64_t places = num_steps * ROWS * shape_.num_slots;
    std::vector<int64_t> experts(places);
    std::vector<float> weights(places);
    std::vector<char> is_used(places);
    std::vector<Pick> picks(num_steps * ROWS);
    StepParts parts{};
    parts.x = x_.data();
    parts.num_rows = ROWS;
    parts.positions = positions_.data();
    parts.slots = slots_.data();
    parts.sequences = sequences_.data();
    parts.num_sequences = ROWS;
    parts.tables = tables_.data();
    parts.num_table_entries = static_cast<int64_t>(tables_.size());
    parts.pages = reinterpret_cast<char*>(pages_.data());
    parts.cache_format = Format::float32;
    parts.layer_slots = ROWS * BLOCKS * BLOCK;
    parts.block_size = BLOCK;
    parts.choices = {experts.data(), weights.data(), reinterpret_cast<bool*>(is_used.data()),
                     num_steps * ROWS};
    const int64_t num_run =
        stack_.decode(2, num_steps, parts, answers, logits_.data(), picks.data(), num_threads);
    for (int64_t i = 0; i < num_run * ROWS; ++i) told_.push_back(picks[i].token);
    return num_run;
  }

  // What the engine does between two steps.
  void go_on() {
    for (int64_t t = 0; t < ROWS; ++t) {
      tokens_[t] = told_[told_.size() - ROWS + t];
      const int64_t position = ++positions_[t];
      slots_[t] = tables_[t * BLOCKS + position / BLOCK] * BLOCK + position % BLOCK;
    }
  }

  const std::vector<int64_t>& told() const { return told_; }
  const std::vector<float>& x() const { return x_; }

 private:
  const OwnStack& stack_;
  const Shape& shape_;
  std::vector<float> x_, logits_, pages_;
  std::vector<int64_t> tokens_{1, 2, 3}, positions_{0, 0, 0}, slots_, sequences_, tables_, told_;
};

void check_bursts(const Sizes& sizes) {
  for (const Named& set : runnable_kernels()) {
    for (Format embeddings : {Format::float32, Format::bfloat16}) {
      Model model(sizes, Format::float32);
      const OwnStack stack = model.own(set, Burst::VOCABULARY, embeddings);
      const auto claim = [&](const char* what) { return std::string(set.name) + ": a burst " + what; };
      Burst together(stack, model.shape()), one_by_one(stack, model.shape());
      require(together.run(Burst::STEPS, -1, 2) == Burst::STEPS, claim("ends for no reason"));
      for (int64_t s = 0; s < Burst::STEPS; ++s) {
        if (s > 0) one_by_one.go_on();
        one_by_one.run(1, -1, 1);
      }
      require(together.told() == one_by_one.told(), claim("picks other tokens than its steps"));
      require(together.x() == one_by_one.x(), claim("has other states than its steps"));
      for (int64_t token : together.told()) require(token >= 0, claim("picks no token"));
      // Row 1 stops where it first picks what it picked in step 4.
      std::vector<int64_t> second;
      for (int64_t s = 0; s < Burst::STEPS; ++s) second.push_back(together.told()[s * Burst::ROWS + 1]);
      const auto place = std::find(second.begin(), second.end(), second[4]) - second.begin();
      Burst stopped(stack, model.shape());
      require(stopped.run(Burst::STEPS, second[4], 2) == place + 1, claim("goes on behind an end"));
    }
  }
}

}  // namespace

void check_stacks() {
  // Sequences of one chunk of keys, and of two.
  check_sizes(ODD, {1, 7, 530, 65});
  check_sizes(LARGE, {9, 40});
  check_sizes(TILED, {1, 7, 530, 65});
  for (Format format : FORMATS) {
    check_expanded(ODD, format);
    check_expanded(TILED, format);
  }
  check_bursts(ODD);
  check_bursts(TILED);
}

}  // namespace moestro::check
