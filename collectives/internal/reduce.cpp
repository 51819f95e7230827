#include "collectives/internal/reduce.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "collectives/internal/copy.h"
#include "collectives/internal/reduce_kernels.h"

namespace shardproof::internal {

namespace {

// A block of partial sums stays in the first-level cache while all inputs pass by, and while it is written to all
// receivers.
constexpr std::size_t kBlock = 512;
// Orders are trees of at most log2 P levels; a binary one leaves a partial sum at each.
constexpr int kMaxDepth = 32;
// Inputs that are added in one run.
constexpr std::size_t kChain = 64;

template <class T>
void round_block(const Rounding& rounding, T* values, std::size_t count) {
  if constexpr (std::is_same_v<T, float>) {
    if (rounding.round_float != nullptr) rounding.round_float({values, count});
  } else if constexpr (std::is_same_v<T, double>) {
    if (rounding.round_double != nullptr) rounding.round_double({values, count});
  }
}

template <class T>
bool rounds(const Rounding& rounding) {
  if constexpr (std::is_same_v<T, float>) return rounding.round_float != nullptr;
  if constexpr (std::is_same_v<T, double>) return rounding.round_double != nullptr;
  return false;
}

template <class T, class Acc, template <class> class Operation>
class Evaluator {
 public:
  using Op = Operation<Acc>;

  explicit Evaluator(const Reducer& reducer)
      : reducer_(reducer),
        inputs_(reinterpret_cast<const T* const*>(reducer.inputs)),
        wire_rounds_(rounds<T>(reducer.options->wire)),
        accumulate_rounds_(rounds<Acc>(reducer.options->accumulate)),
        fuses_(std::is_same_v<T, Acc> && !wire_rounds_ && !accumulate_rounds_) {}

  void run(std::size_t begin, std::size_t end) {
    std::size_t chunk = chunk_of(begin);
    std::size_t chunk_end = chunks().begin(chunk + 1);
    set_order(chunk);
    for (std::size_t at = begin; at < end; at += kBlock) {
      const std::size_t block = std::min(kBlock, end - at);
      for (offset_ = 0; offset_ < block;) {
        if (chunk_end <= at + offset_) {
          while (chunk_end <= at + offset_) chunk_end = chunks().begin(++chunk + 1);
          set_order(chunk);
        }
        const std::size_t count = std::min(block - offset_, chunk_end - (at + offset_));
        evaluate(at + offset_, count);
        finish(count);
        offset_ += count;
      }
      next_ = std::min(kBlock, end - (at + block));
      deliver(at, block);
    }
  }

 private:
  using Block = std::array<Acc, kBlock>;

  const Chunks& chunks() const { return reducer_.chunks; }

  // The chunk that element `at` lies in; empty chunks lie nowhere.
  std::size_t chunk_of(std::size_t at) const {
    std::size_t low = 0;
    for (std::size_t high = chunks().count; high - low > 1;) {
      const std::size_t middle = low + (high - low) / 2;
      (chunks().begin(middle) <= at ? low : high) = middle;
    }
    return low;
  }

  void set_order(std::size_t chunk) {
    const std::size_t number = chunks().first + chunk;
    if (!chunks().orders.empty()) {
      order_ = chunks().orders[number];
      return;
    }
    made_order_.clear();
    append_order(chunks().algorithm, reducer_.ranks, chunks().nodes, number, made_order_);
    order_ = made_order_;
  }

  void evaluate(std::size_t at, std::size_t count) {
    depth_ = 0;
    for (std::size_t s = 0; s < order_.size();) {
      const Step& step = order_[s];
      if (fuses_ && step.kind != Step::Kind::merge) {
        s = evaluate_run(s, at, count);
        continue;
      }
      switch (step.kind) {
        case Step::Kind::load:
          ++depth_;
          convert(top(), wired(step.rank, at, count), count);
          break;
        case Step::Kind::add:
          add_one(wired(step.rank, at, count), count);
          break;
        case Step::Kind::merge:
          --depth_;
          add_one(static_cast<const Acc*>(stack_[depth_].data() + offset_), count);
          break;
      }
      if (step.hop && step.kind != Step::Kind::load) send(count);
      ++s;
    }
  }

  // A load or an addition with the additions that follow, and the merge after them, when nothing rounds between them.
  std::size_t evaluate_run(std::size_t s, std::size_t at, std::size_t count) {
    const bool load = order_[s].kind == Step::Kind::load;
    std::size_t length = 0;
    do {
      chain_[length++] = inputs_[order_[s++].rank] + at;
    } while (s < order_.size() && order_[s].kind == Step::Kind::add && length < kChain);
    if constexpr (std::is_floating_point_v<T>) {
      const std::size_t after = load && length <= kFirstJoinable ? join_runs(s, length, at, count) : s;
      if (after != s) return after;
    }
    if (!load) {
      add_inputs<Op>(top(), chain_.data(), length, count);
    } else if (s < order_.size() && order_[s].kind == Step::Kind::merge && length <= kMergeable) {
      merge_inputs<Op>(top(), chain_.data(), length, count);
      ++s;
    } else {
      ++depth_;
      sum_inputs<Op>(top(), chain_.data(), length, count);
    }
    return s;
  }

  // After a short run that began with a load: where another follows and a merge joins the two (and perhaps one more
  // merge joins them to what is below), all of it at once. Returns the step after it, or `s`.
  std::size_t join_runs(std::size_t s, std::size_t first, std::size_t at, std::size_t count) {
    std::array<const T*, kSecondJoinable> second;
    std::size_t seconds = 0;
    std::size_t end = s;
    while (end < order_.size() && order_[end].kind == (end == s ? Step::Kind::load : Step::Kind::add)) {
      if (seconds == second.size()) return s;
      second[seconds++] = inputs_[order_[end++].rank] + at;
    }
    if (seconds == 0 || end == order_.size() || order_[end].kind != Step::Kind::merge) return s;
    ++end;
    if (end < order_.size() && order_[end].kind == Step::Kind::merge) {
      join_inputs<Op, true>(top(), chain_.data(), first, second.data(), seconds, count);
      return end + 1;
    }
    ++depth_;
    join_inputs<Op, false>(top(), chain_.data(), first, second.data(), seconds, count);
    return end;
  }

  template <class From>
  void add_one(const From* from, std::size_t count) {
    add_inputs<Op>(top(), &from, 1, count);
    round_accumulator(count);
  }

  Acc* top() { return stack_[depth_ - 1].data() + offset_; }

  // The rank's input in the wire format.
  const T* wired(int rank, std::size_t at, std::size_t count) {
    const T* input = inputs_[rank] + at;
    if (!wire_rounds_) return input;
    std::memcpy(scratch_.data(), input, count * sizeof(T));
    round_block(reducer_.options->wire, scratch_.data(), count);
    return scratch_.data();
  }

  void round_accumulator(std::size_t count) {
    if (accumulate_rounds_) round_block(reducer_.options->accumulate, top(), count);
  }

  void send(std::size_t count) {
    if constexpr (std::is_same_v<T, Acc>) {
      if (wire_rounds_) round_block(reducer_.options->wire, top(), count);
    } else {
      convert(scratch_.data(), top(), count);
      round_block(reducer_.options->wire, scratch_.data(), count);
      convert(top(), scratch_.data(), count);
    }
  }

  // What is left on the stack is the sum: as it will be stored.
  void finish(std::size_t count) {
    Acc* sum = top();
    if (reducer_.options->reduction == Reduction::average) {
      using Wide = std::conditional_t<std::is_floating_point_v<Acc>, Acc,
                                      std::conditional_t<std::is_signed_v<Acc>, std::int64_t, std::uint64_t>>;
      const Wide divisor = static_cast<Wide>(reducer_.ranks);
      for (std::size_t i = 0; i < count; ++i) sum[i] = static_cast<Acc>(static_cast<Wide>(sum[i]) / divisor);
      round_accumulator(count);
    }
    if constexpr (!std::is_same_v<T, Acc>) convert(result_.data() + offset_, sum, count);
    if (wire_rounds_) round_block(reducer_.options->wire, result() + offset_, count);
  }

  T* result() {
    if constexpr (std::is_same_v<T, Acc>) {
      return stack_[0].data();
    } else {
      return result_.data();
    }
  }

  // The block that begins at element `at`, to those who receive it or a part of it.
  void deliver(std::size_t at, std::size_t count) {
    const Receivers& receivers = reducer_.receivers;
    if (receivers.bounds.empty()) {
      for (std::size_t i = 0; i < receivers.outputs.size(); ++i) {
        T* const to = static_cast<T*>(receivers.outputs[i]) + at;
        if (reducer_.mode != CopyMode::cached) fetch_ahead(i, at + count, to + count);
        copy_bytes(to, result(), count * sizeof(T), reducer_.mode);
      }
      return;
    }
    const auto after = std::upper_bound(receivers.bounds.begin(), receivers.bounds.end(), at);
    auto receiver = static_cast<std::size_t>(after - receivers.bounds.begin()) - 1;
    for (std::size_t done = 0; done < count; ++receiver) {
      const std::size_t first = receivers.bounds[receiver];
      const std::size_t part = std::min(count, receivers.bounds[receiver + 1] - at) - done;
      if (part == 0) continue;
      copy_bytes(static_cast<T*>(receivers.outputs[receiver]) + (at + done - first), result() + done, part * sizeof(T),
                 reducer_.mode);
      done += part;
    }
  }

  // While output i is written: what the block at `next` needs, of some inputs and of this output.
  void fetch_ahead(std::size_t i, std::size_t next, T* to) {
    const auto ranks = static_cast<std::size_t>(reducer_.ranks);
    const std::size_t outputs = reducer_.receivers.outputs.size();
    for (std::size_t rank = ranks * i / outputs; rank < ranks * (i + 1) / outputs; ++rank) {
      fetch_to_read(inputs_[rank] + next, next_ * sizeof(T));
    }
    if (reducer_.mode == CopyMode::ahead) fetch_to_write(to, next_ * sizeof(T));
  }

  const Reducer& reducer_;
  const T* const* inputs_;
  bool wire_rounds_;
  bool accumulate_rounds_;
  bool fuses_;                   // a hop changes nothing
  std::span<const Step> order_;  // of the current chunk
  Order made_order_;
  std::size_t offset_ = 0;  // where in the block the current chunk's part begins
  std::size_t next_ = 0;    // elements of the next block
  std::size_t depth_ = 0;
  std::array<const T*, kChain> chain_;
  alignas(64) std::array<T, kBlock> scratch_;
  alignas(64) std::array<T, std::is_same_v<T, Acc> ? 1 : kBlock> result_;  // where the sums are in another type
  alignas(64) std::array<Block, kMaxDepth> stack_;  // only as deep as the order goes is ever touched
};

template <class T, class Acc>
void reduce_with(const Reducer& reducer, std::size_t begin, std::size_t end) {
  switch (reducer.options->reduction) {
    case Reduction::sum:
    case Reduction::average:
      return Evaluator<T, Acc, Sum>(reducer).run(begin, end);
    case Reduction::max:
      return Evaluator<T, Acc, Max>(reducer).run(begin, end);
    case Reduction::min:
      return Evaluator<T, Acc, Min>(reducer).run(begin, end);
  }
}

}  // namespace

void reduce_range(const Reducer& reducer, std::size_t begin, std::size_t end) {
  if (begin >= end) return;
  switch (reducer.type) {
    case ElementType::f32:
      if (reducer.options->accumulate.bytes == 8) {
        return reduce_with<float, double>(reducer, begin, end);
      }
      return reduce_with<float, float>(reducer, begin, end);
    case ElementType::f64:
      return reduce_with<double, double>(reducer, begin, end);
    case ElementType::i8:
      return reduce_with<std::int8_t, std::int8_t>(reducer, begin, end);
    case ElementType::u8:
      return reduce_with<std::uint8_t, std::uint8_t>(reducer, begin, end);
    case ElementType::i16:
      return reduce_with<std::int16_t, std::int16_t>(reducer, begin, end);
    case ElementType::u16:
      return reduce_with<std::uint16_t, std::uint16_t>(reducer, begin, end);
    case ElementType::i32:
      return reduce_with<std::int32_t, std::int32_t>(reducer, begin, end);
    case ElementType::u32:
      return reduce_with<std::uint32_t, std::uint32_t>(reducer, begin, end);
    case ElementType::i64:
      return reduce_with<std::int64_t, std::int64_t>(reducer, begin, end);
    case ElementType::u64:
      return reduce_with<std::uint64_t, std::uint64_t>(reducer, begin, end);
  }
}

}  // namespace shardproof::internal
