/// Test data of every submodule: its input and its output for one prompt, as safetensors files that
/// any program can read. What `exo verify` leaves behind, so that a new body of one submodule can
/// be held to a model that was verified without running the rest of it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cli/capture.h"
#include "cli/reference.h"
#include "weights/checkpoint.h"

namespace exo::cli {

/// One submodule of a model by the names of its captured tensors. `input` is empty where it is the
/// prompt's ids, `output` where it is the prompt's logits.
struct Submodule {
  std::string
      name;  ///< "embed", "layers.3", "layers.3.self_attn", "layers.3.mlp", "final_norm", ...
  std::string input;
  std::string output;
};
std::vector<Submodule> submodules(int64_t n_layers);

/// The captured tensors that write_submodule_data needs; together with a prompt's own.
std::vector<std::string> submodule_tensors(int64_t n_layers);

/// Writes `folder`/<submodule>.safetensors for each submodule:
///   input             [n_tokens, hidden_size] f32, for `embed` [n_tokens] i32
///   output            [n_tokens, hidden_size] f32, for `lm_head` [n_positions, vocab_size]
///   reference.output  the same, as the reference recorded it, where it did
///   positions         [n_tokens] i32, of attention; for `lm_head` [n_positions]: rows of `input`
/// and what else was captured inside it, by its name.
/// `logits` [n_positions, vocab_size]. Each file is written whole or not at all.
Status write_submodule_data(const std::string& folder, const weights::Checkpoint& reference,
                            const ReferencePrompt& prompt, const CapturedTensors& captured,
                            std::span<const float> logits, int64_t n_layers);

}  // namespace exo::cli
