#include "cli/submodule_data.h"

#include <fmt/core.h>

#include <filesystem>
#include <numeric>

#include "weights/safetensors_writer.h"

namespace exo::cli {
namespace {

using weights::NamedTensor;

template <typename T>
NamedTensor vector_tensor(std::string name, DType dtype, const std::vector<T>& values) {
  return {std::move(name),
          dtype,
          {static_cast<int64_t>(values.size())},
          std::as_bytes(std::span(values))};
}

NamedTensor captured_tensor(std::string name, const CapturedTensors::Tensor& tensor) {
  return {std::move(name), tensor.dtype, tensor.shape, tensor.bytes};
}

/// A part of it that isn't a submodule of its own: layers.3.input_layernorm of layers.3, but not
/// layers.3.mlp.gate.logits.
bool is_inside(const std::string& name, const Submodule& submodule) {
  const std::string prefix = submodule.name + ".";
  if (!name.starts_with(prefix) || name == submodule.output) return false;
  const std::string rest = name.substr(prefix.size());
  return !rest.starts_with("self_attn.") && !rest.starts_with("mlp.");
}

class Writer {
 public:
  Writer(std::string folder, const weights::Checkpoint& reference, const ReferencePrompt& prompt,
         const CapturedTensors& captured, std::span<const float> logits)
      : folder_(std::move(folder)),
        reference_(reference),
        prompt_(prompt),
        captured_(captured),
        logits_(logits),
        positions_(prompt.tokens.size()) {
    std::iota(positions_.begin(), positions_.end(), 0);
  }

  Status write(const Submodule& submodule) {
    std::vector<NamedTensor> tensors;
    EXO_RETURN_IF_ERROR(add(submodule.input, "input", tensors));
    EXO_RETURN_IF_ERROR(add(submodule.output, "output", tensors));
    if (submodule.name.ends_with(".self_attn"))
      tensors.push_back(vector_tensor("positions", DType::i32, positions_));
    if (submodule.output.empty())
      tensors.push_back(vector_tensor("positions", DType::i32, prompt_.positions));
    const std::string recorded =
        prompt_.name + "." + (submodule.output.empty() ? "logits" : submodule.output);
    std::vector<float> theirs;
    if (reference_.has(recorded)) {
      EXO_ASSIGN_OR_RETURN(theirs, reference_.read_f32(recorded));
      EXO_ASSIGN_OR_RETURN(const weights::TensorInfo info, reference_.find(recorded));
      tensors.push_back(
          {"reference.output", DType::f32, info.shape, std::as_bytes(std::span(theirs))});
    }
    for (const auto& [name, tensor] : captured_.tensors())
      if (is_inside(name, submodule)) tensors.push_back(captured_tensor(name, tensor));
    return weights::write_safetensors(fmt::format("{}/{}.safetensors", folder_, submodule.name),
                                      tensors);
  }

 private:
  Status add(const std::string& source, std::string_view name, std::vector<NamedTensor>& tensors) {
    if (!source.empty()) {
      const auto found = captured_.tensors().find(source);
      if (found == captured_.tensors().end())
        return internal_error(fmt::format("verify: {} was not captured", source));
      tensors.push_back(captured_tensor(std::string(name), found->second));
    } else if (name == "input") {
      tensors.push_back(vector_tensor("input", DType::i32, prompt_.tokens));
    } else {
      const auto n_rows = static_cast<int64_t>(prompt_.positions.size());
      tensors.push_back({"output",
                         DType::f32,
                         {n_rows, static_cast<int64_t>(logits_.size()) / n_rows},
                         std::as_bytes(logits_)});
    }
    return ok_status();
  }

  std::string folder_;
  const weights::Checkpoint& reference_;
  const ReferencePrompt& prompt_;
  const CapturedTensors& captured_;
  std::span<const float> logits_;
  std::vector<int32_t> positions_;
};

}  // namespace

std::vector<Submodule> submodules(int64_t n_layers) {
  std::vector<Submodule> all{{"embed", "", "embed"}};
  std::string before = "embed";
  for (int64_t i = 0; i < n_layers; ++i) {
    const std::string layer = fmt::format("layers.{}", i);
    all.push_back({layer, before, layer + ".out"});
    all.push_back({layer + ".self_attn", layer + ".input_layernorm", layer + ".self_attn.out"});
    all.push_back({layer + ".mlp", layer + ".post_attention_layernorm", layer + ".mlp.out"});
    before = layer + ".out";
  }
  all.push_back({"final_norm", before, "final_norm"});
  all.push_back({"lm_head", "final_norm", ""});
  return all;
}

std::vector<std::string> submodule_tensors(int64_t n_layers) {
  std::vector<std::string> names;
  for (const Submodule& submodule : submodules(n_layers))
    for (const std::string& name : {submodule.input, submodule.output})
      if (!name.empty()) names.push_back(name);
  return names;
}

Status write_submodule_data(const std::string& folder, const weights::Checkpoint& reference,
                            const ReferencePrompt& prompt, const CapturedTensors& captured,
                            std::span<const float> logits, int64_t n_layers) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error)
    return failed_precondition(
        fmt::format("{}: cannot make this folder: {}", folder, error.message()));
  Writer writer(folder, reference, prompt, captured, logits);
  for (const Submodule& submodule : submodules(n_layers))
    EXO_RETURN_IF_ERROR(writer.write(submodule));
  return ok_status();
}

}  // namespace exo::cli
