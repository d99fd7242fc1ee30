/// The scalar bodies, one per entry of OpTable; table.cc lists them.
#pragma once

#include "ops/ops.h"

namespace exo::ops::reference {

Status embedding(const EmbeddingArgs& args, OpContext& ctx);
Status rms_norm(const RmsNormArgs& args, OpContext& ctx);
Status add(const AddArgs& args, OpContext& ctx);
Status pack_rows(const PackRowsArgs& args, OpContext& ctx);
Status linear(const LinearArgs& args, OpContext& ctx);
Status head_linear(const HeadLinearArgs& args, OpContext& ctx);
Status rope_table(const RopeTableArgs& args, OpContext& ctx);
Status rope(const RopeArgs& args, OpContext& ctx);
Status select_experts(const SelectExpertsArgs& args, OpContext& ctx);
Status experts(const ExpertsArgs& args, OpContext& ctx);
Status store_latent(const StoreLatentArgs& args, OpContext& ctx);
Status mla_absorbed(const MlaAbsorbedArgs& args, OpContext& ctx);
Status mla_expanded(const MlaExpandedArgs& args, OpContext& ctx);

}  // namespace exo::ops::reference
