#include "weights/source_matrix.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "tensor/buffer.h"
#include "weights/fp8_blocks.h"

namespace exo::weights {

struct SourceMatrix::State {
  const Checkpoint* checkpoint = nullptr;
  TensorInfo info;
  std::string name;
  int64_t n_rows = 0, n_cols = 0;  // as stored
  BlockScales scales;              // of F8_E4M3
  // A transposed view's stored rows [first_row, first_row + part_rows).
  MappedPart part;
  int64_t first_row = 0, part_rows = 0;

  int64_t element_bytes() const { return size_bytes(info.dtype); }
  Result<MappedPart> map_rows(int64_t begin, int64_t n) const {
    const int64_t row_bytes = n_cols * element_bytes();
    return checkpoint->map_bytes(info, static_cast<uint64_t>(begin * row_bytes),
                                 static_cast<uint64_t>(n * row_bytes));
  }
};

namespace {

Result<BlockScales> read_scales(const Checkpoint& checkpoint, const std::string& name,
                                int64_t n_rows, int64_t n_cols, int64_t block_rows,
                                int64_t block_cols) {
  const std::string where = fmt::format("{}: tensor '{}'", checkpoint.folder(), name);
  if (block_rows <= 0 || block_cols <= 0) {
    return invalid_argument(
        where + " is F8_E4M3: expected quantization_config.weight_block_size in config.json");
  }
  BlockScales scales{.block_rows = block_rows,
                     .block_cols = block_cols,
                     .grid_rows = ceil_div(n_rows, block_rows),
                     .grid_cols = ceil_div(n_cols, block_cols),
                     .scales = {}};
  const std::string scale_name = name + "_scale_inv";
  Result<TensorInfo> info = checkpoint.find(scale_name);
  if (!info.ok()) return std::move(info).status().with_context(where + " is F8_E4M3");
  if (info->dtype != DType::f32 && info->dtype != DType::f8_e8m0) {
    return data_loss(fmt::format("{}: its scales '{}' are {}, expected F32 or F8_E8M0", where,
                                 scale_name, to_string(info->dtype)));
  }
  if (info->shape != std::vector<int64_t>{scales.grid_rows, scales.grid_cols}) {
    std::string found;
    for (int64_t d : info->shape) found += fmt::format("{}{}", found.empty() ? "" : ", ", d);
    return data_loss(fmt::format(
        "{} [{}, {}]: its scales '{}' are [{}], expected [{}, {}] for blocks of {} x {}", where,
        n_rows, n_cols, scale_name, found, scales.grid_rows, scales.grid_cols, block_rows,
        block_cols));
  }
  EXO_ASSIGN_OR_RETURN(scales.scales, checkpoint.read_f32(scale_name));
  if (!std::all_of(scales.scales.begin(), scales.scales.end(),
                   [](float s) { return std::isfinite(s); })) {
    return data_loss(fmt::format("{}: a scale of '{}' is not finite", where, scale_name));
  }
  return scales;
}

}  // namespace

Result<SourceMatrix> SourceMatrix::open(const Checkpoint& checkpoint, const std::string& name,
                                        int64_t block_rows, int64_t block_cols) {
  auto state = std::make_shared<State>();
  state->checkpoint = &checkpoint;
  state->name = name;
  EXO_ASSIGN_OR_RETURN(state->info, checkpoint.find(name));
  const TensorInfo& info = state->info;
  if (info.shape.size() != 2) {
    return data_loss(fmt::format("{}: tensor '{}' has {} dimensions, expected a matrix",
                                 checkpoint.folder(), name, info.shape.size()));
  }
  state->n_rows = info.shape[0];
  state->n_cols = info.shape[1];
  switch (info.dtype) {
    case DType::f32:
    case DType::f16:
    case DType::bf16:
      break;
    case DType::f8_e4m3: {
      EXO_ASSIGN_OR_RETURN(state->scales, read_scales(checkpoint, name, state->n_rows,
                                                      state->n_cols, block_rows, block_cols));
      break;
    }
    default:
      return data_loss(
          fmt::format("{}: tensor '{}' is {}, expected F32, F16, BF16 or F8_E4M3 weights",
                      checkpoint.folder(), name, to_string(info.dtype)));
  }
  SourceMatrix matrix;
  matrix.n_rows_ = state->n_rows;
  matrix.state_ = std::move(state);
  return matrix;
}

Result<SourceMatrix> SourceMatrix::slice_rows(int64_t begin, int64_t n) const {
  if (begin < 0 || n < 0 || begin > n_rows_ || n > n_rows_ - begin) {
    return data_loss(fmt::format("{}: tensor '{}' has {} rows here, expected rows [{}, {})",
                                 state_->checkpoint->folder(), name(), n_rows_, begin, begin + n));
  }
  SourceMatrix slice = *this;
  slice.row_begin_ += begin;
  slice.n_rows_ = n;
  return slice;
}

Result<SourceMatrix> SourceMatrix::transposed() const {
  if (transposed_) return internal_error(name() + ": transposed twice");
  const State& s = *state_;
  EXO_ASSIGN_OR_RETURN(MappedPart part, s.map_rows(row_begin_, n_rows_));
  auto state = std::make_shared<State>(State{.checkpoint = s.checkpoint,
                                             .info = s.info,
                                             .name = s.name,
                                             .n_rows = s.n_rows,
                                             .n_cols = s.n_cols,
                                             .scales = s.scales,
                                             .part = std::move(part),
                                             .first_row = row_begin_,
                                             .part_rows = n_rows_});
  SourceMatrix matrix;
  matrix.n_rows_ = state->n_cols;
  matrix.transposed_ = true;
  matrix.state_ = std::move(state);
  return matrix;
}

const std::string& SourceMatrix::name() const { return state_->name; }
DType SourceMatrix::dtype() const { return state_->info.dtype; }
int64_t SourceMatrix::n_rows() const { return n_rows_; }
int64_t SourceMatrix::n_cols() const { return transposed_ ? state_->part_rows : state_->n_cols; }

float SourceMatrix::scale_at(int64_t row, int64_t col) const {
  return transposed_ ? state_->scales.at(state_->first_row + col, row_begin_ + row)
                     : state_->scales.at(row_begin_ + row, col);
}

Status SourceMatrix::check_range(int64_t row_begin, int64_t n_rows, size_t n_out) const {
  if (row_begin >= 0 && n_rows >= 0 && row_begin <= n_rows_ && n_rows <= n_rows_ - row_begin &&
      n_out == static_cast<size_t>(n_rows * n_cols())) {
    return ok_status();
  }
  return internal_error(fmt::format("{}: rows [{}, {} + {}) of {} asked for as {} values", name(),
                                    row_begin, row_begin, n_rows, n_rows_, n_out));
}

template <typename Use>
Status SourceMatrix::with_stored(int64_t row_begin, int64_t n_rows, const Use& use) const {
  const State& s = *state_;
  row_begin += row_begin_;
  if (!transposed_) {
    EXO_ASSIGN_OR_RETURN(const MappedPart rows, s.map_rows(row_begin, n_rows));
    return use(rows.bytes());
  }
  const auto element = static_cast<size_t>(s.element_bytes());
  std::vector<std::byte> turned(static_cast<size_t>(n_rows * s.part_rows) * element);
  for (int64_t r = 0; r < n_rows; ++r) {
    for (int64_t c = 0; c < s.part_rows; ++c) {
      const auto at = static_cast<size_t>(c * s.n_cols + row_begin + r) * element;
      std::memcpy(turned.data() + static_cast<size_t>(r * s.part_rows + c) * element,
                  s.part.bytes().data() + at, element);
    }
  }
  return use(std::span<const std::byte>(turned));
}

Status SourceMatrix::read_f32(int64_t row_begin, int64_t n_rows, std::span<float> out) const {
  EXO_RETURN_IF_ERROR(check_range(row_begin, n_rows, out.size()));
  EXO_RETURN_IF_ERROR(with_stored(row_begin, n_rows, [&](std::span<const std::byte> stored) {
    return widen_to_f32(dtype(), stored, out);
  }));
  if (dtype() != DType::f8_e4m3) return ok_status();
  const int64_t cols = n_cols();
  // Runs of columns that share a scale, whatever the blocks' alignment in a transposed view.
  const int64_t block = transposed_ ? state_->scales.block_rows : state_->scales.block_cols;
  const int64_t offset = transposed_ ? state_->first_row : 0;
  for (int64_t r = 0; r < n_rows; ++r) {
    float* row = out.data() + r * cols;
    for (int64_t c = 0; c < cols;) {
      const int64_t end = std::min(cols, (c + offset) / block * block + block - offset);
      const float scale = scale_at(row_begin + r, c);
      for (; c < end; ++c) row[c] *= scale;
    }
  }
  return ok_status();
}

Status SourceMatrix::read_fp8(int64_t row_begin, int64_t n_rows, std::span<f8_e4m3> out) const {
  if (dtype() != DType::f8_e4m3) return internal_error(name() + ": read as FP8, but it is not");
  EXO_RETURN_IF_ERROR(check_range(row_begin, n_rows, out.size()));
  return with_stored(row_begin, n_rows, [&](std::span<const std::byte> stored) {
    std::memcpy(out.data(), stored.data(), stored.size());
    return ok_status();
  });
}

int64_t SourceMatrix::fp8_k_block() const {
  if (dtype() != DType::f8_e4m3) return 0;
  const State& s = *state_;
  if (!transposed_) {
    return weights::fp8_k_block({.block_rows = s.scales.block_rows,
                                 .block_cols = s.scales.block_cols,
                                 .row_begin = row_begin_,
                                 .n_rows = n_rows_,
                                 .n_cols = s.n_cols,
                                 .transposed = false});
  }
  // A range of a transposed view's rows would need a column range of the rule: whole views only.
  if (row_begin_ != 0 || n_rows_ != s.n_cols) return 0;
  return weights::fp8_k_block({.block_rows = s.scales.block_rows,
                               .block_cols = s.scales.block_cols,
                               .row_begin = s.first_row,
                               .n_rows = s.part_rows,
                               .n_cols = s.n_cols,
                               .transposed = true});
}

}  // namespace exo::weights
