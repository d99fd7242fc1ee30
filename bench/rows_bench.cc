// The vector steps around an expert's products, 48 rows of 1,408 columns on one thread: silu(gate)
// * up, rounding to the activations' format (int8 rows of SwiGLU values list their outliers, even
// rows don't), the products of those (a task of 32 panels, in the second-level cache), and adding
// what experts return.
#include "bench_support.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/vector.h"

namespace exo::bench {
namespace {

constexpr int64_t kRows = 48, kCols = 1408;

struct Rows {
  std::vector<float> gate_up = some_floats(kRows * 2 * kCols);
  std::vector<float> even = some_floats(kRows * kCols);
  std::vector<float> hidden = std::vector<float>(static_cast<size_t>(kRows * kCols));

  explicit Rows(const kernels::cpu::VectorKernels& v) {
    // Of values that are nearly normal, as a product's are: a sum of four even ones.
    const auto more = some_floats(kRows * 2 * kCols * 3);
    for (size_t i = 0; i < gate_up.size(); ++i)
      gate_up[i] = 1.7f * (gate_up[i] + more[3 * i] + more[3 * i + 1] + more[3 * i + 2]);
    silu(v);
  }
  void silu(const kernels::cpu::VectorKernels& v) {
    v.silu_mul(gate_up.data(), 2 * kCols, kRows, kCols / 16, hidden.data(), kCols);
  }
};

void register_rows(kernels::cpu::Isa isa) {
  const kernels::cpu::VectorKernels& v = kernels::cpu::vector_kernels(isa);
  const auto add = [isa](const char* name, auto run) {
    const std::string full = std::string(name) + "/" + std::string(to_string(isa));
    ::benchmark::RegisterBenchmark(full.c_str(), [run](::benchmark::State& state) {
      run(state);
      state.SetItemsProcessed(state.iterations() * kRows * kCols);
    });
  };
  add("silu_mul", [&v](::benchmark::State& state) {
    Rows rows(v);
    for (auto _ : state) rows.silu(v);
  });
  add("add_scaled_rows", [&v](::benchmark::State& state) {
    Rows rows(v);
    const std::vector<float> scales(kRows, 0.1f);
    std::vector<int32_t> tokens(kRows);
    for (int32_t r = 0; r < kRows; ++r) tokens[static_cast<size_t>(r)] = kRows - 1 - r;
    for (auto _ : state)
      v.add_scaled_rows(scales.data(), rows.even.data(), kCols, tokens.data(), kRows, kCols,
                        rows.hidden.data(), kCols);
  });
  for (const auto& [name, dtype, swiglu] :
       {std::tuple("pack/swiglu/i8", DType::i8, true), std::tuple("pack/even/i8", DType::i8, false),
        std::tuple("pack/even/bf16", DType::bf16, false)}) {
    add(name, [&v, isa, dtype = dtype, swiglu = swiglu](::benchmark::State& state) {
      Context c(isa);
      Rows rows(v);
      const float* x = (swiglu ? rows.hidden : rows.even).data();
      const auto packed = ops::pack(make_view(x, {kRows, kCols}), dtype, c.ctx);
      for (auto _ : state) {
        for (int64_t r = 0; r < kRows; ++r) v.pack_row(x + r * kCols, r, *packed);
      }
      state.counters["wide"] = dtype == DType::i8 ? packed->n_wide[0] : 0;
    });
  }
}

void run_wide(::benchmark::State& state, kernels::cpu::Isa isa, WeightFormat format) {
  Context c(isa);
  const Rows rows(kernels::cpu::vector_kernels(isa));
  constexpr int64_t kPanels = 32;
  const Matrix m(format, kPanels * kPanelRows, kCols);
  std::vector<float> out(static_cast<size_t>(kRows * kPanels * kPanelRows));
  const auto packed = ops::pack(make_view(rows.hidden.data(), {kRows, kCols}), DType::i8, c.ctx);
  const kernels::cpu::MatmulTask task = {.x = &*packed,
                                         .n_rows = kRows,
                                         .w = &m.matrix,
                                         .n_panels = kPanels,
                                         .out = out.data(),
                                         .out_stride = kPanels * kPanelRows};
  const kernels::cpu::MatmulKernel add_wide = kernels::cpu::find_add_wide(isa);
  for (auto _ : state) add_wide(task);
  int64_t n_wide = 0;
  for (int64_t r = 0; r < kRows; ++r) n_wide += packed->n_wide[r];
  state.counters["wide"] = static_cast<double>(n_wide) / kRows;
}

const int kRegistered = [] {
  for (kernels::cpu::Isa isa : kernels::cpu::supported_isas()) {
    if (isa == kernels::cpu::Isa::reference) continue;
    register_rows(isa);
    for (const WeightFormat format : {WeightFormat::int8, WeightFormat::int4}) {
      const std::string name =
          "add_wide/" + std::string(to_string(format)) + "/" + std::string(to_string(isa));
      ::benchmark::RegisterBenchmark(
          name.c_str(), [isa, format](::benchmark::State& state) { run_wide(state, isa, format); });
    }
  }
  return 0;
}();

}  // namespace
}  // namespace exo::bench
