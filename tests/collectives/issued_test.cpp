// Calls with a handle: any number under way, awaited in any order, and whatever a rank must not do meanwhile is named.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "collectives/call_hook.h"
#include "collectives/exchange_handle.h"
#include "tests/collectives/helpers.h"

namespace shardproof {
namespace {

using ::testing::HasSubstr;
using testing::make_input;
using ::testing::Not;
using testing::OneGroup;
using testing::value_at;

constexpr std::uint64_t kSeeds = 25;

template <class Program>
void run_under_every_executor(int ranks, const Program& program) {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    OneGroup group(ranks);
    SeededExecutor executor(seed);
    group.run(executor, program);
  }
  for (const int threads : {1, 2, 4}) {
    OneGroup group(ranks);
    DefaultExecutor executor(threads);
    group.run(executor, program);
  }
}

/// The text of the error, the same under every schedule and on several threads.
template <class Error, class Program>
std::string error_text(int ranks, const Program& program) {
  std::string text;
  const auto take = [&](Executor& executor) {
    OneGroup group(ranks);
    try {
      group.run(executor, program);
      ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& error) {
      if (text.empty()) text = error.what();
      EXPECT_EQ(error.what(), text);
    }
  };
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    SeededExecutor executor(seed);
    take(executor);
  }
  DefaultExecutor threads(4);
  take(threads);
  return text;
}

std::vector<float> sum_of(int ranks, int first, std::size_t count) {
  std::vector<float> sum(count);
  for (int rank = 0; rank < ranks; ++rank) {
    for (std::size_t i = 0; i < count; ++i) sum[i] += value_at<float>(first + rank, i);
  }
  return sum;
}

class IssuedSizes : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, IssuedSizes, ::testing::Values(1, 2, 3, 7, 16));

TEST_P(IssuedSizes, ManyUnderWayAndAwaitedInAnotherOrderGiveWhatBlockingCallsGive) {
  const int n = GetParam();

  run_under_every_executor(n, [n](Communicator comm) -> Task<> {
    const int me = to_int(comm.rank());
    const auto ranks = static_cast<std::size_t>(n);
    constexpr std::size_t kCalls = 12;
    std::vector<std::vector<float>> in, out;
    for (std::size_t i = 0; i < kCalls; ++i) {
      in.push_back(make_input<float>(me + static_cast<int>(i), 5 + i));
      out.emplace_back(5 + i);
    }
    std::vector<CallHandle> handles;
    for (std::size_t i = 0; i < kCalls; ++i) handles.push_back(comm.iall_reduce(in[i], out[i]));
    std::vector<float> gathered(3 * ranks);
    const std::vector<float> mine = make_input<float>(me, 3);
    CallHandle gather = comm.iall_gather(mine, gathered);
    co_await comm.barrier();

    co_await gather;
    for (std::size_t i = 0; i < kCalls; ++i) co_await handles[(i * 5 + static_cast<std::size_t>(me)) % kCalls];

    for (std::size_t i = 0; i < kCalls; ++i) EXPECT_EQ(out[i], sum_of(n, static_cast<int>(i), 5 + i));
    for (std::size_t i = 0; i < gathered.size(); ++i) {
      EXPECT_EQ(gathered[i], value_at<float>(static_cast<int>(i / 3), i % 3));
    }
  });
}

TEST_P(IssuedSizes, EveryOperationHasAVariantThatGivesTheSameBits) {
  const int n = GetParam();

  run_under_every_executor(n, [n](Communicator comm) -> Task<> {
    const int me = to_int(comm.rank());
    const auto ranks = static_cast<std::size_t>(n);
    const std::vector<std::size_t> counts(ranks, 2);
    const GroupRank root{n / 2};
    const std::vector<float> one = make_input<float>(me, 2), all = make_input<float>(me, 2 * ranks);
    std::vector<std::vector<float>> blocking(10), issued(10);
    for (auto* results : {&blocking, &issued}) {
      for (const std::size_t i : {1u, 2u, 5u, 6u}) (*results)[i].resize(2 * ranks);
      for (const std::size_t i : {3u, 4u, 8u}) (*results)[i].resize(2);
      (*results)[0] = (*results)[7] = make_input<float>(me, 2);
    }
    co_await comm.all_reduce(blocking[0], {.algorithm = Algorithm::ring});
    co_await comm.all_gather(one, blocking[1]);
    co_await comm.all_gather_v(one, blocking[2], counts);
    co_await comm.reduce_scatter(all, blocking[3]);
    co_await comm.reduce_scatter_v(all, blocking[4], counts);
    co_await comm.all_to_all(all, blocking[5]);
    co_await comm.all_to_all_v(all, counts, blocking[6], counts);
    co_await comm.broadcast(blocking[7], root);
    co_await comm.reduce(one, blocking[8], root);

    std::vector<CallHandle> handles;
    handles.push_back(comm.iall_reduce(issued[0], {.algorithm = Algorithm::ring}));
    handles.push_back(comm.iall_gather(one, issued[1]));
    handles.push_back(comm.iall_gather_v(one, issued[2], std::vector<std::size_t>(ranks, 2)));
    handles.push_back(comm.ireduce_scatter(all, issued[3]));
    handles.push_back(comm.ireduce_scatter_v(all, issued[4], std::vector<std::size_t>(ranks, 2)));
    handles.push_back(comm.iall_to_all(all, issued[5]));
    handles.push_back(comm.iall_to_all_v(all, std::vector<std::size_t>(ranks, 2), issued[6], counts));
    handles.push_back(comm.ibroadcast(issued[7], root));
    handles.push_back(comm.ireduce(one, issued[8], root));
    handles.push_back(comm.ibarrier());
    for (auto handle = handles.rbegin(); handle != handles.rend(); ++handle) co_await *handle;

    EXPECT_EQ(issued, blocking);
  });
}

TEST(Issued, LargeDataIsMovedByAllThreads) {
  constexpr std::size_t kCount = 200'000;
  OneGroup group(4);
  DefaultExecutor executor(4);

  group.run(executor, [](Communicator comm) -> Task<> {
    const std::vector<float> mine = make_input<float>(to_int(comm.rank()), kCount);
    std::vector<float> first(kCount), second(kCount);
    CallHandle a = comm.iall_reduce(mine, first), b = comm.iall_reduce(mine, second);
    co_await b;
    co_await a;
    EXPECT_EQ(first, sum_of(4, 0, kCount));
    EXPECT_EQ(second, first);
  });
}

TEST(Issued, ALoopUsesItsLanesAgainAndKeepsTheOrderOfRecords) {
  OneGroup group(3);

  group.run([](Communicator comm) -> Task<> {
    for (int i = 0; i < 500; ++i) {
      std::vector<int> a{i}, b{2 * i};
      CallHandle first = comm.iall_reduce(a), second = comm.iall_reduce(b, {.reduction = Reduction::max});
      co_await comm.barrier();
      co_await second;
      co_await first;
      EXPECT_EQ(a[0], 3 * i);
      EXPECT_EQ(b[0], 2 * i);
    }
  });

  const auto& records = group.world.records(GlobalRank{1});
  ASSERT_EQ(records.size(), 1500u);
  EXPECT_EQ(records[0].operation, Operation::barrier);
  EXPECT_EQ(records[1].operation, Operation::all_reduce);
  EXPECT_EQ(records[1].axis, "world");
}

TEST(Issued, ReadsTheInputWhenIssuedAndWritesTheOutputWhenAwaited) {
  run_under_every_executor(2, [](Communicator comm) -> Task<> {
    std::vector<float> in{1, 2}, out{7, 7};
    CallHandle sum = comm.iall_reduce(in, out);
    co_await comm.barrier();  // by now it has been moved
    EXPECT_NE(out[0], out[0]) << "an output that is read early is no number";
    co_await sum;
    EXPECT_EQ(out, (std::vector<float>{2, 4}));
  });
}

TEST(Issued, LeavesWhatARankDoesNotReceiveAlone) {
  run_under_every_executor(2, [](Communicator comm) -> Task<> {
    const std::vector<float> in{1, 2};
    std::vector<float> out{7, 7};
    CallHandle sum = comm.ireduce(in, out, GroupRank{0});
    const bool is_root = to_int(comm.rank()) == 0;
    if (!is_root) {
      EXPECT_EQ(out, (std::vector<float>{7, 7}));
    }
    co_await sum;
    EXPECT_EQ(out, is_root ? (std::vector<float>{2, 4}) : (std::vector<float>{7, 7}));
  });
}

TEST(Issued, CoversOnlyWhatOfTheOutputIsNotTheInput) {
  run_under_every_executor(3, [](Communicator comm) -> Task<> {
    const auto me = static_cast<std::size_t>(to_int(comm.rank()));
    std::vector<float> all(3);
    all[me] = static_cast<float>(me + 1);
    CallHandle gather = comm.iall_gather(std::span(all).subspan(me, 1), all);
    EXPECT_EQ(all[me], static_cast<float>(me + 1));
    EXPECT_NE(all[(me + 1) % 3], all[(me + 1) % 3]);
    co_await gather;
    EXPECT_EQ(all, (std::vector<float>{1, 2, 3}));

    std::vector<float> parts(3, 1);
    CallHandle scatter = comm.ireduce_scatter(parts, std::span(parts).subspan(me, 1));
    EXPECT_EQ(parts, std::vector<float>(3, 1));
    co_await scatter;
    EXPECT_EQ(parts[me], 3);
  });
}

TEST(Issued, NamesAnInputThatWasWrittenEarly) {
  const std::string text = error_text<InvalidCall>(2, [](Communicator comm) -> Task<> {
    std::vector<float> in{1, 2, 3}, out(3);
    CallHandle sum = comm.iall_reduce(in, out);
    if (to_int(comm.rank()) == 1) in[2] = 5;
    co_await sum;
  });

  EXPECT_THAT(text, HasSubstr("its input was written between issue and await, element 2 for one"));
  EXPECT_THAT(text, HasSubstr("rank 1: iall_reduce #0 in world[0] of 3 f32"));
  EXPECT_THAT(text, HasSubstr("issued_test.cpp:"));
}

TEST(Issued, NamesAnOutputThatWasWrittenEarly) {
  const std::string text = error_text<InvalidCall>(2, [](Communicator comm) -> Task<> {
    std::vector<float> in{1, 2}, out(4);
    CallHandle gather = comm.iall_gather(in, out);
    if (to_int(comm.rank()) == 0) out[1] = 0;
    co_await gather;
  });

  EXPECT_THAT(text, HasSubstr("its output was written between issue and await, element 1 for one"));
  EXPECT_THAT(text, HasSubstr("rank 0: iall_gather #0"));
}

TEST(Issued, RefusesACallThatReadsAnOutputOrWritesABufferThatIsStillUnderWay) {
  using Second = std::function<PendingCall(const Communicator&, std::vector<float>&, std::vector<float>&)>;
  const auto text_of = [](const Second& second) {
    return error_text<InvalidCall>(2, [&second](Communicator comm) -> Task<> {
      std::vector<float> in{1, 2}, out(2), other(2);
      CallHandle sum = comm.iall_reduce(in, out);
      if (to_int(comm.rank()) == 1) co_await second(comm, in, out);
      co_await sum;
    });
  };

  const std::string reads = text_of([](const Communicator& comm, auto&, auto& out) { return comm.all_reduce(out); });
  const std::string writes =
      text_of([](const Communicator& comm, auto& in, auto&) { return comm.recv(in, GroupRank{0}); });
  const std::string sends = text_of(
      [](const Communicator& comm, auto&, auto& out) { return comm.send(std::span(out).last(1), GroupRank{0}); });

  for (const std::string& text : {reads, writes, sends}) {
    EXPECT_THAT(text, HasSubstr("of a call that has not been awaited: rank 1: iall_reduce #0 in world[0]"));
  }
  EXPECT_THAT(reads, HasSubstr("it reads the output"));
  EXPECT_THAT(writes, HasSubstr("it writes the input"));
  EXPECT_THAT(sends, HasSubstr("it reads the output"));
}

TEST(Issued, TwoThatReadOneInputAreFine) {
  run_under_every_executor(2, [](Communicator comm) -> Task<> {
    const std::vector<float> in{1, 2};
    std::vector<float> sum(2), largest(2);
    CallHandle a = comm.iall_reduce(in, sum), b = comm.iall_reduce(in, largest, {.reduction = Reduction::max});
    co_await b;
    co_await a;
    EXPECT_EQ(sum, (std::vector<float>{2, 4}));
    EXPECT_EQ(largest, in);
  });
}

TEST(Issued, OfTwoRanksWhoseBuffersOverlapAreRefused) {
  std::vector<float> shared(3);
  const std::string text = error_text<CollectiveMismatch>(2, [&shared](Communicator comm) -> Task<> {
    const std::vector<float> in(2);
    CallHandle sum = comm.iall_reduce(in, std::span(shared).subspan(static_cast<std::size_t>(to_int(comm.rank())), 2));
    co_await sum;
  });

  EXPECT_THAT(text, HasSubstr("buffers of rank 0 and rank 1 overlap in memory"));
}

TEST(Issued, ADroppedHandleIsAnErrorThatNamesTheCall) {
  const std::string text = error_text<InvalidCall>(3, [](Communicator comm) -> Task<> {
    std::vector<float> values(4);
    if (to_int(comm.rank()) == 2) {
      { const CallHandle dropped = comm.iall_reduce(values); }
      co_await comm.barrier();
      co_return;
    }
    CallHandle sum = comm.iall_reduce(values);
    co_await comm.barrier();
    co_await sum;
  });

  EXPECT_THAT(text, HasSubstr("its handle was dropped without being awaited"));
  EXPECT_THAT(text, HasSubstr("rank 2: iall_reduce #0 in world[0] of 4 f32"));
  EXPECT_THAT(text, HasSubstr("issued_test.cpp:"));
}

TEST(Issued, AHandleThatOutlivesItsProgramIsAnErrorToo) {
  std::vector<std::vector<float>> buffers(2, std::vector<float>(4));
  std::vector<CallHandle> kept(2);
  OneGroup group(2);

  try {
    group.run([&](Communicator comm) -> Task<> {
      const auto me = static_cast<std::size_t>(to_int(comm.rank()));
      kept[me] = comm.iall_reduce(buffers[me]);
      co_return;
    });
    FAIL() << "nothing was thrown";
  } catch (const InvalidCall& error) {
    EXPECT_EQ(error.call().rank, GlobalRank{0});
    EXPECT_THAT(error.what(), HasSubstr("it was never awaited before the rank returned"));
  }
  EXPECT_THROW(kept[0].operator co_await(), std::logic_error);
}

TEST(Issued, AHandleIsAwaitedOnce) {
  OneGroup group(1);

  group.run([](Communicator comm) -> Task<> {
    CallHandle handle = comm.ibarrier();
    co_await handle;
    EXPECT_THROW(handle.operator co_await(), std::logic_error);
    co_return;
  });

  EXPECT_THROW(CallHandle().operator co_await(), std::logic_error);
}

TEST(Issued, AnErrorOfTheRankItselfIsToldInsteadOfItsDroppedHandles) {
  const std::string text = error_text<RankError>(2, [](Communicator comm) -> Task<> {
    std::vector<float> values(4);
    CallHandle sum = comm.iall_reduce(values);
    if (to_int(comm.rank()) == 0) throw std::runtime_error("out of paper");
    co_await sum;
  });

  EXPECT_THAT(text, HasSubstr("out of paper"));
}

TEST(Issued, InAnotherOrderThanTheBlockingCallsIsAMismatch) {
  const std::string text = error_text<CollectiveMismatch>(3, [](Communicator comm) -> Task<> {
    std::vector<float> values(4);
    if (to_int(comm.rank()) == 1) {
      co_await comm.barrier();
      CallHandle sum = comm.iall_reduce(values);
      co_await sum;
    } else {
      CallHandle sum = comm.iall_reduce(values);
      co_await comm.barrier();
      co_await sum;
    }
  });

  EXPECT_THAT(text, HasSubstr("collective mismatch (operation)"));
  EXPECT_THAT(text,
              HasSubstr("rank 1 calls barrier as its number 0 there where 2 other ranks (rank 0 for one) have 1"));
}

TEST(Issued, WhereAnotherRankMakesTheBlockingCallIsAMismatch) {
  const std::string text = error_text<CollectiveMismatch>(3, [](Communicator comm) -> Task<> {
    std::vector<float> values(4);
    if (to_int(comm.rank()) == 2) {
      co_await comm.all_reduce(values);
    } else {
      CallHandle sum = comm.iall_reduce(values);
      co_await sum;
    }
  });

  EXPECT_THAT(text, HasSubstr("rank 2 calls all_reduce where 2 other ranks (rank 0 for one) have iall_reduce"));
}

TEST(Issued, OfDifferentCountsAreAMismatch) {
  const std::string text = error_text<CollectiveMismatch>(3, [](Communicator comm) -> Task<> {
    std::vector<float> first(4), second(to_int(comm.rank()) == 1 ? 5u : 4u);
    CallHandle a = comm.iall_reduce(first), b = comm.iall_reduce(second);
    co_await a;
    co_await b;
  });

  EXPECT_THAT(text, HasSubstr("rank 1 has count 5 where 2 other ranks (rank 0 for one) have 4"));
  EXPECT_THAT(text, HasSubstr("iall_reduce #1"));
}

TEST(Issued, OfTwoThatFailTheFirstIsToldWhateverTheSchedule) {
  const std::string text = error_text<CollectiveMismatch>(3, [](Communicator comm) -> Task<> {
    const bool odd = to_int(comm.rank()) == 1;
    std::vector<float> first(odd ? 3u : 4u), second(odd ? 5u : 4u);
    CallHandle a = comm.iall_reduce(first), b = comm.iall_reduce(second);
    co_await b;
    co_await a;
  });

  EXPECT_THAT(text, HasSubstr("iall_reduce #0"));
  EXPECT_THAT(text, HasSubstr("has count 3"));
}

TEST(Issued, ThatSomeRanksNeverIssueIsADeadlock) {
  OneGroup group(3);

  try {
    group.run([](Communicator comm) -> Task<> {
      std::vector<float> values(4);
      if (to_int(comm.rank()) == 2) co_return;
      CallHandle sum = comm.iall_reduce(values);
      if (to_int(comm.rank()) == 0) co_await sum;
      co_await comm.barrier();
      co_await sum;
    });
    FAIL() << "nothing was thrown";
  } catch (const DeadlockError& error) {
    const WaitGraph& graph = error.graph();
    ASSERT_EQ(graph.rendezvous.size(), 2u);
    const Rendezvous& barrier = graph.rendezvous[0];
    const Rendezvous& reduce = graph.rendezvous[1];
    EXPECT_EQ(barrier.arrived.size(), 1u);
    EXPECT_EQ(barrier.arrived[0].rank, GlobalRank{1});
    ASSERT_EQ(reduce.arrived.size(), 1u);
    EXPECT_EQ(reduce.arrived[0].rank, GlobalRank{0});
    EXPECT_TRUE(reduce.arrived[0].issued);
    ASSERT_EQ(reduce.issued.size(), 1u) << "rank 1 has come, and waits in the barrier instead";
    EXPECT_EQ(reduce.issued[0].rank, GlobalRank{1});
    ASSERT_EQ(reduce.absent.size(), 1u);
    EXPECT_EQ(reduce.absent[0].why, Absence::finished);
    EXPECT_THAT(error.what(), HasSubstr("issued   rank 1: iall_reduce #0 in world[0]"));
    EXPECT_THAT(error.what(), HasSubstr("waiting  rank 0: iall_reduce #0 in world[0]"));
  }
}

TEST(Issued, ACycleOfAHandleAndABlockingCallIsADeadlock) {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    World world(2);
    const GroupId tp = world.add_group("tp", testing::all_ranks(2)), dp = world.add_group("dp", testing::all_ranks(2));
    SeededExecutor executor(seed);
    const auto program = [&](GlobalRank rank) -> Task<> {
      std::vector<float> a(2), b(2);
      const Communicator on_tp = world.communicator(tp, rank), on_dp = world.communicator(dp, rank);
      if (rank == GlobalRank{0}) {
        CallHandle sum = on_tp.iall_reduce(a);
        co_await sum;
        co_await on_dp.all_reduce(b);
      } else {
        co_await on_dp.all_reduce(b);
        CallHandle sum = on_tp.iall_reduce(a);
        co_await sum;
      }
    };

    try {
      world.run(executor, program);
      FAIL() << "nothing was thrown";
    } catch (const DeadlockError& error) {
      EXPECT_EQ(error.graph().cycle, (std::vector<GlobalRank>{GlobalRank{0}, GlobalRank{1}}));
      EXPECT_THAT(error.what(), HasSubstr("ranks 0 and 1 wait for each other"));
    }
  }
}

TEST(Issued, OfTwoGroupsInOppositeOrderAreNoDeadlock) {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    World world(2);
    const GroupId tp = world.add_group("tp", testing::all_ranks(2)), dp = world.add_group("dp", testing::all_ranks(2));
    SeededExecutor executor(seed);

    world.run(executor, [&](GlobalRank rank) -> Task<> {
      return [](Communicator first, Communicator second) -> Task<> {
        std::vector<int> a{1}, b{1};
        CallHandle one = first.iall_reduce(a), other = second.iall_reduce(b);
        co_await other;
        co_await one;
        EXPECT_EQ(a[0] + b[0], 4);
      }(world.communicator(rank == GlobalRank{0} ? tp : dp, rank),
                                                         world.communicator(rank == GlobalRank{0} ? dp : tp, rank));
    });
  }
}

TEST(Issued, MessagesMeetBlockingOnesInOrder) {
  run_under_every_executor(2, [](Communicator comm) -> Task<> {
    const GroupRank peer{1 - to_int(comm.rank())};
    const std::vector<int> one{to_int(comm.rank())}, two{10 + to_int(comm.rank()), 7};
    std::vector<int> got_one(1), got_two(2);
    CallHandle first = comm.isend(one, peer), second = comm.isend(two, peer);
    CallHandle receive = comm.irecv(got_one, peer);
    co_await comm.recv(got_two, peer);
    co_await second;
    co_await receive;
    co_await first;
    EXPECT_EQ(got_one, (std::vector<int>{to_int(peer)}));
    EXPECT_EQ(got_two, (std::vector<int>{10 + to_int(peer), 7}));
  });
}

TEST(Issued, ExchangesMeetBlockingOnesAndMessagesInOrder) {
  run_under_every_executor(3, [](Communicator comm) -> Task<> {
    const int me = to_int(comm.rank());
    const GroupRank ahead{(me + 1) % 3}, behind{(me + 2) % 3};
    const std::vector<int> mine{me, 10 * me};
    std::vector<int> first(2), second(2);
    const Send sends[] = {{mine, ahead}};
    ExchangeHandle hop;
    {
      const Recv recvs[] = {{first, behind}};
      hop = iexchange(comm, {sends, recvs});
    }
    const Recv recvs[] = {{second, behind}};
    if (me == 0) {
      co_await comm.exchange({sends, recvs});
    } else {
      co_await iexchange(comm, {sends, recvs});
    }
    co_await hop;
    EXPECT_EQ(first, (std::vector<int>{to_int(behind), 10 * to_int(behind)}));
    EXPECT_EQ(second, first);
  });
}

TEST(Issued, AMessageThatNobodyReceivesIsADeadlock) {
  const std::string text = error_text<DeadlockError>(2, [](Communicator comm) -> Task<> {
    std::vector<int> value{1};
    if (to_int(comm.rank()) != 0) co_return;
    CallHandle message = comm.isend(value, GroupRank{1});
    co_await message;
  });

  EXPECT_THAT(text, HasSubstr("rank 0 sends to rank 1 in world[0], but rank 1 has returned and never receives it"));
  EXPECT_THAT(text, HasSubstr("isend #0"));
}

/// Drops every all_reduce, and makes every all_gather of one group one of the other.
class DropsAndRedirects final : public CallHook {
 public:
  DropsAndRedirects(const World& world, GroupId to) : world_(world), to_(to) {}
  bool before(GlobalRank rank, internal::Call& call) noexcept override {
    if (call.operation == Operation::all_gather) redirect(call, world_.communicator(to_, rank));
    return call.operation != Operation::all_reduce;
  }
  void after(GlobalRank, internal::Call& call) noexcept override { seen_out = call.out; }

  void* seen_out = nullptr;

 private:
  const World& world_;
  GroupId to_;
};

TEST(Issued, CallsAreShownToAHookWithTheRanksOwnBuffers) {
  World world(2);
  const GroupId tp = world.add_group("tp", testing::all_ranks(2)), dp = world.add_group("dp", testing::all_ranks(2));
  DropsAndRedirects hook(world, dp);
  world.set_hook(&hook);
  SeededExecutor executor(1);

  world.run(executor, [&](GlobalRank rank) -> Task<> {
    return [](Communicator comm, const DropsAndRedirects& shown) -> Task<> {
      std::vector<float> in{1, 2}, out{7, 7}, all(4);
      CallHandle sum = comm.iall_reduce(in, out);
      EXPECT_EQ(out, (std::vector<float>{7, 7})) << "a dropped call leaves its output alone";
      CallHandle gather = comm.iall_gather(in, all);
      co_await sum;
      EXPECT_EQ(out, (std::vector<float>{7, 7}));
      co_await gather;
      EXPECT_EQ(shown.seen_out, all.data());
      EXPECT_EQ(all, (std::vector<float>{1, 2, 1, 2}));
    }(world.communicator(tp, rank), hook);
  });

  ASSERT_EQ(world.records(GlobalRank{0}).size(), 1u);
  EXPECT_EQ(world.records(GlobalRank{0})[0].axis, "dp");
}

TEST(Issued, AWorldRunsAgainAfterCallsThatWereLeftUnderWay) {
  OneGroup group(2);
  EXPECT_THROW(group.run([](Communicator comm) -> Task<> {
    std::vector<float> values(4);
    CallHandle sum = comm.iall_reduce(values);
    if (to_int(comm.rank()) == 0) co_await comm.barrier();
    co_await sum;
  }),
               DeadlockError);
  std::vector<int> sums(2);

  group.run([&](Communicator comm) -> Task<> {
    std::vector<int> one{1};
    CallHandle sum = comm.iall_reduce(one);
    co_await sum;
    sums[static_cast<std::size_t>(to_int(comm.rank()))] = one[0];
  });

  EXPECT_EQ(sums, (std::vector<int>{2, 2}));
}

template <class In>
concept Issuable = requires(const Communicator& comm, In&& in, std::vector<float>& out) {
  comm.iall_gather(static_cast<In&&>(in), out);
};
// What is looked at again when the call is awaited must not be gone by then.
static_assert(Issuable<const std::vector<float>&>);
static_assert(Issuable<std::span<const float>>);
static_assert(!Issuable<std::vector<float>>);

}  // namespace
}  // namespace shardproof
