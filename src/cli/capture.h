/// Collects inner tensors by name patterns, over the chunks of a prompt.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "ops/context.h"
#include "weights/safetensors_writer.h"

namespace exo::cli {

/// `*` any run of characters, `?` one.
bool glob_matches(std::string_view pattern, std::string_view text);

class CapturedTensors : public ops::Capture {
 public:
  /// With no pattern nothing is wanted.
  explicit CapturedTensors(std::vector<std::string> patterns) : patterns_(std::move(patterns)) {}

  struct Tensor {
    DType dtype = DType::f32;
    std::vector<int64_t> shape;
    std::vector<std::byte> bytes;  ///< contiguous
  };

  bool wants(std::string_view name) override;
  /// Rows of later chunks go behind those of earlier ones.
  void on_tensor(std::string_view name, const TensorView& value) override;

  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  /// From now on these, and what was collected is forgotten.
  void want(std::vector<std::string> patterns) {
    patterns_ = std::move(patterns);
    tensors_.clear();
  }
  /// What went wrong while capturing: attention probabilities [n_heads, n_rows, n_positions] of
  /// several chunks don't make one tensor.
  const Status& status() const { return status_; }

 private:
  std::vector<std::string> patterns_;
  std::map<std::string, Tensor> tensors_;
  Status status_;
};

}  // namespace exo::cli
