#include "collectives/internal/reduce.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace shardproof::internal {

namespace {

// A block of partial sums stays in the first-level cache while all inputs pass by.
constexpr std::size_t kBlock = 1024;
constexpr int kMaxDepth = 32;

// Integers wrap around: their sums are taken in the unsigned type.
template <class T>
struct Sum {
  static T apply(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      using U = std::make_unsigned_t<T>;
      return static_cast<T>(static_cast<U>(static_cast<U>(a) + static_cast<U>(b)));
    } else {
      return a + b;
    }
  }
};
template <class T>
struct Max {
  static T apply(T a, T b) { return a < b ? b : a; }
};
template <class T>
struct Min {
  static T apply(T a, T b) { return b < a ? b : a; }
};

template <class Acc, class T>
void convert(Acc* __restrict to, const T* __restrict from, std::size_t count) {
  if constexpr (std::is_same_v<Acc, T>) {
    std::memcpy(to, from, count * sizeof(T));
  } else {
    for (std::size_t i = 0; i < count; ++i) to[i] = static_cast<Acc>(from[i]);
  }
}

// top = (((top + a) + b) + c) + d, element by element: one load and store of the partial sum for four inputs.
template <class Op, class Acc, class T>
void add_inputs(Acc* __restrict top, const T* const* inputs, std::size_t inputs_count, std::size_t count) {
  std::size_t i = 0;
  for (; i + 4 <= inputs_count; i += 4) {
    const T* a = inputs[i];
    const T* b = inputs[i + 1];
    const T* c = inputs[i + 2];
    const T* d = inputs[i + 3];
    for (std::size_t e = 0; e < count; ++e) {
      const Acc two = Op::apply(Op::apply(top[e], static_cast<Acc>(a[e])), static_cast<Acc>(b[e]));
      top[e] = Op::apply(Op::apply(two, static_cast<Acc>(c[e])), static_cast<Acc>(d[e]));
    }
  }
  for (; i < inputs_count; ++i) {
    const T* a = inputs[i];
    for (std::size_t e = 0; e < count; ++e) top[e] = Op::apply(top[e], static_cast<Acc>(a[e]));
  }
}

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
        accumulate_rounds_(rounds<Acc>(reducer.options->accumulate)) {}

  void run(const Order& order, std::size_t begin, std::size_t end, std::span<void* const> outputs, std::size_t shift) {
    chain_.resize(order.size());
    for (std::size_t at = begin; at < end; at += kBlock) {
      const std::size_t count = std::min(kBlock, end - at);
      evaluate(order, at, count);
      const T* result = finish(count);
      for (void* const output : outputs) std::memcpy(static_cast<T*>(output) + (at - shift), result, count * sizeof(T));
    }
  }

 private:
  using Block = std::array<Acc, kBlock>;

  void evaluate(const Order& order, std::size_t at, std::size_t count) {
    depth_ = 0;
    for (std::size_t s = 0; s < order.size();) {
      const Step& step = order[s];
      if (step.kind == Step::Kind::merge) {
        --depth_;
        const Acc* other = stack_[depth_].data();
        add_inputs<Op>(top(), &other, 1, count);
        round_accumulator(count);
        if (step.hop) send(count);
        ++s;
        continue;
      }
      if (step.kind == Step::Kind::load) {
        convert(stack_[depth_++].data(), wired(step.rank, at, count), count);
        ++s;
        if (s == order.size() || order[s].kind != Step::Kind::add) continue;
      }
      s = add_run(order, s, at, count);
    }
  }

  // Additions that nothing rounds between are done four at a time.
  std::size_t add_run(const Order& order, std::size_t s, std::size_t at, std::size_t count) {
    if (wire_rounds_ || accumulate_rounds_ || !std::is_same_v<T, Acc>) {
      const T* input = wired(order[s].rank, at, count);
      add_inputs<Op>(top(), &input, 1, count);
      round_accumulator(count);
      if (order[s].hop) send(count);
      return s + 1;
    }
    std::size_t length = 0;
    for (; s < order.size() && order[s].kind == Step::Kind::add; ++s) {
      chain_[length++] = inputs_[order[s].rank] + at;
    }
    add_inputs<Op>(top(), chain_.data(), length, count);
    return s;
  }

  Acc* top() { return stack_[depth_ - 1].data(); }

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

  const T* finish(std::size_t count) {
    Acc* result = top();
    if (reducer_.options->reduction == Reduction::average) {
      using Wide = std::conditional_t<std::is_floating_point_v<Acc>, Acc,
                                      std::conditional_t<std::is_signed_v<Acc>, std::int64_t, std::uint64_t>>;
      const Wide divisor = static_cast<Wide>(reducer_.ranks);
      for (std::size_t i = 0; i < count; ++i) result[i] = static_cast<Acc>(static_cast<Wide>(result[i]) / divisor);
      round_accumulator(count);
    }
    if constexpr (std::is_same_v<T, Acc>) {
      if (wire_rounds_) round_block(reducer_.options->wire, result, count);
      return result;
    } else {
      convert(scratch_.data(), result, count);
      round_block(reducer_.options->wire, scratch_.data(), count);
      return scratch_.data();
    }
  }

  const Reducer& reducer_;
  const T* const* inputs_;
  bool wire_rounds_;
  bool accumulate_rounds_;
  std::size_t depth_ = 0;
  std::vector<const T*> chain_;
  alignas(64) std::array<T, kBlock> scratch_;
  alignas(64) std::array<Block, kMaxDepth> stack_;  // only as deep as the order goes is ever touched
};

template <class T, class Acc>
void reduce_with(const Reducer& reducer, const Order& order, std::size_t begin, std::size_t end,
                 std::span<void* const> outputs, std::size_t shift) {
  switch (reducer.options->reduction) {
    case Reduction::sum:
    case Reduction::average:
      return Evaluator<T, Acc, Sum>(reducer).run(order, begin, end, outputs, shift);
    case Reduction::max:
      return Evaluator<T, Acc, Max>(reducer).run(order, begin, end, outputs, shift);
    case Reduction::min:
      return Evaluator<T, Acc, Min>(reducer).run(order, begin, end, outputs, shift);
  }
}

}  // namespace

void reduce_range(const Reducer& reducer, const Order& order, std::size_t begin, std::size_t end,
                  std::span<void* const> outputs, std::size_t shift) {
  switch (reducer.type) {
    case ElementType::f32:
      if (reducer.options->accumulate.bytes == 8) {
        return reduce_with<float, double>(reducer, order, begin, end, outputs, shift);
      }
      return reduce_with<float, float>(reducer, order, begin, end, outputs, shift);
    case ElementType::f64:
      return reduce_with<double, double>(reducer, order, begin, end, outputs, shift);
    case ElementType::i8:
      return reduce_with<std::int8_t, std::int8_t>(reducer, order, begin, end, outputs, shift);
    case ElementType::u8:
      return reduce_with<std::uint8_t, std::uint8_t>(reducer, order, begin, end, outputs, shift);
    case ElementType::i16:
      return reduce_with<std::int16_t, std::int16_t>(reducer, order, begin, end, outputs, shift);
    case ElementType::u16:
      return reduce_with<std::uint16_t, std::uint16_t>(reducer, order, begin, end, outputs, shift);
    case ElementType::i32:
      return reduce_with<std::int32_t, std::int32_t>(reducer, order, begin, end, outputs, shift);
    case ElementType::u32:
      return reduce_with<std::uint32_t, std::uint32_t>(reducer, order, begin, end, outputs, shift);
    case ElementType::i64:
      return reduce_with<std::int64_t, std::int64_t>(reducer, order, begin, end, outputs, shift);
    case ElementType::u64:
      return reduce_with<std::uint64_t, std::uint64_t>(reducer, order, begin, end, outputs, shift);
  }
}

}  // namespace shardproof::internal
