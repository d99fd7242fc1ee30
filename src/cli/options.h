/// What the command line says, as plain values: args.cc fills them, commands read them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/env.h"

namespace exo::cli {

/// The flags that exo had before exo.cpp; docs/flags.md has the table.
struct ExoFlags {
  std::string inference_engine = "tinygrad";  ///< tinygrad, mlx or dummy
  std::optional<double> default_temp;
  std::optional<int64_t> max_generate_tokens;
  std::optional<std::string> system_prompt;
  bool disable_tui = false;
  std::optional<int> wait_for_peers;
  std::optional<std::string> discovery_module;
  std::optional<std::string> node_id;
  std::optional<std::string> node_host;
  std::optional<int> node_port;
  std::optional<int> listen_port;
  std::optional<int> broadcast_port;
  std::optional<int> chatgpt_api_port;
};

/// Which model, and how it is run.
struct ModelOptions {
  std::string model;
  std::string format;                ///< "": the checkpoint's own
  std::optional<bool> fp32_compute;  ///< --compute fp32 or native; none: native
  std::string kv_cache;              ///< bf16, int8, fp8, fp32; "": by fp32_compute
  std::optional<int64_t> chunk;      ///< prompt rows of a forward; 0: the whole prompt at once
  std::string isa = "auto";
  int threads = 0;      ///< 0: all that this process may use
  int64_t context = 0;  ///< tokens; 0: the command's own choice
  std::string plan_file;
  bool overcommit = false;  ///< go on when the plan exceeds memory
  bool warm = false;        ///< read all weights before the first token
};

struct SamplingFlags {
  std::optional<double> temperature;
  std::optional<int> top_k;
  std::optional<double> top_p, min_p, typical_p;
  std::optional<double> repetition_penalty, presence_penalty, frequency_penalty;
  std::vector<std::string> logit_bias;  ///< "ID=BIAS"
  std::optional<uint64_t> seed;
  bool greedy = false;
  std::vector<std::string> stops;
};

struct RunOptions {
  ModelOptions model;
  SamplingFlags sampling;
  std::optional<std::string> prompt;
  std::string prompt_file;  ///< "-": stdin
  std::string tokenizer;    ///< a folder, instead of the model's
  std::string chat_format;  ///< a name, instead of the model's
  bool raw = false;
  bool hide_thinking = false;
  std::optional<bool> thinking;  ///< --think, --no-think
  bool ignore_eos = false;
  bool json = false;
};

struct ConvertOptions {
  ModelOptions model;
  bool force = false;
  bool verify = false;
};

struct PlanOptions {
  ModelOptions model;
  bool json = false;
};

struct LogitsOptions {
  ModelOptions model;
  std::string tokens_file;
  std::string out_file;
  int64_t n_greedy = 0;
  std::vector<int64_t> positions;
  std::vector<std::string> captures;
};

struct TokenizeOptions {
  std::string model;
  bool decode = false;
};

struct RenderOptions {
  std::string model;
  std::string chat_format;
};

struct ModelsOptions {
  enum class Action { list, info, remove };
  Action action = Action::list;
  std::string model;
  bool json = false;
  bool yes = false;
  double memory_gb = 0;  ///< of the machines that are counted; 0: this one's
};

struct PerplexityOptions {
  ModelOptions model;
  std::string text_file;
  std::string against;
  std::string against_format;
  std::string against_kv_cache;
  std::string tokenizer;
  int64_t max_tokens = 0;  ///< of the text; 0: all
  bool json = false;
};

struct VerifyOptions {
  ModelOptions model;
  std::string reference;
  std::string report_file;
  bool json = false;
};

struct RandomCheckpointOptions {
  std::string folder;
  std::string config;  ///< a config.json; "": a small one of exo's own
  int64_t megabytes = 0;
  uint64_t seed = 1;
};

struct BenchCommandOptions {
  ModelOptions model;
  std::string random_weights;  ///< a registry id or a config.json
  int64_t layers = 0;
  std::optional<int64_t> dense;  ///< layers of them that are dense
  std::vector<int64_t> prefill_tokens, depths, batches, threads;
  int64_t decode_steps = 24;
  int64_t repeats = 3;    ///< timed prefills
  bool roofline = false;  ///< the machine's limits alone
  bool cold = false;      ///< time a start from the disk, too
  bool profile = false;
  bool json = false;
};

enum class Command {
  node,  ///< `exo` alone
  run,
  convert,
  plan,
  logits,
  tokenize,
  render,
  models,
  perplexity,
  verify,
  random_checkpoint,
  bench,
  version,
};

struct Invocation {
  Command command = Command::node;
  ExoFlags exo;
  RunOptions run;
  ConvertOptions convert;
  PlanOptions plan;
  LogitsOptions logits;
  TokenizeOptions tokenize;
  RenderOptions render;
  ModelsOptions models;
  PerplexityOptions perplexity;
  VerifyOptions verify;
  RandomCheckpointOptions random_checkpoint;
  BenchCommandOptions bench;
};

/// What every command is given beside its own options.
struct Context {
  Environment environment;
  hub::StorePaths paths;
  ExoFlags exo;
};

}  // namespace exo::cli
