/// The bodies of this room's op tables: one function per operation, told the instruction set by
/// table.cc. Each schedules threads; the vector code is behind matmul.h and vector.h.
#pragma once

#include "kernels/cpu/isa.h"
#include "ops/ops.h"

namespace exo::kernels::cpu {

Status embedding(Isa isa, const ops::EmbeddingArgs& args, ops::OpContext& ctx);
Status rms_norm(Isa isa, const ops::RmsNormArgs& args, ops::OpContext& ctx);
Status add(Isa isa, const ops::AddArgs& args, ops::OpContext& ctx);
Status pack_rows(Isa isa, const ops::PackRowsArgs& args, ops::OpContext& ctx);
Status linear(Isa isa, const ops::LinearArgs& args, ops::OpContext& ctx);
Status head_linear(Isa isa, const ops::HeadLinearArgs& args, ops::OpContext& ctx);
Status rope_table(Isa isa, const ops::RopeTableArgs& args, ops::OpContext& ctx);
Status rope(Isa isa, const ops::RopeArgs& args, ops::OpContext& ctx);
Status select_experts(Isa isa, const ops::SelectExpertsArgs& args, ops::OpContext& ctx);
Status experts(Isa isa, const ops::ExpertsArgs& args, ops::OpContext& ctx);
Status store_latent(Isa isa, const ops::StoreLatentArgs& args, ops::OpContext& ctx);
Status mla_absorbed(Isa isa, const ops::MlaAbsorbedArgs& args, ops::OpContext& ctx);
Status mla_expanded(Isa isa, const ops::MlaExpandedArgs& args, ops::OpContext& ctx);

/// The part of mla_expanded that runs on tiles (mla_expanded_tiles.cc), and for what.
bool expanded_on_tiles(Isa isa, const ops::MlaExpandedArgs& args);
Status mla_expanded_tiles(Isa isa, const ops::MlaExpandedArgs& args, ops::OpContext& ctx);

}  // namespace exo::kernels::cpu
