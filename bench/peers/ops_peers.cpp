// The same products by this project, oneDNN and OpenBLAS, one thread each, in one run:
//   sgemm/<library>/m:.../n:.../k:...      y = x w^T
//   expert/<library>/tokens:.../...        the SwiGLU expert; the peers run it as a loop of gemms
// Every pair of results is compared before the first is timed. bench/compare.py --peers tabulates the ratios.
#include <benchmark/benchmark.h>
#ifdef SHARDPROOF_WITH_OPENBLAS
#include <cblas.h>
#endif
#ifdef SHARDPROOF_WITH_ONEDNN
#include <dnnl.h>
#endif

#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <string>

#include "bench/ops_shapes.h"
#include "ops/expert.h"
#include "ops/linear.h"
#include "ops/swiglu.h"

namespace shardproof::bench {
namespace {

using ops::Index;
using ops::Matrix;
using ops::MatrixView;

using Gemm = void (*)(MatrixView<const float> x, MatrixView<const float> w, MatrixView<float> y);

struct Library {
  std::string name;
  Gemm gemm;
};

std::vector<Library> libraries() {
  std::vector<Library> result{{"shardproof", &ops::linear<float>}};
#ifdef SHARDPROOF_WITH_ONEDNN
  result.push_back({"onednn", [](MatrixView<const float> x, MatrixView<const float> w, MatrixView<float> y) {
                      dnnl_sgemm('N', 'T', y.rows, y.cols, x.cols, 1, x.data, x.stride, w.data, w.stride, 0, y.data,
                                 y.stride);
                    }});
#endif
#ifdef SHARDPROOF_WITH_OPENBLAS
  result.push_back({"openblas", [](MatrixView<const float> x, MatrixView<const float> w, MatrixView<float> y) {
                      const auto size = [](Index value) { return static_cast<blasint>(value); };
                      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, size(y.rows), size(y.cols), size(x.cols), 1,
                                  x.data, size(x.stride), w.data, size(w.stride), 0, y.data, size(y.stride));
                    }});
#endif
  return result;
}

bool agree(const Matrix<float>& a, const Matrix<float>& b) {
  double difference = 0, norm = 0;
  for (Index i = 0; i < a.size(); ++i) {
    const double x = static_cast<double>(a.data()[i]), y = static_cast<double>(b.data()[i]);
    difference = std::max(difference, std::abs(x - y));
    norm = std::max(norm, std::abs(x));
  }
  return norm > 0 && difference <= 1e-4 * norm;
}

void sgemm(benchmark::State& state, const Library& library, Index m, GemmShape shape) {
  const Matrix<float> x = filled<float>(m, shape.k, 1), w = filled<float>(shape.n, shape.k, 2);
  Matrix<float> y(m, shape.n), expected(m, shape.n);
  ops::linear<float>(x, w, expected);
  library.gemm(x, w, y);
  if (!agree(expected, y)) return state.SkipWithError("results differ");
  for (auto _ : state) library.gemm(x, w, y);
  const double flops = ops::linear_cost(m, shape.n, shape.k, 4).flops * static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(1e-9 * flops, benchmark::Counter::kIsRate);
}

void expert(benchmark::State& state, const Library& library, Index tokens, ExpertShape shape) {
  const Matrix<float> x = filled<float>(tokens, shape.hidden, 1), gate = filled<float>(shape.width, shape.hidden, 2),
                      up = filled<float>(shape.width, shape.hidden, 3),
                      down = filled<float>(shape.hidden, shape.width, 4);
  Matrix<float> y(tokens, shape.hidden), expected(tokens, shape.hidden);
  Matrix<float> g(tokens, shape.width), u(tokens, shape.width);
  const bool own = library.name == "shardproof";
  const auto run = [&] {
    if (own) return ops::expert<float>(x, gate, up, down, ops::Format::fp32, y);
    library.gemm(x, gate, g);
    library.gemm(x, up, u);
    ops::swiglu<float>(g, u, ops::Format::fp32, g);
    library.gemm(g, down, y);
  };
  ops::expert<float>(x, gate, up, down, ops::Format::fp32, expected);
  run();
  if (!agree(expected, y)) return state.SkipWithError("results differ");
  for (auto _ : state) run();
  const double flops =
      ops::expert_cost(tokens, shape.hidden, shape.width, 4).flops * static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(1e-9 * flops, benchmark::Counter::kIsRate);
}

void register_all() {
  static const std::vector<Library> all = libraries();
  for (const GemmShape& shape : kGemmShapes) {
    for (const Index m : kGemmRows) {
      if (!runs(m, shape)) continue;
      for (const Library& library : all) {
        const std::string name = "sgemm/" + library.name + "/m:" + std::to_string(m) + "/n:" + std::to_string(shape.n) +
                                 "/k:" + std::to_string(shape.k);
        benchmark::RegisterBenchmark(name.c_str(), sgemm, library, m, shape);
      }
    }
  }
  for (const ExpertShape& shape : kExpertShapes) {
    for (const Index tokens : {1, 4, 16, 64, 256}) {
      if (tokens * shape.hidden * shape.width > Index{3} << 30) continue;
      for (const Library& library : all) {
        const std::string name = "expert/" + library.name + "/tokens:" + std::to_string(tokens) +
                                 "/hidden:" + std::to_string(shape.hidden) + "/width:" + std::to_string(shape.width);
        benchmark::RegisterBenchmark(name.c_str(), expert, library, tokens, shape);
      }
    }
  }
}

}  // namespace
}  // namespace shardproof::bench

int main(int argc, char** argv) {
  // One thread each. An OpenMP runtime reads its environment when it is loaded, before main: start over with it set.
  if (std::getenv("OMP_NUM_THREADS") == nullptr) {
    setenv("OMP_NUM_THREADS", "1", 1);
    execv("/proc/self/exe", argv);
  }
#ifdef SHARDPROOF_WITH_OPENBLAS
  openblas_set_num_threads(1);
#endif
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  shardproof::bench::register_all();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
