/// Names inner tensors for a capture, and costs one comparison when there is none.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "ops/context.h"

namespace exo::model {

class Tap {
 public:
  /// Tensors of decoder layer `layer`; -1: of the model itself (no prefix).
  Tap(ops::Capture* capture, int64_t layer) : capture_(capture), layer_(layer) {}

  bool wants(std::string_view name) const {
    return capture_ != nullptr && capture_->wants(full_name(name));
  }
  /// Hands `value` over if it is wanted under "layers.<layer>.<name>" (goldens' names).
  void operator()(std::string_view name, const TensorView& value) const {
    if (capture_ == nullptr) return;
    const std::string full = full_name(name);
    if (capture_->wants(full)) capture_->on_tensor(full, value);
  }

 private:
  std::string full_name(std::string_view name) const {
    if (layer_ < 0) return std::string(name);
    return "layers." + std::to_string(layer_) + "." + std::string(name);
  }

  ops::Capture* capture_;
  int64_t layer_;
};

}  // namespace exo::model
