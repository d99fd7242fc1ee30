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
    ops::OpTable t = ops::reference_table();
    t.name = name;
    t.linear = On<linear, isa>::run;
    return t;
  }();
  return kTable;
}

}  // namespace

const ops::OpTable& table(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return table_of<Isa::avx2>("avx2");
    case Isa::avx512:
      return table_of<Isa::avx512>("avx512");
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
