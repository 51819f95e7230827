// The same operations, sizes and checks as collectives_bench, between MPI processes.
//
//   mpirun --oversubscribe -np 16 collectives_mpi
//
// Prints a line per case: operation, ranks, bytes, microseconds per call (the best of many repetitions, each as long as
// its slowest rank).
#include <mpi.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <vector>

namespace {

float value_at(int rank, std::size_t i) {
  return static_cast<float>((i + static_cast<std::size_t>(rank) * 5) % 7);
}

enum class Operation { all_reduce, all_to_all, all_gather, reduce_scatter, broadcast };
constexpr const char* kNames[] = {"all_reduce", "all_to_all", "all_gather", "reduce_scatter", "broadcast"};

void call(Operation operation, const std::vector<float>& in, std::vector<float>& out, int ranks) {
  const int part = static_cast<int>(in.size()) / ranks;
  switch (operation) {
    case Operation::all_reduce:
      MPI_Allreduce(in.data(), out.data(), static_cast<int>(in.size()), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
      break;
    case Operation::all_to_all:
      MPI_Alltoall(in.data(), part, MPI_FLOAT, out.data(), part, MPI_FLOAT, MPI_COMM_WORLD);
      break;
    case Operation::all_gather:
      MPI_Allgather(in.data(), part, MPI_FLOAT, out.data(), part, MPI_FLOAT, MPI_COMM_WORLD);
      break;
    case Operation::reduce_scatter:
      MPI_Reduce_scatter_block(in.data(), out.data(), part, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
      break;
    case Operation::broadcast:
      MPI_Bcast(out.data(), static_cast<int>(out.size()), MPI_FLOAT, 0, MPI_COMM_WORLD);
      break;
  }
}

double seconds_of(Operation operation, const std::vector<float>& in, std::vector<float>& out, int ranks, int times) {
  MPI_Barrier(MPI_COMM_WORLD);
  const double begin = MPI_Wtime();
  for (int i = 0; i < times; ++i) call(operation, in, out, ranks);
  double took = (MPI_Wtime() - begin) / times;
  MPI_Allreduce(MPI_IN_PLACE, &took, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return took;
}

double measure(Operation operation, std::size_t bytes, int rank, int ranks, double budget) {
  std::vector<float> in(bytes / sizeof(float) / static_cast<std::size_t>(ranks) * static_cast<std::size_t>(ranks));
  std::vector<float> out(in.size());
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = value_at(rank, i);
  call(operation, in, out, ranks);
  if (operation == Operation::all_reduce) {
    float expected = 0;
    for (int r = 0; r < ranks; ++r) expected += value_at(r, 1);
    if (out[1] != expected) MPI_Abort(MPI_COMM_WORLD, 1);
  }
  double best = seconds_of(operation, in, out, ranks, 1);
  double spent = best;
  while (spent < budget) {
    const int times = best > 0.002 ? 1 : static_cast<int>(std::min(1000.0, 0.002 / std::max(best, 1e-7))) + 1;
    const double took = seconds_of(operation, in, out, ranks, times);
    best = std::min(best, took);
    spent += took * times;
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0;
  int ranks = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  for (const Operation operation : {Operation::all_reduce, Operation::all_to_all, Operation::all_gather,
                                    Operation::reduce_scatter, Operation::broadcast}) {
    for (const std::size_t bytes : {std::size_t{64} << 10, std::size_t{1} << 20, std::size_t{8} << 20}) {
      const double seconds = measure(operation, bytes, rank, ranks, 0.5);
      if (rank == 0) std::printf("%s %d %zu %.3f\n", kNames[static_cast<int>(operation)], ranks, bytes, seconds * 1e6);
    }
  }
  MPI_Finalize();
}
