#include "cli/capture.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>

namespace exo::cli {
namespace {

/// Appends the elements of a strided view in row-major order.
void append_elements(const TensorView& view, int dim, const std::byte* at,
                     std::vector<std::byte>& out) {
  const int64_t size = size_bytes(view.dtype);
  if (dim == view.rank) {
    out.insert(out.end(), at, at + size);
    return;
  }
  if (dim == view.rank - 1 && view.stride(dim) == 1) {
    out.insert(out.end(), at, at + view.dim(dim) * size);
    return;
  }
  for (int64_t i = 0; i < view.dim(dim); ++i)
    append_elements(view, dim + 1, at + i * view.stride(dim) * size, out);
}

}  // namespace

bool glob_matches(std::string_view pattern, std::string_view text) {
  // Greedy with one way back: linear but for the patterns with many stars.
  size_t p = 0, t = 0, star = std::string_view::npos, resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

bool CapturedTensors::wants(std::string_view name) {
  return std::any_of(patterns_.begin(), patterns_.end(),
                     [&](const std::string& pattern) { return glob_matches(pattern, name); });
}

void CapturedTensors::on_tensor(std::string_view name, const TensorView& value) {
  if (!status_.ok() || value.rank == 0) return;
  auto [it, is_new] = tensors_.try_emplace(std::string(name));
  Tensor& tensor = it->second;
  const std::vector<int64_t> shape(value.shape.begin(), value.shape.begin() + value.rank);
  if (is_new) {
    tensor.dtype = value.dtype;
    tensor.shape = shape;
  } else {
    const bool joins = name.find(".probs") == std::string_view::npos &&
                       shape.size() == tensor.shape.size() && value.dtype == tensor.dtype &&
                       std::equal(shape.begin() + 1, shape.end(), tensor.shape.begin() + 1);
    if (!joins) {
      status_ = failed_precondition(
          fmt::format("capture: '{}' of several chunks doesn't make one tensor: run the prompt in "
                      "one forward (--chunk 0)",
                      name));
      return;
    }
    tensor.shape[0] += shape[0];
  }
  append_elements(value, 0, value.data, tensor.bytes);
}

}  // namespace exo::cli
