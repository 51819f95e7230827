// Every way in which ranks can misuse collectives ends the run by itself, with an error that names what is wrong.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <string>

#include "tests/collectives/helpers.h"

namespace shardproof {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::OneGroup;

template <class Error>
Error error_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const Error& error) {
    return error;
  }
  throw std::logic_error("the run ended without the expected error");
}

using Program = std::function<Task<>(Communicator)>;

// What every error must name of a call: its group, and the place where it was written, here and in the text.
void expect_named(const CallInfo& call, const std::string& text) {
  EXPECT_THAT(call.where.file_name(), HasSubstr("tests/collectives/diagnosis_test.cpp"));
  EXPECT_GT(call.where.line(), 0u);
  EXPECT_THAT(call.group, Not(IsEmpty()));
  EXPECT_THAT(text, HasSubstr(call.to_string()));
  EXPECT_THAT(call.to_string(), HasSubstr(fmt::format("rank {}: {} #{} in {}", to_int(call.rank), call.operation_name(),
                                                      call.sequence, call.group)));
  EXPECT_THAT(call.to_string(), HasSubstr(fmt::format("diagnosis_test.cpp:{}", call.where.line())));
}

CollectiveMismatch mismatch_of(int ranks, const Program& program) {
  CollectiveMismatch error = error_of<CollectiveMismatch>([&] { OneGroup(ranks).run(program); });
  expect_named(error.first(), error.what());
  expect_named(error.second(), error.what());
  EXPECT_NE(error.first().rank, error.second().rank);
  EXPECT_THAT(error.what(), HasSubstr(error.problem()));
  EXPECT_THAT(error.problem(), HasSubstr(fmt::format("rank {}", to_int(error.first().rank))));
  EXPECT_THAT(error.problem(), HasSubstr(fmt::format("rank {}", to_int(error.second().rank))));
  return error;
}

// Of a rendezvous, the first few calls are in the text; all are in the data. Whoever is absent because it waits
// elsewhere stands there with its own call.
void expect_named(const DeadlockError& error) {
  ASSERT_THAT(error.graph().rendezvous, Not(IsEmpty()));
  EXPECT_THAT(error.graph().causes, Not(IsEmpty()));
  for (const Rendezvous& rendezvous : error.graph().rendezvous) {
    ASSERT_THAT(rendezvous.arrived, Not(IsEmpty()));
    ASSERT_THAT(rendezvous.absent, Not(IsEmpty()));
    expect_named(rendezvous.arrived.front(), error.what());
    for (const AbsentRank& absent : rendezvous.absent) {
      EXPECT_EQ(absent.why == Absence::waiting, absent.at >= 0);
      if (absent.at < 0) continue;
      const auto& there = error.graph().rendezvous.at(static_cast<std::size_t>(absent.at)).arrived;
      EXPECT_TRUE(
          std::any_of(there.begin(), there.end(), [&](const CallInfo& call) { return call.rank == absent.rank; }));
    }
  }
}
DeadlockError deadlock_of(const std::function<void()>& run) {
  DeadlockError error = error_of<DeadlockError>(run);
  expect_named(error);
  return error;
}
DeadlockError deadlock_of(int ranks, const Program& program) {
  return deadlock_of([&] { OneGroup(ranks).run(program); });
}

bool is(Communicator comm, int rank) {
  return to_int(comm.rank()) == rank;
}

std::uint32_t line_of(SourceLocation where = SourceLocation::current()) {
  return where.line();
}

TEST(SourceLocation, IsThatOfTheCallThatLeavesItOut) {
  EXPECT_EQ(line_of(), __LINE__);
  EXPECT_EQ(std::string_view(SourceLocation::current().function_name()), "TestBody");
}

TEST(Mismatch, OfOperationsNamesTheOddRankBothCallsAndBothPlaces) {
  const CollectiveMismatch error = mismatch_of(4, [](Communicator comm) -> Task<> {
    std::vector<float> values(8);
    std::vector<float> all(32);
    co_await comm.barrier();
    if (is(comm, 2)) {
      co_await comm.all_gather(values, all);
    } else {
      co_await comm.all_reduce(values);
    }
  });

  EXPECT_EQ(error.kind(), MismatchKind::operation);
  EXPECT_EQ(error.first().rank, GlobalRank{2});
  EXPECT_EQ(error.first().operation, Operation::all_gather);
  EXPECT_EQ(error.second().operation, Operation::all_reduce);
  EXPECT_EQ(error.first().sequence, 1u);
  EXPECT_EQ(error.first().group, "world[0]");
  EXPECT_NE(error.first().where.line(), error.second().where.line());
  EXPECT_THAT(error.first().where.file_name(), HasSubstr("diagnosis_test.cpp"));
  EXPECT_EQ(error.problem(),
            "in world[0], rank 2 calls all_gather where 3 other ranks (rank 0 for one) have all_reduce");
}

TEST(Mismatch, NamesRankZeroWhenRankZeroIsTheOddOne) {
  const CollectiveMismatch error = mismatch_of(5, [](Communicator comm) -> Task<> {
    std::vector<float> values(is(comm, 0) ? 7u : 8u);
    co_await comm.all_reduce(values);
  });

  EXPECT_EQ(error.kind(), MismatchKind::count);
  EXPECT_EQ(error.first().rank, GlobalRank{0});
  EXPECT_EQ(error.first().elements, 7u);
  EXPECT_EQ(error.second().elements, 8u);
}

TEST(Mismatch, OfElementTypes) {
  const CollectiveMismatch error = mismatch_of(3, [](Communicator comm) -> Task<> {
    std::vector<float> floats(4);
    std::vector<int> ints(4);
    if (is(comm, 1)) {
      co_await comm.all_reduce(ints);
    } else {
      co_await comm.all_reduce(floats);
    }
  });

  EXPECT_EQ(error.kind(), MismatchKind::type);
  EXPECT_EQ(error.first().rank, GlobalRank{1});
  EXPECT_EQ(error.first().type, ElementType::i32);
}

TEST(Mismatch, OfRoots) {
  const CollectiveMismatch error = mismatch_of(3, [](Communicator comm) -> Task<> {
    std::vector<float> values(4);
    co_await comm.broadcast(values, GroupRank{is(comm, 2) ? 1 : 0});
  });

  EXPECT_EQ(error.kind(), MismatchKind::root);
  EXPECT_EQ(error.first().rank, GlobalRank{2});
  EXPECT_EQ(error.first().peer, 1);
}

TEST(Mismatch, OfReductionsAlgorithmsAndFormats) {
  const auto run = [](ReduceOptions odd) {
    return mismatch_of(3, [odd](Communicator comm) -> Task<> {
      std::vector<float> values(4);
      const ReduceOptions options = is(comm, 1) ? odd : ReduceOptions{};
      co_await comm.all_reduce(values, options);
    });
  };

  const CollectiveMismatch reduction = run({.reduction = Reduction::max});
  const CollectiveMismatch algorithm = run({.algorithm = Algorithm::ring});
  const CollectiveMismatch wire = run({.wire = {.name = "bf16", .bytes = 2}});
  const CollectiveMismatch accumulate = run({.accumulate = {.name = "fp64", .bytes = 8}});

  for (const CollectiveMismatch& error : {reduction, algorithm, wire, accumulate}) {
    EXPECT_EQ(error.first().rank, GlobalRank{1});
    EXPECT_EQ(error.first().elements, 4u);
  }
  EXPECT_EQ(reduction.kind(), MismatchKind::reduction);
  EXPECT_THAT(reduction.problem(), HasSubstr("has reduction max where 2 other ranks (rank 0 for one) have sum"));
  EXPECT_EQ(algorithm.kind(), MismatchKind::algorithm);
  EXPECT_THAT(algorithm.problem(),
              HasSubstr("has algorithm ring where 2 other ranks (rank 0 for one) have rank_order"));
  EXPECT_EQ(wire.kind(), MismatchKind::format);
  EXPECT_THAT(wire.problem(), HasSubstr("bf16/native"));
  EXPECT_EQ(accumulate.kind(), MismatchKind::format);
}

TEST(Mismatch, OfNodeSizesOfAHierarchicalAllReduce) {
  const CollectiveMismatch error = mismatch_of(4, [](Communicator comm) -> Task<> {
    std::vector<float> values(4);
    co_await comm.all_reduce(values, {.algorithm = Algorithm::hierarchical, .gpus_per_node = is(comm, 3) ? 4 : 2});
  });

  EXPECT_EQ(error.kind(), MismatchKind::algorithm);
  EXPECT_EQ(error.first().rank, GlobalRank{3});
  EXPECT_THAT(error.problem(), HasSubstr("gpus_per_node 4"));
}

TEST(Mismatch, OfRootsOfAReduce) {
  const CollectiveMismatch error = mismatch_of(4, [](Communicator comm) -> Task<> {
    std::vector<float> values(4);
    std::vector<float> out(4);
    co_await comm.barrier();
    co_await comm.reduce(values, out, GroupRank{is(comm, 1) ? 1 : 0});
  });

  EXPECT_EQ(error.kind(), MismatchKind::root);
  EXPECT_EQ(error.first().rank, GlobalRank{1});
  EXPECT_EQ(error.first().sequence, 1u);
}

TEST(Mismatch, OfACountAndItsVForm) {
  const CollectiveMismatch error = mismatch_of(3, [](Communicator comm) -> Task<> {
    std::vector<float> in(2);
    std::vector<float> out(6);
    const std::vector<std::size_t> counts(3, 2);
    if (is(comm, 2)) {
      co_await comm.all_gather_v(in, out, counts);
    } else {
      co_await comm.all_gather(in, out);
    }
  });

  EXPECT_EQ(error.kind(), MismatchKind::operation);
  EXPECT_THAT(error.problem(), HasSubstr("calls all_gather_v where 2 other ranks (rank 0 for one) have all_gather"));
}

TEST(Mismatch, OfPerRankCounts) {
  const CollectiveMismatch error = mismatch_of(2, [](Communicator comm) -> Task<> {
    const std::vector<std::size_t> counts =
        is(comm, 0) ? std::vector<std::size_t>(2, 2) : std::vector<std::size_t>(2, 3);
    std::vector<float> in(counts[0]);
    std::vector<float> out(counts[0] * 2);
    co_await comm.all_gather_v(in, out, counts);
  });

  EXPECT_EQ(error.kind(), MismatchKind::count);
  EXPECT_EQ(error.problem(), "in world[0], rank 1 gives, for rank 0, count 3 where rank 0 has 2");
}

TEST(Mismatch, OfAnAllToAllEdgeNamesTheEdge) {
  const CollectiveMismatch error = mismatch_of(4, [](Communicator comm) -> Task<> {
    std::vector<std::size_t> send(4, 2);
    const std::vector<std::size_t> recv(4, 2);
    if (is(comm, 1)) send[3] = 5;
    std::vector<float> in(is(comm, 1) ? 11u : 8u);
    std::vector<float> out(8);
    co_await comm.all_to_all_v(in, send, out, recv);
  });

  EXPECT_EQ(error.kind(), MismatchKind::edge);
  EXPECT_EQ(error.first().rank, GlobalRank{1});
  EXPECT_EQ(error.second().rank, GlobalRank{3});
  EXPECT_EQ(error.problem(),
            "in world[0], rank 1 sends 5 elements to rank 3, which expects 2 from it (edge send[1->3])");
}

TEST(Mismatch, OfAMessagesCount) {
  const CollectiveMismatch error = mismatch_of(2, [](Communicator comm) -> Task<> {
    std::vector<float> values(is(comm, 0) ? 4u : 3u);
    if (is(comm, 0)) {
      co_await comm.send(values, GroupRank{1});
    } else {
      co_await comm.recv(values, GroupRank{0});
    }
  });

  EXPECT_EQ(error.kind(), MismatchKind::message);
  EXPECT_EQ(error.first().operation, Operation::send);
  EXPECT_EQ(error.second().operation, Operation::recv);
  EXPECT_THAT(error.problem(), HasSubstr("rank 0 sends 4 f32 to rank 1, which expects 3 f32"));
}

TEST(Mismatch, OfTwoCollectivesSwappedOnOneRank) {
  const CollectiveMismatch error = mismatch_of(3, [](Communicator comm) -> Task<> {
    std::vector<float> values(3);
    std::vector<float> all(9);
    if (is(comm, 1)) co_await comm.all_gather(values, all);
    co_await comm.all_reduce(values);
    if (!is(comm, 1)) co_await comm.all_gather(values, all);
  });

  EXPECT_EQ(error.kind(), MismatchKind::operation);
  EXPECT_EQ(error.first().rank, GlobalRank{1});
  EXPECT_EQ(error.first().sequence, 0u);
}

TEST(Mismatch, IsFoundAlsoWhenARankNeverComes) {
  const CollectiveMismatch error = mismatch_of(4, [](Communicator comm) -> Task<> {
    std::vector<float> values(is(comm, 1) ? 2u : 3u);
    if (!is(comm, 3)) co_await comm.all_reduce(values);
  });

  EXPECT_EQ(error.kind(), MismatchKind::count);
  EXPECT_EQ(error.first().rank, GlobalRank{1});
}

TEST(Mismatch, OfBuffersSharedBetweenRanks) {
  std::vector<float> shared(16);
  const CollectiveMismatch error = mismatch_of(
      2, [&shared](Communicator comm) -> Task<> { co_await comm.all_reduce(std::span(shared).first(10).last(8)); });

  EXPECT_EQ(error.kind(), MismatchKind::overlap);
  EXPECT_THAT(error.problem(), HasSubstr("rank 0 and rank 1 overlap"));
}

TEST(Mismatch, OfAMessageIntoItsOwnSource) {
  std::vector<float> shared(8);
  const CollectiveMismatch error = mismatch_of(2, [&shared](Communicator comm) -> Task<> {
    if (is(comm, 0)) {
      co_await comm.send(std::span(shared).first(5), GroupRank{1});
    } else {
      co_await comm.recv(std::span(shared).last(5), GroupRank{0});
    }
  });

  EXPECT_EQ(error.kind(), MismatchKind::overlap);
  EXPECT_THAT(error.problem(), HasSubstr("what rank 0 sends and where rank 1 receives it overlap"));
}

TEST(Mismatch, OfAMessagesType) {
  const CollectiveMismatch error = mismatch_of(2, [](Communicator comm) -> Task<> {
    std::vector<float> floats(4);
    std::vector<int> ints(4);
    if (is(comm, 0)) {
      co_await comm.send(floats, GroupRank{1});
    } else {
      co_await comm.recv(ints, GroupRank{0});
    }
  });

  EXPECT_EQ(error.kind(), MismatchKind::message);
  EXPECT_THAT(error.problem(), HasSubstr("rank 0 sends 4 f32 to rank 1, which expects 4 i32"));
}

TEST(Mismatch, IsNotForgottenWhenTheSameBuffersWereRightBefore) {
  // The search for overlaps remembers what it found right; new buffers must be looked at again.
  std::vector<float> shared(16);
  const CollectiveMismatch error = mismatch_of(2, [&shared](Communicator comm) -> Task<> {
    const auto own = std::span(shared).subspan(is(comm, 0) ? 0 : 8, 8);
    for (int i = 0; i < 3; ++i) co_await comm.all_reduce(own);
    co_await comm.all_reduce(std::span(shared).subspan(is(comm, 0) ? 1 : 8, 8));
  });

  EXPECT_EQ(error.kind(), MismatchKind::overlap);
  EXPECT_EQ(error.first().sequence, 3u);
}

TEST(InvalidCalls, OfACommunicatorOfAnotherRankAreRefused) {
  for (const std::uint64_t seed : {1u, 2u, 3u, 4u, 5u}) {
    OneGroup group(3);
    SeededExecutor executor(seed);
    const auto program = [&](GlobalRank rank) -> Task<> {
      const Communicator borrowed = group.world.communicator(group.all, rank == GlobalRank{2} ? GlobalRank{0} : rank);
      co_await borrowed.barrier();
    };

    const InvalidCall error = error_of<InvalidCall>([&] { group.world.run(executor, program); });

    EXPECT_THAT(error.what(), HasSubstr("the communicator of rank 0 in world[0] is used by more than one rank"));
  }
}

TEST(InvalidCalls, OfCountsThatWrapAroundAreRefused) {
  const InvalidCall error = error_of<InvalidCall>([] {
    OneGroup(2).run([](Communicator comm) -> Task<> {
      // The sum of these counts is 4 modulo 2^64.
      const std::vector<std::size_t> counts{std::numeric_limits<std::size_t>::max(), 5};
      std::vector<float> in(4);
      std::vector<float> out(4);
      co_await comm.all_to_all_v(in, counts, out, counts);
    });
  });

  EXPECT_THAT(error.what(), HasSubstr("the input has 4 elements, not"));
}

TEST(InvalidCalls, OfOverlappingBuffersAreRefused) {
  const auto run = [](const Program& program) { return error_of<InvalidCall>([&] { OneGroup(2).run(program); }); };

  const InvalidCall all_reduce = run([](Communicator comm) -> Task<> {
    std::vector<float> values(10);
    co_await comm.all_reduce(std::span(values).first(8), std::span(values).last(8));
  });
  const InvalidCall all_to_all = run([](Communicator comm) -> Task<> {
    std::vector<float> values(10);
    co_await comm.all_to_all(values, values);
  });
  const InvalidCall all_gather = run([](Communicator comm) -> Task<> {
    std::vector<float> values(10);
    const std::size_t other = is(comm, 0) ? 5 : 0;
    co_await comm.all_gather(std::span(values).subspan(other, 5), values);
  });

  EXPECT_THAT(all_reduce.what(), HasSubstr("overlaps"));
  EXPECT_EQ(all_to_all.call().operation, Operation::all_to_all);
  EXPECT_EQ(all_gather.call().rank, GlobalRank{0});
}

TEST(InvalidCalls, OfSizesAndRootsThatCannotBeAreRefused) {
  const auto what = [](const Program& program) {
    return std::string(error_of<InvalidCall>([&] { OneGroup(3).run(program); }).what());
  };

  EXPECT_THAT(what([](Communicator comm) -> Task<> {
                std::vector<float> a(4);
                std::vector<float> b(5);
                co_await comm.all_reduce(a, b);
              }),
              HasSubstr("the output has 5 elements, not 4"));
  EXPECT_THAT(what([](Communicator comm) -> Task<> {
                std::vector<float> a(4);
                std::vector<float> b(4);
                co_await comm.all_to_all(a, b);
              }),
              HasSubstr("not divisible by 3 ranks"));
  EXPECT_THAT(what([](Communicator comm) -> Task<> {
                std::vector<float> a(4);
                co_await comm.broadcast(a, GroupRank{3});
              }),
              HasSubstr("rank 3 of the group does not exist"));
  EXPECT_THAT(what([](Communicator comm) -> Task<> {
                std::vector<float> a(3);
                std::vector<float> b(1);
                co_await comm.reduce_scatter(a, b, {.algorithm = Algorithm::tree});
              }),
              HasSubstr("reduce_scatter has no algorithm tree"));
  EXPECT_THAT(what([](Communicator comm) -> Task<> {
                std::vector<float> a(3);
                co_await comm.send(a, comm.rank());
              }),
              HasSubstr("to itself only inside an exchange"));
}

TEST(Deadlock, NamesTheRankThatSkipsACollective) {
  // The zero-token rank: it has nothing to send and leaves the dispatch out.
  const DeadlockError error = deadlock_of(4, [](Communicator comm) -> Task<> {
    std::vector<float> in(4);
    std::vector<float> out(4);
    co_await comm.barrier();
    if (!is(comm, 2)) co_await comm.all_to_all(in, out);
  });

  ASSERT_EQ(error.graph().rendezvous.size(), 1u);
  const Rendezvous& rendezvous = error.graph().rendezvous[0];
  EXPECT_EQ(rendezvous.operation, Operation::all_to_all);
  EXPECT_EQ(rendezvous.sequence, 1u);
  EXPECT_EQ(rendezvous.arrived.size(), 3u);
  ASSERT_EQ(rendezvous.absent.size(), 1u);
  EXPECT_EQ(rendezvous.absent[0].rank, GlobalRank{2});
  EXPECT_EQ(rendezvous.absent[0].why, Absence::finished);
  EXPECT_EQ(rendezvous.absent[0].calls, 1u);
  EXPECT_THAT(error.what(),
              HasSubstr("rank 2 has returned after 1 collectives in world[0] and never joins all_to_all #1"));
  EXPECT_THAT(error.what(), HasSubstr("diagnosis_test.cpp"));
}

TEST(Deadlock, NamesTheRankThatCallsOneTooMany) {
  const DeadlockError error = deadlock_of(4, [](Communicator comm) -> Task<> {
    co_await comm.barrier();
    if (is(comm, 1)) co_await comm.barrier();
  });

  EXPECT_THAT(error.what(), HasSubstr("rank 1 calls barrier #1 in world[0], one more than rank 0, which has returned"));
}

TEST(Deadlock, NamesASkipThatALaterCallHides) {
  // Rank 1 skips the all_gather and the others come to its next call: a mismatch, not a deadlock.
  const CollectiveMismatch error = mismatch_of(3, [](Communicator comm) -> Task<> {
    std::vector<float> values(1);
    std::vector<float> all(3);
    if (!is(comm, 1)) co_await comm.all_gather(values, all);
    co_await comm.barrier();
  });

  EXPECT_EQ(error.first().rank, GlobalRank{1});
  EXPECT_EQ(error.first().operation, Operation::barrier);
}

TEST(Deadlock, ShowsEveryGroupThatAwaitsARankOneCallBehind) {
  // Rank 0 is in two groups and leaves one call out in each; its partners wait in both.
  World world(3);
  const GroupId first = world.add_group("tp", {GlobalRank{0}, GlobalRank{1}});
  const GroupId second = world.add_group("ep", {GlobalRank{0}, GlobalRank{2}});
  const auto program = [&](GlobalRank rank) -> Task<> {
    if (rank == GlobalRank{0}) {
      co_await world.communicator(first, rank).barrier();
      co_await world.communicator(second, rank).barrier();
    } else {
      const Communicator comm = world.communicator(rank == GlobalRank{1} ? first : second, rank);
      for (int i = 0; i < 2; ++i) co_await comm.barrier();
    }
  };
  SeededExecutor executor(1);

  const DeadlockError error = deadlock_of([&] { world.run(executor, program); });

  ASSERT_EQ(error.graph().rendezvous.size(), 2u);
  EXPECT_THAT(error.what(), HasSubstr("rank 0 is awaited in 2 places at once: tp[0] (rank 1 at barrier #1, it has made "
                                      "1), ep[0] (rank 2 at barrier #1, it has made 1)"));
}

TEST(Deadlock, OfARankThatLeavesACallOutIsNotTakenForTheOppositeOrderAlone) {
  World world(2);
  const GroupId tp = world.add_group("tp", {GlobalRank{0}, GlobalRank{1}});
  const GroupId dp = world.add_group("dp", {GlobalRank{0}, GlobalRank{1}});
  const auto program = [&](GlobalRank rank) -> Task<> {
    co_await world.communicator(tp, rank).barrier();
    if (rank == GlobalRank{0}) co_await world.communicator(tp, rank).barrier();
    co_await world.communicator(dp, rank).barrier();
  };
  SeededExecutor executor(1);

  const DeadlockError error = deadlock_of([&] { world.run(executor, program); });

  EXPECT_THAT(error.graph().cycle, ElementsAre(GlobalRank{0}, GlobalRank{1}));
  EXPECT_THAT(
      error.graph().causes,
      ElementsAre("ranks 0 and 1 wait for each other: rank 0 is at barrier #1 in tp[0], rank 1 at barrier #0 in "
                  "dp[0]: they make the two calls in opposite order, or one of them leaves one out"));
}

TEST(Deadlock, NamesTwoGroupsTakenInOppositeOrder) {
  World world(2);
  const GroupId tp = world.add_group("tp", {GlobalRank{0}, GlobalRank{1}});
  const GroupId dp = world.add_group("dp", {GlobalRank{0}, GlobalRank{1}});
  const auto program = [&](GlobalRank rank) -> Task<> {
    const bool first = rank == GlobalRank{0};
    co_await world.communicator(first ? tp : dp, rank).barrier();
    co_await world.communicator(first ? dp : tp, rank).barrier();
  };
  SeededExecutor executor(1);

  const DeadlockError error = deadlock_of([&] { world.run(executor, program); });

  ASSERT_EQ(error.graph().cycle.size(), 2u);
  EXPECT_THAT(error.what(), HasSubstr("make the two calls in opposite order, or one of them leaves one out"));
  EXPECT_THAT(error.what(), HasSubstr("rank 0 is at barrier #0 in tp[0]"));
}

TEST(Deadlock, NamesMembershipsThatDiffer) {
  World world(3);
  const GroupId narrow = world.add_group("tp", {GlobalRank{0}, GlobalRank{1}});
  const GroupId wide = world.add_group("tp", {GlobalRank{0}, GlobalRank{1}, GlobalRank{2}});
  const auto program = [&](GlobalRank rank) -> Task<> {
    co_await world.communicator(rank == GlobalRank{0} ? narrow : wide, rank).barrier();
  };
  SeededExecutor executor(1);

  const DeadlockError error = deadlock_of([&] { world.run(executor, program); });

  EXPECT_THAT(error.what(), HasSubstr("they disagree on who is in the group"));
  EXPECT_THAT(error.what(), HasSubstr("tp[0] with members {0, 1}"));
  EXPECT_THAT(error.what(), HasSubstr("tp[1] with members {0, 1, 2}"));
}

TEST(Deadlock, NamesASendWithoutReceiveAndAReceiveWithoutSend) {
  const DeadlockError send = deadlock_of(2, [](Communicator comm) -> Task<> {
    std::vector<float> values(1);
    if (is(comm, 0)) co_await comm.send(values, GroupRank{1});
  });
  const DeadlockError recv = deadlock_of(2, [](Communicator comm) -> Task<> {
    std::vector<float> values(1);
    if (is(comm, 1)) co_await comm.recv(values, GroupRank{0});
  });

  EXPECT_THAT(send.what(),
              HasSubstr("rank 0 sends to rank 1 in world[0], but rank 1 has returned and never receives it"));
  EXPECT_THAT(
      recv.what(),
      HasSubstr("rank 1 expects a message from rank 0 in world[0], but rank 0 has returned and never sends it"));
}

TEST(Deadlock, NamesACycleOfSends) {
  const DeadlockError error = deadlock_of(4, [](Communicator comm) -> Task<> {
    std::vector<float> out(1);
    std::vector<float> in(1);
    const int me = to_int(comm.rank());
    co_await comm.send(out, GroupRank{(me + 1) % 4});
    co_await comm.recv(in, GroupRank{(me + 3) % 4});
  });

  EXPECT_THAT(error.graph().cycle, ElementsAre(GlobalRank{0}, GlobalRank{1}, GlobalRank{2}, GlobalRank{3}));
  EXPECT_THAT(error.what(), HasSubstr("a cycle of sends: ranks 0 -> 1 -> 2 -> 3 -> 0 each send before they receive"));
}

TEST(Deadlock, NamesTheUnmatchedMessageOfAnExchange) {
  const DeadlockError error = deadlock_of(3, [](Communicator comm) -> Task<> {
    std::vector<float> a(1);
    std::vector<float> b(1);
    if (is(comm, 0)) {
      const std::vector<Send> sends{Send(a, GroupRank{1}), Send(b, GroupRank{2})};
      co_await comm.exchange({sends, {}});
    } else if (is(comm, 1)) {
      co_await comm.recv(a, GroupRank{0});
    }
  });

  ASSERT_EQ(error.graph().rendezvous.size(), 1u);
  EXPECT_EQ(error.graph().rendezvous[0].absent[0].rank, GlobalRank{2});
  EXPECT_THAT(error.what(), HasSubstr("rank 0 sends to rank 2"));
}

TEST(Deadlock, NamesARankThatReturnsEarly) {
  const DeadlockError error = deadlock_of(3, [](Communicator comm) -> Task<> {
    for (int i = 0; i < 5; ++i) {
      if (i == 2 && is(comm, 1)) co_return;
      co_await comm.barrier();
    }
  });

  EXPECT_THAT(error.what(),
              HasSubstr("rank 1 has returned after 2 collectives in world[0] and never joins barrier #2"));
}

TEST(Deadlock, IsFoundAmongThousandsOfRanks) {
  const DeadlockError error = deadlock_of(4096, [](Communicator comm) -> Task<> {
    if (!is(comm, 4000)) co_await comm.barrier();
  });

  EXPECT_EQ(error.graph().rendezvous[0].arrived.size(), 4095u);
  EXPECT_EQ(error.graph().rendezvous[0].absent[0].rank, GlobalRank{4000});
}

TEST(Deadlock, LeavesNothingBehind) {
  const auto held = std::make_shared<int>(0);
  (void)deadlock_of(8, [held](Communicator comm) -> Task<> {
    const auto inner = [](std::shared_ptr<int> mine, Communicator c) -> Task<> {
      co_await c.barrier();
      (void)mine;
    };
    if (!is(comm, 5)) co_await inner(held, comm);
  });

  EXPECT_EQ(held.use_count(), 1);
}

TEST(Deadlock, GraphIsTextAndDot) {
  const DeadlockError error = deadlock_of(2, [](Communicator comm) -> Task<> {
    if (is(comm, 0)) co_await comm.barrier();
  });

  EXPECT_THAT(error.graph().to_text(), HasSubstr("meeting 0: barrier #0 in world[0], 1 of 2 ranks have come"));
  EXPECT_THAT(error.graph().to_dot(), HasSubstr("digraph waits"));
  EXPECT_THAT(error.graph().to_dot(), HasSubstr("r0 -> m0"));
  EXPECT_THAT(error.graph().to_dot(), HasSubstr("m0 -> r1"));
}

TEST(RankErrors, SayWhoWasLeftWaiting) {
  const RankError error = error_of<RankError>([] {
    OneGroup(4).run([](Communicator comm) -> Task<> {
      co_await comm.barrier();
      if (is(comm, 2)) throw std::runtime_error("no more paper");
      co_await comm.barrier();
    });
  });

  EXPECT_EQ(error.rank(), GlobalRank{2});
  EXPECT_THAT(error.what(), HasSubstr("rank 2 failed: no more paper"));
  EXPECT_THAT(error.what(), HasSubstr("rank 2 has thrown after 1 collectives"));
}

TEST(Verdicts, DoNotDependOnTheSchedule) {
  std::optional<std::string> first;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    OneGroup group(5);
    SeededExecutor executor(seed);
    std::string text;
    try {
      group.run(executor, [](Communicator comm) -> Task<> {
        std::vector<float> values(4);
        co_await comm.all_reduce(values);
        if (is(comm, 1)) co_await comm.recv(values, GroupRank{3});
        if (!is(comm, 4)) co_await comm.barrier();
      });
    } catch (const DeadlockError& error) {
      text = error.what();
    }
    EXPECT_THAT(text, Not(IsEmpty()));
    if (!first) first = text;
    EXPECT_EQ(text, *first);
  }
}

}  // namespace
}  // namespace shardproof
