#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <numeric>

#include "base/json.h"
#include "base/os.h"
#include "cli/capture.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/model_setup.h"
#include "engine/sampler.h"
#include "weights/safetensors_writer.h"

namespace exo::cli {
namespace {

constexpr uint64_t kMaxTokensFileBytes = 256 << 20;

struct LogitRows {
  int64_t vocab_size = 0;
  std::vector<float> values;  ///< [n_rows, vocab_size]
  int64_t n_rows() const { return static_cast<int64_t>(values.size()) / vocab_size; }
  void append(const TensorView& logits) {
    for (int64_t i = 0; i < logits.dim(0); ++i) {
      const float* row = logits.row<float>(i);
      values.insert(values.end(), row, row + vocab_size);
    }
  }
};

weights::NamedTensor f32_tensor(std::string name, const LogitRows& rows) {
  return {std::move(name),
          DType::f32,
          {rows.n_rows(), rows.vocab_size},
          std::as_bytes(std::span(rows.values))};
}

Result<std::vector<int32_t>> read_tokens(const std::string& path) {
  EXO_ASSIGN_OR_RETURN(const std::string text, read_input(path, kMaxTokensFileBytes));
  EXO_ASSIGN_OR_RETURN(const Json json, parse_json(text, path));
  if (!json.is_array() || json.empty())
    return invalid_argument(fmt::format("{}: expected a JSON array of token ids, got {}", path,
                                        json.is_array() ? "an empty one" : json.type_name()));
  std::vector<int32_t> tokens;
  for (size_t i = 0; i < json.size(); ++i) {
    if (!json[i].is_number_integer() || json[i] < 0 || json[i] > INT32_MAX)
      return invalid_argument(fmt::format("{}: element {}: expected a token id, got {}", path, i,
                                          json[i].dump().substr(0, 100)));
    tokens.push_back(json[i].get<int32_t>());
  }
  return tokens;
}

Status check_tokens(std::span<const int32_t> tokens, int64_t vocab_size, const std::string& path) {
  for (size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i] >= vocab_size)
      return invalid_argument(
          fmt::format("{}: element {} is id {}, and the model's vocabulary has "
                      "{} (ids 0 to {})",
                      path, i, tokens[i], vocab_size, vocab_size - 1));
  return ok_status();
}

/// The rows whose logits are wanted, ascending, and for each asked position its place among them.
Result<std::vector<int32_t>> wanted_rows(const LogitsOptions& options, size_t n_tokens) {
  std::vector<int32_t> wanted;
  if (options.positions.empty()) {
    wanted.resize(n_tokens);
    std::iota(wanted.begin(), wanted.end(), 0);
    return wanted;
  }
  for (int64_t position : options.positions) {
    if (position < 0 || position >= static_cast<int64_t>(n_tokens))
      return invalid_argument(fmt::format("--positions: {}: expected 0 to {} ({} has {} tokens)",
                                          position, n_tokens - 1, options.tokens_file, n_tokens));
    wanted.push_back(static_cast<int32_t>(position));
  }
  std::sort(wanted.begin(), wanted.end());
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
  return wanted;
}

/// Rows in the order, and as often, as they were asked for.
LogitRows in_asked_order(LogitRows rows, const std::vector<int32_t>& wanted,
                         const std::vector<int64_t>& asked) {
  if (asked.empty()) return rows;
  LogitRows ordered{rows.vocab_size, {}};
  for (int64_t position : asked) {
    const auto i = std::lower_bound(wanted.begin(), wanted.end(), position) - wanted.begin();
    const auto begin = rows.values.begin() + i * rows.vocab_size;
    ordered.values.insert(ordered.values.end(), begin, begin + rows.vocab_size);
  }
  return ordered;
}

struct Greedy {
  std::vector<int32_t> ids;
  LogitRows logits;
};

/// `row`: the logits after the last prompt token.
Status continue_greedily(engine::Engine& engine, engine::SequenceId id, int64_t n,
                         std::vector<float> row, Greedy& out) {
  while (static_cast<int64_t>(out.ids.size()) < n) {
    out.logits.values.insert(out.logits.values.end(), row.begin(), row.end());
    out.ids.push_back(engine::argmax(row));
    if (static_cast<int64_t>(out.ids.size()) == n) break;
    const engine::Engine::Step step{id, out.ids.back()};
    EXO_ASSIGN_OR_RETURN(const TensorView next, engine.decode({&step, 1}));
    row.assign(next.row<float>(0), next.row<float>(0) + next.dim(1));
  }
  return ok_status();
}

/// A pattern that nothing has answered to is a misspelt one.
Status check_captures(const std::vector<std::string>& patterns, const CapturedTensors& captured) {
  EXO_RETURN_IF_ERROR(captured.status());
  for (const std::string& pattern : patterns)
    if (std::none_of(captured.tensors().begin(), captured.tensors().end(),
                     [&](const auto& entry) { return glob_matches(pattern, entry.first); }))
      return not_found(
          fmt::format("--capture '{}': no inner tensor has such a name; names are like "
                      "layers.0.self_attn.q, layers.0.mlp.out, final_norm ('*' captures all)",
                      pattern));
  return ok_status();
}

Status write_result(const std::string& path, const LogitRows& logits, const Greedy& greedy,
                    const CapturedTensors& captured) {
  std::vector<weights::NamedTensor> tensors{f32_tensor("logits", logits)};
  if (!greedy.ids.empty()) {
    tensors.push_back({"greedy.ids",
                       DType::i32,
                       {static_cast<int64_t>(greedy.ids.size())},
                       std::as_bytes(std::span(greedy.ids))});
    tensors.push_back(f32_tensor("greedy.logits", greedy.logits));
  }
  for (const auto& [name, tensor] : captured.tensors())
    tensors.push_back({name, tensor.dtype, tensor.shape, tensor.bytes});
  return weights::write_safetensors(path, tensors);
}

}  // namespace

Status logits_command(const Context& context, const LogitsOptions& options) {
  EXO_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, read_tokens(options.tokens_file));
  EXO_ASSIGN_OR_RETURN(const std::vector<int32_t> wanted, wanted_rows(options, tokens.size()));
  const auto n_tokens = static_cast<int64_t>(tokens.size());
  CapturedTensors captured(options.captures);
  RunNeeds needs;
  // The last greedy token is not fed back.
  needs.context_tokens = n_tokens + std::max<int64_t>(options.n_greedy - 1, 0);
  needs.max_logit_rows = static_cast<int64_t>(wanted.size()) + 1;
  needs.one_shot_rows = n_tokens;
  if (!options.captures.empty()) needs.capture = &captured;
  EXO_ASSIGN_OR_RETURN(const LoadedModel loaded, load_model(context, options.model, needs));
  engine::Engine& engine = *loaded.engine;
  const int64_t vocab_size = engine.plan().config.vocab_size;
  EXO_RETURN_IF_ERROR(check_tokens(tokens, vocab_size, options.tokens_file));

  // The last row begins a greedy continuation, whether it was asked for or not.
  std::vector<int32_t> computed = wanted;
  if (options.n_greedy > 0 && computed.back() != n_tokens - 1)
    computed.push_back(static_cast<int32_t>(n_tokens - 1));
  LogitRows rows{vocab_size, {}};
  EXO_ASSIGN_OR_RETURN(const engine::SequenceId id, engine.add_sequence());
  const auto begin = std::chrono::steady_clock::now();
  EXO_RETURN_IF_ERROR(
      engine.prefill(id, tokens, computed, [&](std::span<const int32_t>, const TensorView& logits) {
        rows.append(logits);
        return ok_status();
      }));
  EXO_RETURN_IF_ERROR(check_captures(options.captures, captured));
  Greedy greedy{{}, {vocab_size, {}}};
  if (options.n_greedy > 0)
    EXO_RETURN_IF_ERROR(continue_greedily(
        engine, id, options.n_greedy,
        std::vector<float>(rows.values.end() - vocab_size, rows.values.end()), greedy));
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  rows = in_asked_order(std::move(rows), wanted, options.positions);
  rows.values.resize(static_cast<size_t>(
      vocab_size *
      static_cast<int64_t>(options.positions.empty() ? wanted.size() : options.positions.size())));
  EXO_RETURN_IF_ERROR(write_result(options.out_file, rows, greedy, captured));
  say(fmt::format("exo: {} tokens, {} rows of logits, {} greedy tokens, {} inner tensors in {}: {}",
                  n_tokens, rows.n_rows(), greedy.ids.size(), captured.tensors().size(),
                  format_duration(seconds), options.out_file));
  return ok_status();
}

}  // namespace exo::cli
