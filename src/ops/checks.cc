#include "ops/checks.h"

#include <fmt/core.h>

namespace exo::ops {
namespace {

Status wrong(std::string_view op, std::string_view operand, std::string_view expected,
             std::string_view got) {
  return internal_error(fmt::format("{}: operand '{}': expected {}, got {}: a defect of the caller",
                                    op, operand, expected, got));
}

std::string describe(DType dtype, std::initializer_list<int64_t> shape) {
  std::string s = fmt::format("{} [", to_string(dtype));
  const char* separator = "";
  for (int64_t d : shape) {
    s += separator;
    s += d == kAnyDim ? std::string("any") : fmt::format("{}", d);
    separator = ", ";
  }
  return s + "]";
}

bool allowed_pair(DType activation, WeightFormat format) {
  switch (activation) {
    case DType::f32:
      return true;
    case DType::bf16:
      return format == WeightFormat::bf16 || format == WeightFormat::fp8;
    case DType::i8:
      return format == WeightFormat::int8 || format == WeightFormat::int4;
    default:
      return false;
  }
}

// What a matrix lacks for its format, or null.
const char* missing_part(const PackedMatrix& m) {
  if (m.tiles == nullptr) return "tiles";
  switch (m.format) {
    case WeightFormat::int8:
      if (m.row_sums == nullptr) return "row_sums";
      [[fallthrough]];
    case WeightFormat::int4:
      return m.row_scales == nullptr ? "row_scales" : nullptr;
    case WeightFormat::fp8:
      if (m.k_block <= 0 || m.k_block % 64 != 0) return "a k_block that is a multiple of 64";
      return m.block_scales == nullptr ? "block_scales" : nullptr;
    default:
      return nullptr;
  }
}

}  // namespace

Status check_view(std::string_view op, std::string_view operand, const TensorView& view,
                  DType dtype, std::initializer_list<int64_t> shape, const OpContext& ctx) {
  bool fits = view.dtype == dtype && view.rank == static_cast<int>(shape.size());
  int i = 0;
  for (int64_t d : shape) {
    fits = fits && (d == kAnyDim || d == view.dim(i)) && view.dim(i) >= 0;
    ++i;
  }
  if (!fits) return wrong(op, operand, describe(dtype, shape), view.describe());
  const int last = view.rank - 1;
  if (view.dim(last) > 1 && view.stride(last) != 1)
    return wrong(op, operand, "a contiguous last dimension",
                 fmt::format("stride {}", view.stride(last)));
  if (view.n_elements() > 0 && view.data == nullptr) return wrong(op, operand, "memory", "null");
  if (!(view.device == ctx.device))
    return wrong(op, operand, "the context's device", "another device");
  return ok_status();
}

Status check_rows(std::string_view op, std::string_view operand, const PackedRows& rows,
                  int64_t n_rows, int64_t n_cols) {
  const bool type_fits =
      rows.dtype == DType::f32 || rows.dtype == DType::bf16 || rows.dtype == DType::i8;
  const bool rows_fit = rows.n_rows >= 0 && (n_rows == kAnyDim || rows.n_rows == n_rows);
  const bool cols_fit = rows.n_cols > 0 && (n_cols == kAnyDim || rows.n_cols == n_cols);
  if (!type_fits || !rows_fit || !cols_fit)
    return wrong(op, operand, fmt::format("f32, bf16 or i8 rows [{}, {}]", n_rows, n_cols),
                 fmt::format("{} [{}, {}]", to_string(rows.dtype), rows.n_rows, rows.n_cols));
  if (rows.n_rows == 0) return ok_status();
  if (rows.data == nullptr || reinterpret_cast<uintptr_t>(rows.data) % kAlignment != 0)
    return wrong(op, operand, "64-byte aligned memory",
                 rows.data == nullptr ? "null" : "unaligned");
  if (rows.dtype == DType::i8 && (rows.scales == nullptr || rows.group_sums == nullptr ||
                                  rows.n_wide == nullptr || rows.wide == nullptr))
    return wrong(op, operand, "scales, group_sums, n_wide and wide with i8", "null");
  return ok_status();
}

Status check_matrix(std::string_view op, std::string_view operand, const PackedMatrix& matrix,
                    int64_t n_out, int64_t n_in, DType activation) {
  if (const char* missing = missing_part(matrix); missing != nullptr)
    return wrong(op, operand, missing,
                 fmt::format("a {} matrix without", to_string(matrix.format)));
  if (matrix.n_out != n_out || matrix.n_in != n_in)
    return wrong(op, operand, fmt::format("[{}, {}]", n_out, n_in),
                 fmt::format("[{}, {}]", matrix.n_out, matrix.n_in));
  if (n_out <= 0 || n_in <= 0 || n_in > kMaxMatmulCols)
    return wrong(op, operand, fmt::format("1 to {} columns, 1 row at least", kMaxMatmulCols),
                 fmt::format("[{}, {}]", n_out, n_in));
  if (!allowed_pair(activation, matrix.format))
    return wrong(op, operand, fmt::format("a format that goes with {}", to_string(activation)),
                 to_string(matrix.format));
  return ok_status();
}

Status check_matrices(std::string_view op, std::string_view operand,
                      std::span<const PackedMatrix> matrices, int64_t n, int64_t n_out,
                      int64_t n_in, DType activation) {
  if (static_cast<int64_t>(matrices.size()) != n)
    return wrong(op, operand, fmt::format("{} matrices", n), fmt::format("{}", matrices.size()));
  for (const PackedMatrix& m : matrices) {
    EXO_RETURN_IF_ERROR(check_matrix(op, operand, m, n_out, n_in, activation));
    if (m.format != matrices[0].format)
      return wrong(op, operand, fmt::format("one format ({})", to_string(matrices[0].format)),
                   to_string(m.format));
  }
  return ok_status();
}

Status check_sequences(std::string_view op, std::span<const SequenceRows> sequences,
                       const LatentPages& pages, int64_t n_rows, int64_t kv_lora_rank,
                       int64_t rope_dim) {
  if (pages.dtype != DType::f32 && pages.dtype != DType::bf16 && pages.dtype != DType::i8 &&
      pages.dtype != DType::f8_e4m3)
    return wrong(op, "pages", "f32, bf16, i8 or f8_e4m3", to_string(pages.dtype));
  if (pages.kv_lora_rank != kv_lora_rank || pages.rope_dim != rope_dim)
    return wrong(op, "pages", fmt::format("entries of {} + {}", kv_lora_rank, rope_dim),
                 fmt::format("{} + {}", pages.kv_lora_rank, pages.rope_dim));
  if (pages.n_pages > 0 && pages.data == nullptr) return wrong(op, "pages", "memory", "null");
  int64_t row_end = 0;
  for (const SequenceRows& s : sequences) {
    if (s.row_begin < row_end || s.n_rows < 0 || s.n_past < 0 ||
        int64_t{s.row_begin} + s.n_rows > n_rows)
      return wrong(op, "sequences", fmt::format("rows in order within [{}, {})", row_end, n_rows),
                   fmt::format("{} rows from {}, {} past", s.n_rows, s.row_begin, s.n_past));
    row_end = int64_t{s.row_begin} + s.n_rows;
    const int64_t n_tokens = int64_t{s.n_past} + s.n_rows;
    if (static_cast<int64_t>(s.pages.size()) < ceil_div(n_tokens, kPageTokens))
      return wrong(op, "sequences", fmt::format("pages for {} tokens", n_tokens),
                   fmt::format("{} pages of {}", s.pages.size(), kPageTokens));
    for (int64_t i = 0; i < ceil_div(n_tokens, kPageTokens); ++i) {
      const int32_t page = s.pages[static_cast<size_t>(i)];
      if (page < 0 || page >= pages.n_pages)
        return wrong(op, "sequences", fmt::format("page numbers below {}", pages.n_pages),
                     fmt::format("{}", page));
    }
  }
  return ok_status();
}

Status scratch_exhausted(std::string_view op, int64_t needed_bytes, const Arena& arena) {
  return resource_exhausted(
      fmt::format("{}: scratch: needs {} bytes, the arena has {} left of {}: plan again with the "
                  "batch's real size",
                  op, needed_bytes, arena.size_bytes() - arena.used_bytes(), arena.size_bytes()));
}

}  // namespace exo::ops
