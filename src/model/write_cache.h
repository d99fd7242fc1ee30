/// The walk over a recipe that conversion and the random cache share: resume, disk, progress.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model/convert.h"
#include "model/recipe.h"
#include "weights/cache_writer.h"

namespace exo::model {

struct CacheJob {
  const Plan& plan;
  uint64_t source_hash = 0;  ///< what the weights come from
  const std::string& folder;
  ThreadPool& pool;
  const OnConvertProgress& on_progress;
  /// Adds one entry to the open unit.
  std::function<Status(const RecipeEntry& entry, weights::CacheWriter& writer)> add;
  /// Writes the small files beside the weights; called once, before the manifest.
  std::function<Status()> add_small_files;
};

/// Writes the units that `job.folder` lacks, then the manifest. Errors: a full disk, before
/// anything is written; another process converting into the folder; those of job's functions.
Status write_cache(const CacheJob& job, const std::vector<RecipeUnit>& recipe);

}  // namespace exo::model
