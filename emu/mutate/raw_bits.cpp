#include "emu/mutate/raw_bits.h"

#include <bit>
#include <type_traits>
#include <variant>

#include "emu/judge/session.h"
#include "emu/plan/random.h"

namespace shardproof {
namespace {

class HashingSink final : public TapSink {
 public:
  explicit HashingSink(int world) : hashes_(static_cast<std::size_t>(world)) {}

  // A rank's taps come one after the other, so that its own hash needs no lock.
  void tap(GlobalRank rank, const TapKey& key, const Placement& placement, const TapValues& part) override {
    std::uint64_t& hash = hashes_[static_cast<std::size_t>(to_int(rank))];
    const auto add = [&](std::uint64_t value) { hash = mix64(hash ^ value) + 0x9e3779b97f4a7c15U; };
    const TapId& id = key.id;
    for (const int place : {id.step, id.layer, static_cast<int>(id.kind), id.expert, id.slot, id.part}) {
      add(static_cast<std::uint64_t>(place));
    }
    for (const Range& range : {placement.row_part, placement.col_part}) {
      add(static_cast<std::uint64_t>(range.begin));
      add(static_cast<std::uint64_t>(range.count));
    }
    for (const std::int64_t row : placement.row_list) add(static_cast<std::uint64_t>(row));
    std::visit(
        [&]<class T>(ops::MatrixView<const T> values) {
          using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
          for (ops::Index row = 0; row < values.rows; ++row) {
            for (const T value : values.row(row)) add(std::bit_cast<Bits>(value));
          }
        },
        part);
  }
  bool inner() const override { return true; }

  std::vector<std::uint64_t> take() { return std::move(hashes_); }

 private:
  std::vector<std::uint64_t> hashes_;
};

}  // namespace

RawBits raw_bits(const RunnablePlan& plan, const VerifyOptions& options, const PreparedReference& reference) {
  Session session(plan, options, reference);
  HashingSink sink(plan.plan().world());
  if (!session.repeat(session.sharded(), sink)) return std::nullopt;
  return sink.take();
}

}  // namespace shardproof
