// Orders are faithful: an oracle that really moves the chunks, rank by rank and step by step, agrees bit for bit.
#include "collectives/algorithms/order.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <random>

#include "collectives/algorithms/tree.h"
#include "tests/collectives/helpers.h"

namespace shardproof {
namespace {

using testing::index;
using testing::OneGroup;

// A coarse format: 8 significant bits, as bfloat16 has them.
float coarse(float value) {
  std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return std::bit_cast<float>(bits & 0xffff0000u);
}
void round_coarse(std::span<float> values) {
  for (float& value : values) value = coarse(value);
}
constexpr Rounding kCoarse{.name = "coarse", .bytes = 2, .round_float = round_coarse, .round_double = nullptr};

struct Numbers {
  bool wire = false;        // round to the coarse format at rest and on the way
  bool accumulate = false;  // and after each addition
  float at_rest(float value) const { return wire ? coarse(value) : value; }
  float add(float a, float b) const { return accumulate ? coarse(a + b) : a + b; }
  ReduceOptions options(Algorithm algorithm, int gpus_per_node = 8) const {
    ReduceOptions result{.algorithm = algorithm, .gpus_per_node = gpus_per_node};
    if (wire) result.wire = kCoarse;
    if (accumulate) result.accumulate = kCoarse;
    return result;
  }
};

using Buffers = std::vector<std::vector<float>>;  // [rank][element]

struct Range {
  std::size_t begin;
  std::size_t end;
};

Range chunk_of(std::size_t count, int chunks, int chunk) {
  const auto n = static_cast<std::size_t>(chunks);
  const auto c = static_cast<std::size_t>(((chunk % chunks) + chunks) % chunks);
  return {chunk_begin(count, n, c), chunk_begin(count, n, c + 1)};
}

std::vector<float> slice(const std::vector<float>& values, Range range) {
  return {values.begin() + static_cast<std::ptrdiff_t>(range.begin),
          values.begin() + static_cast<std::ptrdiff_t>(range.end)};
}

// The network: messages in flight are copies, taken before anybody receives.
struct Message {
  std::size_t to;
  Range range;
  std::vector<float> data;
};

void deliver_add(const Numbers& numbers, Buffers& buffers, const std::vector<Message>& messages) {
  for (const Message& message : messages) {
    for (std::size_t i = message.range.begin; i < message.range.end; ++i) {
      float& mine = buffers[message.to][i];
      mine = numbers.at_rest(numbers.add(message.data[i - message.range.begin], mine));
    }
  }
}
void deliver_copy(Buffers& buffers, const std::vector<Message>& messages) {
  for (const Message& message : messages) {
    std::copy(message.data.begin(), message.data.end(),
              buffers[message.to].begin() + static_cast<std::ptrdiff_t>(message.range.begin));
  }
}

// Reduce-scatter and all-gather around a ring of `members`, on `whole`, a step at a time.
void ring_reduce(const Numbers& numbers, Buffers& buffers, const std::vector<std::size_t>& members, Range whole) {
  const int n = static_cast<int>(members.size());
  for (int step = 0; step < n - 1; ++step) {
    std::vector<Message> messages;
    for (int r = 0; r < n; ++r) {
      // Rank r sends the chunk that it received in the step before; first, the one before its own.
      Range range = chunk_of(whole.end - whole.begin, n, r - 1 - step);
      range = {range.begin + whole.begin, range.end + whole.begin};
      messages.push_back({members[static_cast<std::size_t>((r + 1) % n)], range,
                          slice(buffers[members[static_cast<std::size_t>(r)]], range)});
    }
    deliver_add(numbers, buffers, messages);
  }
}
void ring_gather(Buffers& buffers, const std::vector<std::size_t>& members, Range whole) {
  const int n = static_cast<int>(members.size());
  for (int step = 0; step < n - 1; ++step) {
    std::vector<Message> messages;
    for (int r = 0; r < n; ++r) {
      Range range = chunk_of(whole.end - whole.begin, n, r - step);
      range = {range.begin + whole.begin, range.end + whole.begin};
      messages.push_back({members[static_cast<std::size_t>((r + 1) % n)], range,
                          slice(buffers[members[static_cast<std::size_t>(r)]], range)});
    }
    deliver_copy(buffers, messages);
  }
}

void oracle_ring(const Numbers& numbers, Buffers& buffers) {
  std::vector<std::size_t> members;
  for (std::size_t r = 0; r < buffers.size(); ++r) members.push_back(r);
  ring_reduce(numbers, buffers, members, {0, buffers[0].size()});
  ring_gather(buffers, members, {0, buffers[0].size()});
}

// Chunks sized as the library cuts them: the whole into G * M chunks, part g being M of them.
void oracle_hierarchical(const Numbers& numbers, Buffers& buffers, std::size_t per_node) {
  const std::size_t n = buffers.size();
  const std::size_t count = buffers[0].size();
  const std::size_t nodes = n / per_node;
  const auto part = [&](std::size_t g) {
    return Range{chunk_begin(count, n, g * nodes), chunk_begin(count, n, (g + 1) * nodes)};
  };
  const auto chunk = [&](std::size_t g, std::size_t m) {
    return Range{chunk_begin(count, n, g * nodes + m), chunk_begin(count, n, g * nodes + m + 1)};
  };
  const auto send = [&](std::size_t from, std::size_t to, Range range) {
    return Message{to, range, slice(buffers[from], range)};
  };
  for (std::size_t step = 0; step + 1 < per_node; ++step) {  // reduce-scatter inside every node
    std::vector<Message> messages;
    for (std::size_t m = 0; m < nodes; ++m) {
      for (std::size_t g = 0; g < per_node; ++g) {
        const std::size_t to = m * per_node + (g + 1) % per_node;
        messages.push_back(send(m * per_node + g, to, part((g + 2 * per_node - 1 - step) % per_node)));
      }
    }
    deliver_add(numbers, buffers, messages);
  }
  for (const bool gather : {false, true}) {  // all-reduce of part g across the nodes
    for (std::size_t step = 0; step + 1 < nodes; ++step) {
      std::vector<Message> messages;
      for (std::size_t m = 0; m < nodes; ++m) {
        for (std::size_t g = 0; g < per_node; ++g) {
          const std::size_t c = (m + 2 * nodes - (gather ? 0 : 1) - step) % nodes;
          messages.push_back(send(m * per_node + g, (m + 1) % nodes * per_node + g, chunk(g, c)));
        }
      }
      gather ? deliver_copy(buffers, messages) : deliver_add(numbers, buffers, messages);
    }
  }
  for (std::size_t step = 0; step + 1 < per_node; ++step) {  // all-gather inside every node
    std::vector<Message> messages;
    for (std::size_t m = 0; m < nodes; ++m) {
      for (std::size_t g = 0; g < per_node; ++g) {
        messages.push_back(
            send(m * per_node + g, m * per_node + (g + 1) % per_node, part((g + per_node - step) % per_node)));
      }
    }
    deliver_copy(buffers, messages);
  }
}

// Every rank waits for its children, adds them to its own input, and sends to its parent; then back down.
void oracle_tree(const Numbers& numbers, Buffers& buffers) {
  const int n = static_cast<int>(buffers.size());
  const Buffers inputs = buffers;
  for (const int tree : {0, 1}) {
    const Range half = chunk_of(inputs[0].size(), 2, tree);
    std::map<int, std::vector<float>> sent;
    int root = -1;
    // A rank can send once its children have: repeat until all have.
    while (static_cast<int>(sent.size()) < n) {
      for (int r = 0; r < n; ++r) {
        const TreeNode node = double_tree_node(n, tree, r);
        const auto ready = [&](int child) { return child < 0 || sent.contains(child); };
        if (sent.contains(r) || !ready(node.first_child) || !ready(node.second_child)) continue;
        std::vector<float> sum = slice(inputs[static_cast<std::size_t>(r)], half);
        for (const int child : {node.first_child, node.second_child}) {
          if (child < 0) continue;
          for (std::size_t i = 0; i < sum.size(); ++i) sum[i] = numbers.add(sum[i], sent[child][i]);
        }
        for (float& value : sum) value = numbers.at_rest(value);
        sent[r] = sum;
        if (node.parent < 0) root = r;
      }
    }
    for (std::vector<float>& buffer : buffers) {
      std::copy(sent[root].begin(), sent[root].end(), buffer.begin() + static_cast<std::ptrdiff_t>(half.begin));
    }
  }
}

void oracle_recursive_doubling(const Numbers& numbers, Buffers& buffers) {
  const std::size_t n = buffers.size();
  const std::size_t participants = std::bit_floor(n);
  const std::size_t extra = n - participants;
  const Range whole{0, buffers[0].size()};
  const auto rank_of = [&](std::size_t p) { return p < extra ? 2 * p + 1 : p + extra; };
  std::vector<Message> messages;
  for (std::size_t p = 0; p < extra; ++p) messages.push_back({2 * p + 1, whole, buffers[2 * p]});
  deliver_add(numbers, buffers, messages);
  for (std::size_t distance = 1; distance < participants; distance *= 2) {
    messages.clear();
    for (std::size_t p = 0; p < participants; ++p) {
      messages.push_back({rank_of(p ^ distance), whole, buffers[rank_of(p)]});
    }
    deliver_add(numbers, buffers, messages);
  }
  messages.clear();
  for (std::size_t p = 0; p < extra; ++p) messages.push_back({2 * p, whole, buffers[2 * p + 1]});
  deliver_copy(buffers, messages);
}

void oracle_rank_order(const Numbers& numbers, Buffers& buffers) {
  const Buffers inputs = buffers;
  for (std::size_t i = 0; i < inputs[0].size(); ++i) {
    float sum = inputs[0][i];
    for (std::size_t r = 1; r < inputs.size(); ++r) sum = numbers.add(sum, inputs[r][i]);
    for (std::vector<float>& buffer : buffers) buffer[i] = numbers.at_rest(sum);
  }
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// Values of very different size, so that any other order gives other bits.
Buffers rough_inputs(int ranks, std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> mantissa(-1, 1);
  std::uniform_int_distribution<int> exponent(-12, 12);
  Buffers inputs(static_cast<std::size_t>(ranks), std::vector<float>(count));
  for (auto& input : inputs) {
    for (float& value : input) value = std::ldexp(mantissa(random), exponent(random));
  }
  return inputs;
}

class Orders : public ::testing::TestWithParam<Numbers> {};
INSTANTIATE_TEST_SUITE_P(Formats, Orders,
                         ::testing::Values(Numbers{false, false}, Numbers{true, false}, Numbers{true, true},
                                           Numbers{false, true}));

void expect_faithful(const Numbers& numbers, Algorithm algorithm, int ranks, std::size_t count, int per_node) {
  const Buffers inputs = rough_inputs(ranks, count, static_cast<std::uint64_t>(ranks) * 1000 + count);
  Buffers expected = inputs;
  for (auto& buffer : expected) {
    for (float& value : buffer) value = numbers.at_rest(value);
  }
  switch (algorithm) {
    case Algorithm::rank_order:
      oracle_rank_order(numbers, expected);
      break;
    case Algorithm::ring:
      oracle_ring(numbers, expected);
      break;
    case Algorithm::tree:
      oracle_tree(numbers, expected);
      break;
    case Algorithm::recursive_doubling:
      oracle_recursive_doubling(numbers, expected);
      break;
    case Algorithm::hierarchical:
      oracle_hierarchical(numbers, expected, static_cast<std::size_t>(per_node));
      break;
  }
  OneGroup group(ranks);
  group.run([&](Communicator comm) -> Task<> {
    std::vector<float> values = inputs[index(comm.rank())];
    co_await comm.all_reduce(values, numbers.options(algorithm, per_node));
    EXPECT_TRUE(same_bits(values, expected[index(comm.rank())]))
        << to_string(algorithm) << ", " << ranks << " ranks, " << count << " elements, rank " << to_int(comm.rank());
  });
}

TEST_P(Orders, AgreeWithAnOracleThatMovesTheChunksStepByStep) {
  for (const Algorithm algorithm : kAlgorithms) {
    for (const int ranks : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 24}) {
      for (const std::size_t count : {0u, 1u, 7u, 64u, 1003u, 5000u}) {
        const int per_node = ranks % 4 == 0 ? 4 : ranks % 3 == 0 ? 3 : ranks;
        expect_faithful(GetParam(), algorithm, ranks, count, per_node);
      }
    }
  }
}

TEST_P(Orders, OfLargeDataSplitOverThreadsAreTheSame) {
  for (const Algorithm algorithm : kAlgorithms) expect_faithful(GetParam(), algorithm, 8, 50'001, 4);
}

TEST_P(Orders, OfReduceScatterFollowTheRing) {
  const Numbers numbers = GetParam();
  for (const int ranks : {1, 2, 3, 5, 8}) {
    const std::size_t count = static_cast<std::size_t>(ranks) * 37;
    const Buffers inputs = rough_inputs(ranks, count, 5);
    Buffers expected = inputs;
    for (auto& buffer : expected) {
      for (float& value : buffer) value = numbers.at_rest(value);
    }
    std::vector<std::size_t> members;
    for (std::size_t r = 0; r < expected.size(); ++r) members.push_back(r);
    ring_reduce(numbers, expected, members, {0, count});
    OneGroup group(ranks);
    group.run([&](Communicator comm) -> Task<> {
      const std::size_t me = index(comm.rank());
      std::vector<float> out(37);
      co_await comm.reduce_scatter(inputs[me], out, numbers.options(Algorithm::ring));
      EXPECT_TRUE(same_bits(out, slice(expected[me], {me * 37, me * 37 + 37})));
    });
  }
}

TEST(Orders, DifferFromOneAnotherOnRoughData) {
  const Buffers inputs = rough_inputs(13, 1000, 3);
  std::vector<std::vector<float>> results;

  for (const Algorithm algorithm : kAlgorithms) {
    OneGroup group(13);
    std::vector<float> result;
    group.run([&](Communicator comm) -> Task<> {
      std::vector<float> values = inputs[index(comm.rank())];
      co_await comm.all_reduce(values, {.algorithm = algorithm, .gpus_per_node = 4});
      if (to_int(comm.rank()) == 0) result = values;
    });
    results.push_back(result);
  }

  for (std::size_t a = 0; a < results.size(); ++a) {
    for (std::size_t b = 0; b < a; ++b) EXPECT_FALSE(same_bits(results[a], results[b])) << a << " " << b;
  }
}

TEST(Accumulation, InDoubleRoundsOnlyWhatIsSent) {
  // 1 + 2^-24 + 2^-24 is 1 when every addition rounds to float, and 1 + 2^-23 when it is added in double.
  const std::vector<float> parts{1.0f, 0x1p-24f, 0x1p-24f};
  const auto sum = [&](Algorithm algorithm, int bytes) {
    OneGroup group(3);
    float result = 0;
    group.run([&](Communicator comm) -> Task<> {
      std::vector<float> value(1, parts[index(comm.rank())]);
      co_await comm.all_reduce(value, {.algorithm = algorithm, .accumulate = {.name = "fp64", .bytes = bytes}});
      if (to_int(comm.rank()) == 0) result = value[0];
    });
    return result;
  };

  EXPECT_EQ(sum(Algorithm::rank_order, 0), 1.0f);
  EXPECT_EQ(sum(Algorithm::rank_order, 8), 1.0f + 0x1p-23f);
}

TEST(DoubleTree, IsTheOneThatNcclDraws) {
  const auto node = [](int ranks, int tree, int rank) {
    const TreeNode n = double_tree_node(ranks, tree, rank);
    return std::array{n.parent, n.first_child, n.second_child};
  };

  EXPECT_EQ(node(14, 0, 0), (std::array{-1, -1, 8}));
  EXPECT_EQ(node(14, 0, 8), (std::array{0, 4, 12}));
  EXPECT_EQ(node(14, 0, 4), (std::array{8, 2, 6}));
  EXPECT_EQ(node(14, 0, 12), (std::array{8, 10, 13}));
  EXPECT_EQ(node(14, 0, 13), (std::array{12, -1, -1}));
  EXPECT_EQ(node(14, 1, 13), (std::array{-1, -1, 5}));  // the mirror image
  EXPECT_EQ(node(14, 1, 5), (std::array{13, 9, 1}));
  EXPECT_EQ(node(3, 1, 1), (std::array{-1, -1, 0}));  // the shift, for an odd number
}

TEST(DoubleTree, EveryRankIsALeafInAtLeastOneTreeForEvenRanks) {
  for (int ranks = 2; ranks <= 64; ranks += 2) {
    for (int rank = 0; rank < ranks; ++rank) {
      int inner = 0;
      for (const int tree : {0, 1}) {
        const TreeNode node = double_tree_node(ranks, tree, rank);
        inner += node.first_child >= 0 || node.second_child >= 0;
      }
      EXPECT_LE(inner, 1) << ranks << " " << rank;
    }
  }
}

}  // namespace
}  // namespace shardproof
