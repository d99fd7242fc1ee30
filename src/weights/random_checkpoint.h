/// Checkpoints of random weights in the official layout (shards, index, config.json): for tests,
/// for `exo bench`, and for `make run` where no model is at hand. The tensors come from the caller
/// (the model room knows a config's names and shapes).
///
/// Weights are Gaussian (65,536 quantiles, at most 4.3 standard deviations). A tensor's values
/// depend on the seed and its name alone, not on the shards. Streams: memory doesn't grow with the
/// checkpoint.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "tensor/dtype.h"

namespace exo::weights {

struct RandomTensor {
  std::string name;
  std::vector<int64_t> shape;
  DType dtype = DType::bf16;  ///< f32, bf16, or f8_e4m3 (a matrix; `name`_scale_inv is added)
  float stddev = 0.02f;
  float mean = 0;  ///< not for f8_e4m3
};

/// FP8 block scales (F32) are spread over a factor of 4 around stddev; their blocks are those of
/// config_json's quantization_config.weight_block_size, else 128 x 128. The index is written last:
/// a folder without it isn't whole.
Status write_random_checkpoint(const std::string& folder, const std::string& config_json,
                               std::span<const RandomTensor> tensors, uint64_t shard_bytes,
                               uint64_t seed);

}  // namespace exo::weights
