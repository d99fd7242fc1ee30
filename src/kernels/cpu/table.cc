#include "kernels/cpu/bodies.h"

namespace exo::kernels::cpu {
namespace {

// An OpTable entry: the body with its instruction set filled in.
template <auto body, Isa isa>
struct On;
template <typename Args, Status (*body)(Isa, const Args&, ops::OpContext&), Isa isa>
struct On<body, isa> {
  static Status run(const Args& args, ops::OpContext& ctx) { return body(isa, args, ctx); }
};

template <Isa isa>
const ops::OpTable& table_of(const char* name) {
  static const ops::OpTable kTable = [name] {
    ops::OpTable t{};
    t.name = name;
    t.embedding = On<embedding, isa>::run;
    t.rms_norm = On<rms_norm, isa>::run;
    t.add = On<add, isa>::run;
    t.pack_rows = On<pack_rows, isa>::run;
    t.linear = On<linear, isa>::run;
    t.head_linear = On<head_linear, isa>::run;
    t.rope_table = On<rope_table, isa>::run;
    t.rope = On<rope, isa>::run;
    t.select_experts = On<select_experts, isa>::run;
    t.experts = On<experts, isa>::run;
    t.store_latent = On<store_latent, isa>::run;
    t.mla_absorbed = On<mla_absorbed, isa>::run;
    t.mla_expanded = On<mla_expanded, isa>::run;
    return t;
  }();
  return kTable;
}

}  // namespace

const ops::OpTable& table(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return table_of<Isa::avx2>("avx2");
    case Isa::avxvnni:
      return table_of<Isa::avxvnni>("avxvnni");
    case Isa::avx512:
      return table_of<Isa::avx512>("avx512");
    case Isa::avx512bf16:
      return table_of<Isa::avx512bf16>("avx512bf16");
    case Isa::amx:
      return table_of<Isa::amx>("amx");
    case Isa::neon:
      return table_of<Isa::neon>("neon");
    case Isa::reference:
      break;
  }
  return ops::reference_table();
}

}  // namespace exo::kernels::cpu
