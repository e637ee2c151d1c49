// Rows packed into panels stand where a plain loop puts them, and have the same bits by any
// instruction set on any number of threads.

#include <cstring>

#include "check.h"
#include "matrix.h"

namespace moestro::check {

namespace {

constexpr int MOST_THREADS = 3;

struct PackingShape {
  int64_t number, outputs, depth;
};
constexpr PackingShape PACKINGS[] = {{1, 1, 1}, {2, 17, 33}, {3, 32, 64}, {1, 70, 95}};

int64_t bytes_of_row(Format format, int64_t depth) {
  if (format == Format::float32) return depth * 4;
  if (format == Format::bfloat16) return depth * 2;
  return round_up(depth, GROUP) / (format == Format::int4 ? 2 : 1);
}

// Matrices as files have them, in memory that ends where they end.
struct FileRows {
  FileRows(Random& random, Format format, const PackingShape& shape)
      : row_bytes(bytes_of_row(format, shape.depth)),
        bytes(shape.number * shape.outputs * row_bytes),
        scales(shape.number * shape.outputs * num_groups(shape.depth)) {
    for (char& each : bytes) each = static_cast<char>(random.below(256));
    for (uint16_t& each : scales) each = static_cast<uint16_t>(random.below(1 << 16));
  }

  // A word of a row; behind its end there are zeros.
  uint32_t word(int64_t row, int64_t w) const {
    uint32_t word = 0;
    std::memcpy(&word, bytes.data() + row * row_bytes + w * 4, smaller(4, row_bytes - w * 4));
    return word;
  }

  int64_t row_bytes;
  std::vector<char> bytes;
  std::vector<uint16_t> scales;
};

std::vector<char> pack(const Kernels& kernels, const FileRows& rows, Format format,
                       const PackingShape& shape, int threads) {
  const int64_t panels = num_panels(shape.outputs);
  std::vector<char> packed(shape.number * panels / STRIP * strip_bytes(format, shape.depth));
  std::vector<SourceRows> sources;
  for (int64_t h = 0; h < shape.number; ++h) {
    const int64_t first = h * shape.outputs;
    sources.push_back({rows.bytes.data() + first * rows.row_bytes,
                       rows.scales.data() + first * num_groups(shape.depth), shape.outputs,
                       rows.row_bytes, h * panels});
  }
  kernels.interleave(sources.data(), shape.number, {packed.data(), format, shape.depth, panels, 1},
                     threads);
  return packed;
}

void check_places(const FileRows& rows, Format format, const PackingShape& shape) {
  const std::vector<char> packed = pack(portable_kernels, rows, format, shape, 1);
  const int64_t panels = num_panels(shape.outputs), words = divide_up(rows.row_bytes, 4);
  const int64_t in_group = is_quantized(format) ? code_bytes(format) / (STRIP * PANEL * 4) : words;
  for (int64_t h = 0; h < shape.number; ++h) {
    for (int64_t n = 0; n < shape.outputs; ++n) {
      const int64_t panel = h * panels + n / PANEL, row = h * shape.outputs + n;
      const char* strip = packed.data() + panel / STRIP * strip_bytes(format, shape.depth);
      for (int64_t w = 0; w < words; ++w) {
        const int64_t group = w / in_group, line = w % in_group * STRIP + panel % STRIP;
        const int64_t start = is_quantized(format) ? group * group_bytes(format) : 0;
        uint32_t found;
        std::memcpy(&found, strip + start + (line * PANEL + n % PANEL) * 4, 4);
        const uint32_t flipped = format == Format::int8 ? 0x80808080u : 0u;
        require(found == (rows.word(row, w) ^ flipped), "a packed word's place");
      }
      for (int64_t g = 0; is_quantized(format) && g < num_groups(shape.depth); ++g) {
        const char* scales = strip + g * group_bytes(format) + code_bytes(format);
        uint16_t found;
        std::memcpy(&found, scales + (panel % STRIP * PANEL + n % PANEL) * 2, 2);
        require(found == rows.scales[row * num_groups(shape.depth) + g], "a packed scale's place");
      }
    }
  }
}

}  // namespace

void check_packing() {
  for (const Format format : FORMATS) {
    for (const PackingShape& shape : PACKINGS) {
      Random random;
      const FileRows rows(random, format, shape);
      check_places(rows, format, shape);
      const std::vector<char> first = pack(portable_kernels, rows, format, shape, 1);
      for (const Named& set : runnable_kernels()) {
        for (int threads = 1; threads <= MOST_THREADS; ++threads) {
          require(pack(*set.kernels, rows, format, shape, threads) == first,
                  std::string(set.name) + ": bits of packed rows");
        }
      }
    }
  }
}

}  // namespace moestro::check
