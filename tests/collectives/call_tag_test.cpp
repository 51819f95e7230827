#include "collectives/call_tag.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "collectives/call_hook.h"
#include "tests/collectives/helpers.h"

namespace shardproof {
namespace {

using ::testing::ElementsAre;
using testing::OneGroup;

constexpr CallTag kNotSaid{.op = -1, .layer = -1, .microbatch = -1, .tensor = -1};
constexpr CallTag kTag{.op = 3, .layer = 61, .microbatch = 7, .tensor = 12};
constexpr CallTag kOther{.op = 4, .layer = 0, .microbatch = 1, .tensor = 5};

std::vector<CallTag> tags_of(const World& world, GlobalRank rank) {
  std::vector<CallTag> tags;
  for (const CollectiveRecord& record : world.records(rank)) tags.push_back(record.tag);
  return tags;
}

TEST(CallTag, ReachesTheRecordOfEveryOperation) {
  OneGroup group(2);

  group.run([](Communicator untagged) -> Task<> {
    const Communicator comm = untagged.tagged(kTag);
    const GroupRank root{0};
    const std::vector<std::size_t> counts{1, 1};
    std::vector<float> one(1);
    std::vector<float> two(2);
    std::vector<float> received(2);
    co_await comm.all_reduce(two);
    co_await comm.all_gather(one, received);
    co_await comm.all_gather_v(one, received, counts);
    co_await comm.reduce_scatter(two, one);
    co_await comm.reduce_scatter_v(two, one, counts);
    co_await comm.all_to_all(two, received);
    co_await comm.all_to_all_v(two, counts, received, counts);
    co_await comm.broadcast(two, root);
    co_await comm.reduce(two, received, root);
    co_await comm.barrier();
    if (comm.rank() == root) {
      co_await comm.send(two, GroupRank{1});
    } else {
      co_await comm.recv(two, root);
    }
  });

  for (const int rank : {0, 1}) {
    EXPECT_EQ(tags_of(group.world, GlobalRank{rank}), std::vector<CallTag>(11, kTag)) << "rank " << rank;
  }
}

TEST(CallTag, ReachesTheRecordOfEveryMessageOfAnExchange) {
  OneGroup group(2);

  group.run([](Communicator comm) -> Task<> {
    const GroupRank other{1 - to_int(comm.rank())};
    std::vector<int> out(3);
    std::vector<int> in(3);
    const std::vector<Send> sends{{out, other}};
    const std::vector<Recv> recvs{{in, other}};
    co_await comm.tagged(kTag).exchange({.sends = sends, .recvs = recvs});
  });

  EXPECT_THAT(tags_of(group.world, GlobalRank{0}), ElementsAre(kTag, kTag));
}

TEST(CallTag, OfAHierarchicalCallIsOnItsRecord) {
  OneGroup group(4);

  group.run([](Communicator comm) -> Task<> {
    std::vector<float> values(8);
    co_await comm.tagged(kTag).all_reduce(values, {.algorithm = Algorithm::hierarchical, .gpus_per_node = 2});
  });

  EXPECT_EQ(group.world.records(GlobalRank{3}).at(0).algorithm, Algorithm::hierarchical);
  EXPECT_THAT(tags_of(group.world, GlobalRank{3}), ElementsAre(kTag));
}

TEST(CallTag, LeavesTheHandleItWasMadeFromUntagged) {
  OneGroup group(2);

  group.run([](Communicator comm) -> Task<> {
    const Communicator tagged = comm.tagged(kTag);
    co_await comm.barrier();
    co_await tagged.barrier();
    co_await tagged.tagged(kOther).barrier();
    co_await tagged.barrier();
  });

  EXPECT_THAT(tags_of(group.world, GlobalRank{1}), ElementsAre(kNotSaid, kTag, kOther, kTag));
}

TEST(CallTag, HasNoPartInMatching) {
  OneGroup group(3);

  group.run([](Communicator comm) -> Task<> {
    std::vector<int> one{1};
    co_await comm.tagged({.op = to_int(comm.rank())}).all_reduce(one);
    EXPECT_EQ(one[0], 3);
  });

  EXPECT_THAT(tags_of(group.world, GlobalRank{2}), ElementsAre(CallTag{.op = 2}));
}

/// Sends rank by rank what has kTag to another group.
class RedirectTagged final : public CallHook {
 public:
  RedirectTagged(const World& world, GroupId to) : world_(world), to_(to) {}

  bool before(GlobalRank rank, internal::Call& call) noexcept override {
    if (call.tag == kTag) redirect(call, world_.communicator(to_, rank));
    return true;
  }
  void after(GlobalRank, internal::Call& call) noexcept override {
    if (call.tag == kTag) ++seen_after;
  }

  std::atomic<int> seen_after{0};

 private:
  const World& world_;
  GroupId to_;
};

TEST(CallTag, IsReadByAHookAndStaysWhenTheCallIsRedirected) {
  OneGroup group(2);
  const GroupId elsewhere = group.world.add_group("elsewhere", testing::all_ranks(2));
  RedirectTagged hook(group.world, elsewhere);
  group.world.set_hook(&hook);

  group.run([](Communicator comm) -> Task<> {
    co_await comm.barrier();
    co_await comm.tagged(kTag).barrier();
  });

  const auto& records = group.world.records(GlobalRank{0});
  ASSERT_THAT(tags_of(group.world, GlobalRank{0}), ElementsAre(kNotSaid, kTag));
  EXPECT_EQ(records[0].axis, "world");
  EXPECT_EQ(records[1].axis, "elsewhere");
  EXPECT_EQ(hook.seen_after, 2);
}

TEST(CallTag, IsCarriedByTheCallsOfAMismatch) {
  OneGroup group(2);

  try {
    group.run([](Communicator comm) -> Task<> {
      const bool first = to_int(comm.rank()) == 0;
      std::vector<float> values(first ? 2 : 3);
      co_await comm.tagged(first ? kTag : kOther).all_reduce(values);
    });
    FAIL() << "nothing was thrown";
  } catch (const CollectiveMismatch& error) {
    const bool in_order = error.first().rank == GlobalRank{0};
    EXPECT_EQ((in_order ? error.first() : error.second()).tag, kTag);
    EXPECT_EQ((in_order ? error.second() : error.first()).tag, kOther);
  }
}

TEST(CallTag, IsCarriedByAnInvalidCall) {
  OneGroup group(1);

  try {
    group.run([](Communicator comm) -> Task<> {
      std::vector<float> values(2);
      co_await comm.tagged(kTag).broadcast(values, GroupRank{1});
    });
    FAIL() << "nothing was thrown";
  } catch (const InvalidCall& error) {
    EXPECT_EQ(error.call().tag, kTag);
  }
}

TEST(CallTag, IsCarriedByTheCallsOfAWaitGraph) {
  OneGroup group(3);

  try {
    group.run([](Communicator comm) -> Task<> {
      std::vector<float> values(2);
      if (to_int(comm.rank()) == 0) co_await comm.tagged(kTag).barrier();
      if (to_int(comm.rank()) == 1) co_await comm.tagged(kOther).recv(values, GroupRank{2});
    });
    FAIL() << "nothing was thrown";
  } catch (const DeadlockError& error) {
    ASSERT_EQ(error.graph().rendezvous.size(), 2u);
    EXPECT_EQ(error.graph().rendezvous[0].arrived.at(0).tag, kTag);
    EXPECT_EQ(error.graph().rendezvous[1].arrived.at(0).tag, kOther);
  }
}

}  // namespace
}  // namespace shardproof
