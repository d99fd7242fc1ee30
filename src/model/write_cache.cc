#include "model/write_cache.h"

namespace exo::model {
namespace {

// Manifest, fragments and copies: what the tensor files' exact size leaves out.
constexpr uint64_t kSmallFilesBytes = uint64_t{64} << 20;

}  // namespace

Status write_cache(const CacheJob& job, const std::vector<RecipeUnit>& recipe) {
  weights::WeightConfig identity;
  identity.source_hash = job.source_hash;
  identity.format = job.plan.format.to_string();
  identity.layer_begin = job.plan.placement.layer_begin;
  identity.layer_end = job.plan.placement.layer_end;
  EXO_ASSIGN_OR_RETURN(const std::unique_ptr<weights::CacheWriter> writer,
                       weights::CacheWriter::create(job.folder, identity, job.pool));
  uint64_t total = 0, missing = 0;
  for (const RecipeUnit& unit : recipe) {
    const auto n = static_cast<uint64_t>(unit.n_bytes());
    total += n;
    if (!writer->has_unit(unit.name)) missing += n;
  }
  EXO_RETURN_IF_ERROR(weights::check_disk_space(job.folder, missing + kSmallFilesBytes));

  // The folder may hold units of other layers too: they are no part of this job's progress.
  const uint64_t others = writer->written_bytes() - (total - missing);
  if (job.on_progress) {
    job.on_progress({.done_bytes = total - missing, .total_bytes = total});
    writer->on_progress = [&job, others, total](uint64_t n) {
      job.on_progress({.done_bytes = n - others, .total_bytes = total});
    };
  }
  for (const RecipeUnit& unit : recipe) {
    if (writer->has_unit(unit.name)) continue;
    EXO_RETURN_IF_ERROR(writer->begin_unit(unit.name));
    for (const RecipeEntry& entry : unit.entries) EXO_RETURN_IF_ERROR(job.add(entry, *writer));
    EXO_RETURN_IF_ERROR(writer->end_unit());
  }
  EXO_RETURN_IF_ERROR(job.add_small_files());
  return writer->finish();
}

}  // namespace exo::model
