#include "tensor/tensor_view.h"

#include <fmt/core.h>

namespace exo {

bool TensorView::is_contiguous() const {
  int64_t expected = 1;
  for (int i = rank - 1; i >= 0; --i) {
    if (dim(i) != 1 && stride(i) != expected) return false;
    expected *= dim(i);
  }
  return true;
}

bool TensorView::has_shape(std::initializer_list<int64_t> expected) const {
  if (static_cast<int>(expected.size()) != rank) return false;
  int i = 0;
  for (int64_t d : expected) {
    if (dim(i++) != d) return false;
  }
  return true;
}

TensorView TensorView::rows(int64_t begin, int64_t n) const {
  assert(rank >= 1 && begin >= 0 && begin + n <= dim(0));
  TensorView v = *this;
  v.data += begin * stride(0) * size_bytes(dtype);
  v.shape[0] = n;
  return v;
}

TensorView TensorView::columns(int64_t begin, int64_t n) const {
  const int last = rank - 1;
  assert(rank >= 1 && begin >= 0 && begin + n <= dim(last));
  TensorView v = *this;
  v.data += begin * stride(last) * size_bytes(dtype);
  v.shape[static_cast<size_t>(last)] = n;
  return v;
}

std::string TensorView::describe() const {
  std::string s = fmt::format("{} [", to_string(dtype));
  for (int i = 0; i < rank; ++i) s += fmt::format("{}{}", i == 0 ? "" : ", ", dim(i));
  return s + "]";
}

}  // namespace exo
