#include "cli/reference.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace exo::cli {
namespace {

constexpr int64_t kAfterLayers = int64_t{1} << 40;

/// The parts of a layer as a forward computes them.
constexpr std::array<std::string_view, 22> kLayerParts = {"input_layernorm",
                                                          "self_attn.q_a",
                                                          "self_attn.q_a_norm",
                                                          "self_attn.q",
                                                          "self_attn.q_pe_rope",
                                                          "self_attn.compressed_kv",
                                                          "self_attn.latent",
                                                          "self_attn.k_pe_rope",
                                                          "self_attn.probs",
                                                          "self_attn.context",
                                                          "self_attn.out",
                                                          "attn_residual",
                                                          "post_attention_layernorm",
                                                          "mlp.gate.logits",
                                                          "mlp.gate.topk_idx",
                                                          "mlp.gate.topk_weight",
                                                          "mlp.routed_out",
                                                          "mlp.shared_out",
                                                          "mlp.out",
                                                          "out",
                                                          "final_norm",
                                                          "logits"};

bool is_result(std::string_view rest) {
  return rest == "input_ids" || rest == "logits" || rest == "positions" ||
         rest.starts_with("greedy.");
}

}  // namespace

Result<std::vector<int32_t>> read_i32(const weights::Checkpoint& file, const std::string& name) {
  EXO_ASSIGN_OR_RETURN(const weights::TensorInfo info, file.find(name));
  if (info.dtype != DType::i32)
    return invalid_argument(
        fmt::format("{}: expected integers (I32), got {}", name, to_string(info.dtype)));
  std::vector<int32_t> values(info.n_bytes / sizeof(int32_t));
  EXO_RETURN_IF_ERROR(file.read_bytes(info, 0, std::as_writable_bytes(std::span(values))));
  return values;
}

Result<std::vector<ReferencePrompt>> read_prompts(const weights::Checkpoint& file,
                                                  const std::string& where) {
  constexpr std::string_view kIds = ".input_ids";
  std::vector<ReferencePrompt> prompts;
  for (const auto& [name, info] : file.tensors()) {
    if (!name.ends_with(kIds)) continue;
    ReferencePrompt prompt;
    prompt.name = name.substr(0, name.size() - kIds.size());
    EXO_ASSIGN_OR_RETURN(prompt.tokens, read_i32(file, name));
    const std::string prefix = prompt.name + ".";
    if (prompt.tokens.empty() || !file.has(prefix + "logits"))
      return invalid_argument(fmt::format(
          "{}: prompt {}: expected input_ids with some tokens and logits", where, prompt.name));
    if (file.has(prefix + "positions")) {
      EXO_ASSIGN_OR_RETURN(prompt.positions, read_i32(file, prefix + "positions"));
    } else {
      prompt.positions.resize(prompt.tokens.size());
      std::iota(prompt.positions.begin(), prompt.positions.end(), 0);
    }
    if (prompt.positions.empty())
      return invalid_argument(
          fmt::format("{}: {}positions: expected at least one, got none", where, prefix));
    for (size_t i = 0; i < prompt.positions.size(); ++i)
      if (prompt.positions[i] < (i == 0 ? 0 : prompt.positions[i - 1] + 1) ||
          static_cast<size_t>(prompt.positions[i]) >= prompt.tokens.size())
        return invalid_argument(fmt::format(
            "{}: {}positions: expected ascending positions of the prompt", where, prefix));
    if (file.has(prefix + "greedy.ids")) {
      EXO_ASSIGN_OR_RETURN(prompt.greedy_ids, read_i32(file, prefix + "greedy.ids"));
    }
    for (auto it = file.tensors().lower_bound(prefix);
         it != file.tensors().end() && it->first.starts_with(prefix); ++it) {
      const std::string rest = it->first.substr(prefix.size());
      if (!is_result(rest)) prompt.inner.push_back(rest);
    }
    prompts.push_back(std::move(prompt));
  }
  if (prompts.empty())
    return invalid_argument(fmt::format(
        "{}: expected recorded prompts (<name>.input_ids and <name>.logits), found none", where));
  return prompts;
}

Difference compare_f32(std::span<const float> ours, std::span<const float> theirs) {
  Difference difference;
  double squares = 0, reference = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    const double d = std::fabs(static_cast<double>(ours[i]) - static_cast<double>(theirs[i]));
    const bool same = ours[i] == theirs[i];  // also equal infinities
    const double error = same ? 0 : (std::isnan(d) ? std::numeric_limits<double>::infinity() : d);
    difference.max_abs = std::max(difference.max_abs, error);
    squares += error * error;
    reference += static_cast<double>(theirs[i]) * static_cast<double>(theirs[i]);
  }
  difference.relative_l2 = reference > 0 ? std::sqrt(squares / reference) : std::sqrt(squares);
  return difference;
}

Result<Difference> compare(const weights::Checkpoint& file, const std::string& name,
                           const CapturedTensors::Tensor& ours) {
  EXO_ASSIGN_OR_RETURN(const weights::TensorInfo info, file.find(name));
  Difference difference;
  if (info.shape != ours.shape || info.dtype != ours.dtype) {
    difference.problem = fmt::format(
        "recorded {} with {} values, ours is {} with {}", to_string(info.dtype),
        info.n_bytes / static_cast<uint64_t>(size_bytes(info.dtype)), to_string(ours.dtype),
        ours.bytes.size() / static_cast<size_t>(size_bytes(ours.dtype)));
    return difference;
  }
  const size_t n = ours.bytes.size() / sizeof(float);
  if (ours.dtype == DType::i32) {
    EXO_ASSIGN_OR_RETURN(const std::vector<int32_t> theirs, read_i32(file, name));
    std::vector<int32_t> values(n);
    std::memcpy(values.data(), ours.bytes.data(), ours.bytes.size());
    difference.is_integer = true;
    for (size_t i = 0; i < n; ++i) difference.n_different += values[i] == theirs[i] ? 0 : 1;
    return difference;
  }
  EXO_ASSIGN_OR_RETURN(const std::vector<float> theirs, file.read_f32(name));
  std::vector<float> values(n);
  std::memcpy(values.data(), ours.bytes.data(), ours.bytes.size());
  return compare_f32(values, theirs);
}

std::pair<int64_t, int64_t> order_of(const std::string& name) {
  int64_t layer = -1;
  std::string_view part = name;
  if (name.starts_with("layers.")) {
    const size_t dot = name.find('.', 7);
    layer = std::atoll(name.c_str() + 7);
    part = dot == std::string::npos ? std::string_view() : std::string_view(name).substr(dot + 1);
  }
  // "self_attn.q_pe_rope.pairs" is placed by its beginning, an exact name by itself.
  const auto exact = std::find(kLayerParts.begin(), kLayerParts.end(), part);
  auto place = exact;
  if (exact == kLayerParts.end())
    place = std::find_if(kLayerParts.begin(), kLayerParts.end(), [&](std::string_view known) {
      return part.starts_with(known) && part.size() > known.size() && part[known.size()] == '.';
    });
  if (name == "final_norm" || name == "logits" || name.starts_with("greedy")) layer = kAfterLayers;
  return {layer, place - kLayerParts.begin()};
}

}  // namespace exo::cli
