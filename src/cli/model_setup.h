/// From a MODEL argument to a running engine: find it, read its config, plan, convert if there is
/// no cache for it, check that it fits, load. Every command that runs a model goes through here.
#pragma once

#include <memory>
#include <string>

#include "cli/options.h"
#include "engine/engine.h"
#include "hub/store.h"
#include "model/plan.h"

namespace exo::cli {

/// What of a run depends on the command.
struct RunNeeds {
  int64_t context_tokens = 0;  ///< 0: the user's --context, else the default
  int64_t max_logit_rows = 1;
  int64_t max_sequences = 1;
  int64_t one_shot_rows = 0;  ///< rows that --chunk 0 means
  ops::Capture* capture = nullptr;
};

/// A model found and planned; nothing is loaded.
struct PlannedModel {
  hub::ModelLocation location;
  std::string config_json;   ///< the bytes of config.json
  std::string files_folder;  ///< where config, tokenizer and generation config are; may be empty
  std::string cache_folder;  ///< the weight cache, when it is known already; else empty
  model::Plan plan;
};

/// Default of --context, where the model allows it.
inline constexpr int64_t kDefaultContextTokens = 16384;

/// Stage 2 of a config.json's bytes; errors name `where`.
Result<model::Plan> plan_config(const std::string& config_json, const std::string& where,
                                const ModelOptions& options, const RunNeeds& needs);

/// Stage 2 of a MODEL argument. With options.plan_file: that plan, checked.
Result<PlannedModel> plan_model(const Context& context, const ModelOptions& options,
                                const RunNeeds& needs);

/// Stage 1 where needed: the folder of a whole cache of planned.plan. Says on stderr when it
/// converts, and why.
Result<std::string> ensure_cache(const Context& context, const PlannedModel& planned, bool force);

/// resource_exhausted when the plan exceeds what this machine has free: with the formats that would
/// fit, and how many such machines would do.
Status check_memory(const model::Plan& plan, const ModelOptions& options);

/// Stage 3 of a planned model whose cache is there. Says on stderr when the weights don't fit in
/// memory (--overcommit).
Result<std::unique_ptr<engine::Engine>> start_engine(const PlannedModel& planned,
                                                     const ModelOptions& options,
                                                     kernels::cpu::Isa isa,
                                                     ops::Capture* capture = nullptr);

struct LoadedModel {
  PlannedModel planned;
  std::unique_ptr<engine::Engine> engine;
  double load_s = 0;
};
/// All three stages.
Result<LoadedModel> load_model(const Context& context, const ModelOptions& options,
                               const RunNeeds& needs);

/// Refuses --inference-engine mlx and dummy, and CUDA=1, where a model has to run and they can't
/// act: said in one sentence.
Status check_inference_engine(const Context& context);

}  // namespace exo::cli
