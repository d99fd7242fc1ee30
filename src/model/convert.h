/// Stage 1: an official checkpoint into a weight cache, layer by layer, resumable.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "model/plan.h"
#include "weights/checkpoint.h"
#include "weights/weight_config.h"

namespace exo::model {

struct ConvertProgress {
  uint64_t done_bytes = 0;  ///< of the cache, earlier runs included
  uint64_t total_bytes = 0;
};
using OnConvertProgress = std::function<void(const ConvertProgress&)>;

/// Bytes that a cache of this plan takes on disk: exactly, so that the disk can be checked first.
uint64_t cache_bytes(const Plan& plan);

/// Converts the layers of `plan.placement` (MTP layers with the last stage) into `cache_folder`.
/// Copies config.json, generation_config.json and the tokenizer's files beside the weights. Checks
/// every tensor's name, shape and dtype and the disk's free space before anything is written.
/// Unknown tensors are listed in a warning.
Status convert_weights(const Plan& plan, const weights::Checkpoint& checkpoint,
                       const std::string& cache_folder, ThreadPool& pool,
                       const OnConvertProgress& on_progress);

/// The tensors of an official checkpoint of this config, in the checkpoint's order: what
/// convert_weights expects and what the random checkpoint writer writes.
struct CheckpointTensor {
  std::string name;
  std::vector<int64_t> shape;
  bool quantised = false;  ///< F8_E4M3 with scales in an FP8 checkpoint
  bool f32 = false;        ///< e_score_correction_bias
};
std::vector<CheckpointTensor> checkpoint_tensors(const HfConfig& config);

/// Writes a cache of random weights directly in the packed formats (`exo bench --random-weights`).
Status write_random_cache(const Plan& plan, const std::string& cache_folder, uint64_t seed,
                          ThreadPool& pool, const OnConvertProgress& on_progress);

}  // namespace exo::model
