#include "tests/collectives/generated_programs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>

#include "tests/collectives/helpers.h"

namespace shardproof::testing {

namespace {

// One operation of the program. All ranks go through the operations in the same order, so that any subset of them, on
// any groups, is a correct program.
struct Op {
  Operation operation;
  std::size_t group;
  std::size_t count;
  int root;  // also: how far an exchange rotates; the sender of a message
  int peer;  // the receiver of a message
  Algorithm algorithm;
};

struct Plan {
  int ranks;
  std::vector<std::vector<GlobalRank>> groups;
  std::vector<Op> ops;
};

class Generator {
 public:
  explicit Generator(std::uint64_t seed) : random_(seed) {}

  int below(int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(random_); }

  Plan plan() {
    Plan plan;
    plan.ranks = 1 + below(12);
    const int groups = 1 + below(5);
    for (int g = 0; g < groups; ++g) {
      std::vector<GlobalRank> members = all_ranks(plan.ranks);
      std::shuffle(members.begin(), members.end(), random_);
      members.resize(1 + static_cast<std::size_t>(below(plan.ranks)));
      plan.groups.push_back(members);
    }
    const int ops = 1 + below(20);
    for (int i = 0; i < ops; ++i) plan.ops.push_back(op(plan));
    return plan;
  }

 private:
  Op op(const Plan& plan) {
    constexpr Operation kOperations[] = {Operation::all_reduce, Operation::all_gather, Operation::reduce_scatter,
                                         Operation::all_to_all, Operation::broadcast,  Operation::reduce,
                                         Operation::barrier,    Operation::send,       Operation::exchange};
    Op op;
    op.operation = kOperations[below(9)];
    op.group = static_cast<std::size_t>(below(static_cast<int>(plan.groups.size())));
    const int size = static_cast<int>(plan.groups[op.group].size());
    if (op.operation == Operation::send && size == 1) op.operation = Operation::barrier;
    // Now and then large enough to be split over threads.
    op.count = static_cast<std::size_t>(below(40) == 0 ? 20000 : below(4) == 0 ? 0 : below(50));
    op.root = below(size);
    op.peer = size == 1 ? 0 : (op.root + 1 + below(size - 1)) % size;
    op.algorithm =
        op.operation == Operation::all_reduce ? kAlgorithms[static_cast<std::size_t>(below(5))] : Algorithm::rank_order;
    return op;
  }

  std::mt19937_64 random_;
};

std::size_t uneven(const Op& op, int from, int to) {
  return (op.count + static_cast<std::size_t>(from * 3 + to)) % 5;
}

// Sum over the members of a small integer.
int sum_at(int ranks, std::size_t i) {
  int sum = 0;
  for (int r = 0; r < ranks; ++r) sum += value_at<int>(r, i);
  return sum;
}

Task<> check_all_to_all(const Op& op, Communicator comm) {
  const int me = to_int(comm.rank());
  std::vector<std::size_t> send_counts;
  std::vector<std::size_t> recv_counts;
  std::vector<int> in;
  std::vector<int> expected;
  for (int other = 0; other < comm.size(); ++other) {
    send_counts.push_back(uneven(op, me, other));
    recv_counts.push_back(uneven(op, other, me));
    in.insert(in.end(), send_counts.back(), me * 100 + other);
    expected.insert(expected.end(), recv_counts.back(), other * 100 + me);
  }
  std::vector<int> out(expected.size());
  co_await comm.all_to_all_v(in, send_counts, out, recv_counts);
  EXPECT_EQ(out, expected);
}

Task<> check_exchange(const Op& op, Communicator comm) {
  const int me = to_int(comm.rank());
  const int size = comm.size();
  const std::vector<int> out = make_input<int>(me, op.count);
  std::vector<int> in(op.count);
  const std::vector<Send> sends(1, Send(out, GroupRank{(me + op.root) % size}));
  const std::vector<Recv> recvs(1, Recv(in, GroupRank{(me + size - op.root) % size}));
  co_await comm.exchange({sends, recvs});
  EXPECT_EQ(in, make_input<int>((me + size - op.root) % size, op.count));
}

Task<> check_reduction(const Op& op, Communicator comm) {
  const int me = to_int(comm.rank());
  const auto size = static_cast<std::size_t>(comm.size());
  const bool scatter = op.operation == Operation::reduce_scatter;
  const std::vector<int> in = make_input<int>(me, scatter ? op.count * size : op.count);
  std::vector<int> out(op.operation == Operation::reduce && me != op.root ? 0 : op.count);
  if (scatter) {
    co_await comm.reduce_scatter(in, out);
  } else if (op.operation == Operation::reduce) {
    co_await comm.reduce(in, out, GroupRank{op.root});
  } else {
    co_await comm.all_reduce(in, out, {.algorithm = op.algorithm, .gpus_per_node = 3});
  }
  const std::size_t begin = scatter ? index(comm.rank()) * op.count : 0;
  bool exact = true;
  for (std::size_t i = 0; i < out.size(); ++i) exact = exact && out[i] == sum_at(comm.size(), begin + i);
  EXPECT_TRUE(exact) << to_string(op.operation);
}

Task<> check_copies(const Op& op, Communicator comm) {
  const int me = to_int(comm.rank());
  std::vector<int> values = make_input<int>(me, op.count);
  if (op.operation == Operation::broadcast) {
    co_await comm.broadcast(values, GroupRank{op.root});
    EXPECT_EQ(values, make_input<int>(op.root, op.count));
  } else if (op.operation == Operation::send) {
    if (me == op.root) co_await comm.send(values, GroupRank{op.peer});
    if (me == op.peer) {
      co_await comm.recv(values, GroupRank{op.root});
      EXPECT_EQ(values, make_input<int>(op.root, op.count));
    }
  } else {
    std::vector<int> all(op.count * static_cast<std::size_t>(comm.size()));
    co_await comm.all_gather(values, all);
    bool exact = true;
    for (std::size_t i = 0; i < all.size(); ++i) {
      exact = exact && all[i] == value_at<int>(static_cast<int>(i / op.count), i % op.count);
    }
    EXPECT_TRUE(exact);
  }
}

Task<> program(const Plan& plan, const World& world, const std::vector<GroupId>& groups, GlobalRank rank) {
  for (const Op& op : plan.ops) {
    const auto& members = plan.groups[op.group];
    if (std::find(members.begin(), members.end(), rank) == members.end()) continue;
    const Communicator comm = world.communicator(groups[op.group], rank);
    switch (op.operation) {
      case Operation::barrier:
        co_await comm.barrier();
        break;
      case Operation::all_to_all:
        co_await check_all_to_all(op, comm);
        break;
      case Operation::exchange:
        co_await check_exchange(op, comm);
        break;
      case Operation::all_reduce:
      case Operation::reduce_scatter:
      case Operation::reduce:
        co_await check_reduction(op, comm);
        break;
      default:
        co_await check_copies(op, comm);
        break;
    }
  }
}

}  // namespace

void run_generated_program(std::uint64_t seed) {
  Generator generator(seed);
  const Plan plan = generator.plan();
  World world(plan.ranks);
  std::vector<GroupId> groups;
  for (const auto& members : plan.groups) groups.push_back(world.add_group("any", members));
  std::unique_ptr<Executor> executor;
  if (generator.below(4) == 0) {
    executor = std::make_unique<DefaultExecutor>(1 + generator.below(3));
  } else {
    executor = std::make_unique<SeededExecutor>(seed, 1 + generator.below(3));
  }

  try {
    world.run(*executor, [&](GlobalRank rank) { return program(plan, world, groups, rank); });
  } catch (const std::exception& error) {
    ADD_FAILURE() << "seed " << seed << ": a correct program was refused: " << error.what();
  }
}

std::uint64_t first_seed() {
  const char* text = std::getenv("SHARDPROOF_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 1;
}

}  // namespace shardproof::testing
