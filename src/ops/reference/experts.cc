#include <algorithm>
#include <cmath>

#include "ops/checks.h"
#include "ops/reference/bodies.h"
#include "ops/reference/matmul.h"

namespace exo::ops::reference {
namespace {

// The rows of one token's one expert.
struct Scratch {
  float* gate_up = nullptr;  // [2 * align_up(n_inter, 16)]
  float* hidden = nullptr;   // [n_inter]
  float* y = nullptr;        // [hidden_size]
};

// y = down * (silu(gate x) * (up x))
Status mlp_row(const PackedRows& x, int64_t row, const PackedMatrix& gate_up,
               const PackedMatrix& down, const Scratch& s, OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  matmul_rows(x, row, 1, gate_up, s.gate_up, 0);
  for (int64_t j = 0; j < down.n_in; ++j) {
    const int64_t gate_at = j / kPanelRows * 2 * kPanelRows + j % kPanelRows;
    const float gate = s.gate_up[gate_at], up = s.gate_up[gate_at + kPanelRows];
    s.hidden[j] = gate / (1.0f + std::exp(-gate)) * up;
  }
  EXO_ASSIGN_OR_RETURN(PackedRows hidden, take_packed_rows(x.dtype, 1, down.n_in, *ctx.arena));
  pack_row(s.hidden, 0, hidden);
  matmul_rows(hidden, 0, 1, down, s.y, 0);
  return ok_status();
}

Result<Scratch> take_scratch(const ExpertsArgs& args, Arena& arena) {
  const int64_t routed = args.down.empty() ? 0 : args.down[0].n_in;
  const int64_t shared = args.shared_down == nullptr ? 0 : args.shared_down->n_in;
  const int64_t n_inter = std::max(routed, shared), hidden_size = args.out.dim(1);
  Scratch s;
  s.gate_up = arena.take<float>(2 * align_up(n_inter, kPanelRows));
  s.hidden = arena.take<float>(n_inter);
  s.y = arena.take<float>(hidden_size);
  if (s.gate_up == nullptr || s.hidden == nullptr || s.y == nullptr)
    return scratch_exhausted("experts", (3 * n_inter + hidden_size) * 4, arena);
  return s;
}

}  // namespace

Status experts(const ExpertsArgs& args, OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  EXO_ASSIGN_OR_RETURN(const Scratch s, take_scratch(args, *ctx.arena));
  const int64_t hidden_size = args.out.dim(1);
  for (int64_t i = 0; i < args.x.n_rows; ++i) {
    float* out = args.out.row<float>(i);
    std::fill_n(out, hidden_size, 0.0f);
    for (int64_t k = 0; !args.ids.empty() && k < args.ids.dim(1); ++k) {
      const auto id = static_cast<size_t>(args.ids.row<int32_t>(i)[k]);
      EXO_RETURN_IF_ERROR(mlp_row(args.x, i, args.gate_up[id], args.down[id], s, ctx));
      const float weight = args.weights.row<float>(i)[k];
      for (int64_t j = 0; j < hidden_size; ++j) out[j] += weight * s.y[j];
    }
    if (args.shared_down != nullptr) {
      EXO_RETURN_IF_ERROR(mlp_row(args.x, i, *args.shared_gate_up, *args.shared_down, s, ctx));
      for (int64_t j = 0; j < hidden_size; ++j) out[j] += s.y[j];
    }
  }
  return ok_status();
}

}  // namespace exo::ops::reference
