#include "ops/reference/bodies.h"

namespace exo::ops {

const OpTable& reference_table() {
  static const OpTable kTable{
      .name = "reference",
      .embedding = reference::embedding,
      .rms_norm = reference::rms_norm,
      .add = reference::add,
      .pack_rows = reference::pack_rows,
      .linear = reference::linear,
      .head_linear = reference::head_linear,
      .rope_table = reference::rope_table,
      .rope = reference::rope,
      .select_experts = reference::select_experts,
      .experts = reference::experts,
      .store_latent = reference::store_latent,
      .mla_absorbed = reference::mla_absorbed,
      .mla_expanded = reference::mla_expanded,
  };
  return kTable;
}

}  // namespace exo::ops
