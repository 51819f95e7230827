#include "tests/collectives/oracles.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <random>

#include "collectives/algorithms/tree.h"

namespace shardproof::testing {

namespace {

// A coarse format: 8 significant bits, as bfloat16 has them.
float coarse(float value) {
  std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return std::bit_cast<float>(bits & 0xffff0000u);
}
void round_coarse(std::span<float> values) {
  for (float& value : values) value = coarse(value);
}
Range chunk_of(std::size_t count, int chunks, int chunk) {
  const auto n = static_cast<std::size_t>(chunks);
  const auto c = static_cast<std::size_t>(((chunk % chunks) + chunks) % chunks);
  return {chunk_begin(count, n, c), chunk_begin(count, n, c + 1)};
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
void ring_reduce(const Numbers& numbers, Buffers& buffers, const Members& members, Range whole) {
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
void ring_gather(Buffers& buffers, const Members& members, Range whole) {
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

}  // namespace

const Rounding kCoarse{.name = "coarse", .bytes = 2, .round_float = round_coarse, .round_double = nullptr};

float Numbers::at_rest(float value) const {
  return wire ? coarse(value) : value;
}
float Numbers::add(float a, float b) const {
  return accumulate ? coarse(a + b) : a + b;
}
ReduceOptions Numbers::options(Algorithm algorithm, int gpus_per_node) const {
  ReduceOptions result{.algorithm = algorithm, .gpus_per_node = gpus_per_node};
  if (wire) result.wire = kCoarse;
  if (accumulate) result.accumulate = kCoarse;
  return result;
}

std::vector<float> slice(const std::vector<float>& values, Range range) {
  return {values.begin() + static_cast<std::ptrdiff_t>(range.begin),
          values.begin() + static_cast<std::ptrdiff_t>(range.end)};
}

void oracle_ring(const Numbers& numbers, Buffers& buffers) {
  Members members;
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

void oracle_hierarchical_uneven(const Numbers& numbers, Buffers& buffers, const std::vector<Members>& nodes) {
  const Range whole{0, buffers[0].size()};
  Members leaders;
  for (const Members& node : nodes) {
    leaders.push_back(node.front());
    // From the second member on to the last, and from there to the first.
    for (std::size_t i = 1; i < node.size(); ++i) {
      deliver_add(numbers, buffers, {{node[(i + 1) % node.size()], whole, buffers[node[i]]}});
    }
  }
  ring_reduce(numbers, buffers, leaders, whole);
  ring_gather(buffers, leaders, whole);
  for (const Members& node : nodes) {
    for (std::size_t i = 1; i < node.size(); ++i) deliver_copy(buffers, {{node[i], whole, buffers[node[i - 1]]}});
  }
}

void oracle_ring_scatter(const Numbers& numbers, Buffers& buffers, const std::vector<std::size_t>& bounds) {
  const std::size_t n = buffers.size();
  for (std::size_t step = 0; step + 1 < n; ++step) {
    std::vector<Message> messages;
    for (std::size_t r = 0; r < n; ++r) {
      const std::size_t part = (r + 2 * n - 1 - step) % n;
      const Range range{bounds[part], bounds[part + 1]};
      messages.push_back({(r + 1) % n, range, slice(buffers[r], range)});
    }
    deliver_add(numbers, buffers, messages);
  }
}

void oracle_chain(const Numbers& numbers, Buffers& buffers, std::size_t root) {
  const std::size_t n = buffers.size();
  for (std::size_t i = 1; i < n; ++i) {
    const std::size_t from = (root + i) % n;
    deliver_add(numbers, buffers, {{(from + 1) % n, {0, buffers[from].size()}, buffers[from]}});
  }
}

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

Buffers at_rest(const Numbers& numbers, Buffers buffers) {
  for (auto& buffer : buffers) {
    for (float& value : buffer) value = numbers.at_rest(value);
  }
  return buffers;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

}  // namespace shardproof::testing
