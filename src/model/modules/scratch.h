/// Tensors from the forward's arena.
#pragma once

#include <fmt/core.h>

#include <initializer_list>

#include "ops/context.h"

namespace exo::model {

/// A contiguous f32 or i32 tensor of scratch, uninitialised; resource_exhausted when the arena that
/// stage 2 sized is too small (a defect of the plan).
template <typename T>
Result<TensorView> take_tensor(std::initializer_list<int64_t> shape, ops::OpContext& ctx) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  T* data = ctx.arena->take<T>(n);
  if (data == nullptr) {
    return resource_exhausted(fmt::format(
        "scratch: {} bytes are needed, {} of {} are in use: the plan is too small for this batch",
        n * static_cast<int64_t>(sizeof(T)), ctx.arena->used_bytes(), ctx.arena->size_bytes()));
  }
  return make_view(data, shape);
}

/// What take_tensor takes.
inline int64_t tensor_bytes(int64_t n_elements) { return align_up(n_elements * 4); }

}  // namespace exo::model
