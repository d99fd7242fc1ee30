/// Recorded outputs of a model (goldens/README.md's names) and their comparison with what this
/// build computes: the work behind `exo verify`.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "cli/capture.h"
#include "weights/checkpoint.h"

namespace exo::cli {

/// One recorded prompt: tensors named "<name>.…".
struct ReferencePrompt {
  std::string name;  ///< "p0"
  std::vector<int32_t> tokens;
  std::vector<int32_t> positions;   ///< whose logits were recorded; all if the file has none
  std::vector<std::string> inner;   ///< recorded inner tensors, without the prompt's name
  std::vector<int32_t> greedy_ids;  ///< empty if not recorded
};
/// The file's prompts, by name; every prompt needs input_ids and logits.
Result<std::vector<ReferencePrompt>> read_prompts(const weights::Checkpoint& file,
                                                  const std::string& where);

Result<std::vector<int32_t>> read_i32(const weights::Checkpoint& file, const std::string& name);

/// How far one tensor is from its record.
struct Difference {
  std::string prompt;
  std::string name;
  double max_abs = 0;       ///< infinite where one of them is NaN
  double relative_l2 = 0;   ///< |ours - theirs| / |theirs|
  int64_t n_different = 0;  ///< of integer tensors
  bool is_integer = false;
  std::string problem;  ///< a shape or type that differs; empty otherwise
  bool within(double tolerance) const {
    return problem.empty() && (is_integer ? n_different == 0 : max_abs <= tolerance);
  }
};
Difference compare_f32(std::span<const float> ours, std::span<const float> theirs);
Result<Difference> compare(const weights::Checkpoint& file, const std::string& name,
                           const CapturedTensors::Tensor& ours);

/// Where in a forward a tensor comes: embedding, layers with their parts in order, final norm,
/// logits.
std::pair<int64_t, int64_t> order_of(const std::string& name);

}  // namespace exo::cli
