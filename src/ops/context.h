/// What every operation is given beside its operands.
#pragma once

#include <string_view>

#include "base/thread_pool.h"
#include "tensor/buffer.h"
#include "tensor/tensor_view.h"

namespace exo::ops {

struct OpTable;
struct Profile;

/// Receives named inner tensors ("layers.0.self_attn.q_a") while a forward runs: for goldens, `exo
/// verify` and `exo logits --capture`. Null in ordinary runs.
class Capture {
 public:
  virtual ~Capture() = default;
  /// Is this tensor wanted? Asked before anything is computed only for its sake.
  virtual bool wants(std::string_view name) = 0;
  /// `value` is valid during the call only. [n_tokens of this forward, ...], f32 or i32.
  virtual void on_tensor(std::string_view name, const TensorView& value) = 0;
};

struct OpContext {
  const OpTable* table = nullptr;  ///< bodies of the chosen device and instruction set
  ThreadPool* pool = nullptr;
  Arena* arena = nullptr;  ///< scratch; sized by stage 2
  Capture* capture = nullptr;
  Profile* profile = nullptr;  ///< times every operation when set (ops/profile.h)
  Device device;
};

}  // namespace exo::ops
