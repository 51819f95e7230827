#include "emu/search/search.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <mutex>
#include <set>
#include <thread>
#include <tuple>
#include <utility>

#include "emu/paper/quantities.h"
#include "emu/plan/runnable.h"
#include "emu/plan/validate.h"
#include "emu/search/internal/evaluate.h"

namespace shardproof {
namespace {

/// Layouts that differ in what saves memory only.
struct Family {
  std::vector<Choice> choices;
  auto operator<=>(const Family&) const = default;
};

/// Walks the table of axes.
class Lattice {
 public:
  Lattice(const SearchSpace& space, const SearchOptions& options, SearchReport& report)
      : space_(space), options_(options), report_(report) {}

  /// With the first value of axes that refine, or all of them where the search is exhaustive.
  std::vector<Family> families() {
    walk(space_.base, nullptr);
    return std::exchange(families_, {});
  }

  /// With their further values, and the others of `layout`, but for those that save memory.
  std::vector<Family> refined(const Choice& layout) {
    walk(space_.base, &layout);
    return std::exchange(families_, {});
  }

  /// Of those whose weights do not fit, the one with the least.
  const std::optional<TooLarge>& lightest() const { return lightest_; }

 private:
  void walk(const Plan& chosen, const Choice* refining) {
    const std::span<const SearchAxis> axes = search_axes();
    if (choice_.size() == axes.size()) {
      families_.back().choices.push_back(choice_);
      return;
    }
    const SearchAxis& axis = axes[choice_.size()];
    if (axis.saves_memory) families_.emplace_back();
    for (const std::int64_t value : values_of(axis, chosen, refining)) {
      Plan plan = chosen;
      axis.set(plan, value);
      choice_.push_back(value);
      if (refining != nullptr || !axis.decides_weights || weights_fit(plan)) walk(plan, refining);
      choice_.pop_back();
    }
  }

  std::vector<std::int64_t> values_of(const SearchAxis& axis, const Plan& chosen, const Choice* refining) const {
    std::vector<std::int64_t> values = axis.values(space_, chosen);
    if (refining == nullptr && axis.refines && !options_.exhaustive && values.size() > 1) values.resize(1);
    if (refining != nullptr && !axis.refines && !axis.saves_memory) {
      const std::int64_t wanted = (*refining)[choice_.size()];
      std::erase_if(values, [&](std::int64_t value) { return value != wanted; });
    }
    return values;
  }

  bool weights_fit(const Plan& plan) {
    const double bytes = searching::weight_bytes(plan);
    if (bytes <= options_.memory_bytes) return true;
    ++report_.too_large;
    if (!lightest_ || bytes < lightest_->memory_bytes) {
      lightest_ = {choice_of(plan), bytes, fmt::format("weights {} alone", readable(bytes, Dimension::bytes))};
    }
    return false;
  }

  const SearchSpace& space_;
  const SearchOptions& options_;
  SearchReport& report_;
  Choice choice_;
  std::vector<Family> families_;
  std::optional<TooLarge> lightest_;
};

/// Layouts that axes are refined on, beside the front.
constexpr std::size_t kRefined = 16;

/// What became of a family.
struct Outcome {
  std::vector<TimedLayout> timed;
  std::vector<TooLarge> too_large;
  std::vector<Problem> refused;  ///< the first problem of each
};

Outcome judge(const Family& family, const SearchSpace& space, const SearchOptions& options,
              const StatedRouting& routing) {
  Outcome outcome;
  for (const Choice& choice : family.choices) {
    const Plan plan = plan_of(space, choice);
    std::vector<Problem> problems = validate(plan);
    if (problems.empty()) problems = not_executed(plan);
    if (!problems.empty()) {
      outcome.refused.push_back(problems.front());
      continue;
    }
    const searching::Evaluation evaluation(plan, routing, options);
    if (evaluation.memory_bytes() > options.memory_bytes) {
      outcome.too_large.push_back({choice, evaluation.memory_bytes(), evaluation.memory_arithmetic()});
      continue;
    }
    outcome.timed.push_back(evaluation.timed());
    if (plan.parallel.pp == 1) break;
  }
  return outcome;
}

/// work(i) for each of so many, on several threads; what one of them throws is thrown here.
void for_each_index(std::size_t count, int threads, const std::function<void(std::size_t)>& work) {
  std::atomic<std::size_t> next{0};
  std::exception_ptr failure;
  std::mutex guard;
  const auto run = [&] {
    for (std::size_t i = next++; i < count; i = next++) {
      try {
        work(i);
      } catch (...) {
        const std::scoped_lock lock(guard);
        if (!failure) failure = std::current_exception();
        next = count;
      }
    }
  };
  {
    std::vector<std::jthread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(run);
    run();
  }
  if (failure) std::rethrow_exception(failure);
}

bool before(const TimedLayout& a, const TimedLayout& b) {
  return std::tuple(!a.meets_limits, a.cost, a.memory_bytes, std::cref(a.choice).get()) <
         std::tuple(!b.meets_limits, b.cost, b.memory_bytes, std::cref(b.choice).get());
}

bool dominates(const TimedLayout& a, const TimedLayout& b) {
  const auto figures = [](const TimedLayout& one) {
    return std::array{-one.tokens_per_second.value, one.output_token.value, one.first_token.value};
  };
  const auto of_a = figures(a), of_b = figures(b);
  bool better = false;
  for (std::size_t i = 0; i < of_a.size(); ++i) {
    if (of_a[i] > of_b[i]) return false;
    better = better || of_a[i] < of_b[i];
  }
  return better;
}

void mark_pareto(std::vector<TimedLayout>& ranked, std::int64_t good) {
  const auto end = ranked.begin() + good;
  for (auto one = ranked.begin(); one != end; ++one) {
    one->pareto = std::none_of(ranked.begin(), end, [&](const TimedLayout& other) { return dominates(other, *one); });
  }
}

/// A further value of an axis that refines is among its choices'.
bool is_refined(const Family& family) {
  const std::span<const SearchAxis> axes = search_axes();
  for (std::size_t i = 0; i < axes.size(); ++i) {
    if (axes[i].refines && !family.choices.empty() && family.choices.front()[i] != axes[i].get(Plan{})) return true;
  }
  return false;
}

/// Judges families on several threads, and reports them in their order. Returns those that need too much memory.
std::vector<Choice> add(const std::vector<Family>& families, const SearchSpace& space, const SearchOptions& options,
                        const StatedRouting& routing, SearchReport& report) {
  std::vector<Choice> without_room;
  std::vector<Outcome> outcomes(families.size());
  for_each_index(families.size(), options.threads,
                 [&](std::size_t i) { outcomes[i] = judge(families[i], space, options, routing); });
  for (Outcome& outcome : outcomes) {
    std::ranges::move(outcome.timed, std::back_inserter(report.ranked));
    for (TooLarge& large : outcome.too_large) {
      ++report.too_large;
      without_room.push_back(large.choice);
      if (!report.least_too_large || large.memory_bytes < report.least_too_large->memory_bytes) {
        report.least_too_large = std::move(large);
      }
    }
    for (const Problem& problem : outcome.refused) {
      if (report.refused++ == 0) report.refused_because = problem.field + ": " + problem.message;
    }
  }
  return without_room;
}

/// Layouts whose axes that refine are worth their further values: the best, the front, and what has no room without.
std::vector<Choice> to_refine(const SearchReport& report, std::vector<Choice> without_room) {
  for (std::size_t i = 0; i < report.ranked.size(); ++i) {
    if (i < kRefined || report.ranked[i].pareto) without_room.push_back(report.ranked[i].choice);
  }
  return without_room;
}

void rank(SearchReport& report) {
  std::ranges::sort(report.ranked, before);
  mark_pareto(report.ranked, report.good());
}

}  // namespace

std::string_view to_string(Objective objective) {
  constexpr std::string_view kNames[] = {"throughput", "tpot", "ttft"};
  return kNames[static_cast<std::size_t>(objective)];
}

std::int64_t SearchReport::good() const {
  return std::ranges::count_if(ranked, &TimedLayout::meets_limits);
}

SearchReport search(const SearchSpace& space, const SearchOptions& options) {
  SearchReport report;
  const StatedRouting routing = StatedRouting::of(space.base);
  Lattice lattice(space, options, report);
  std::vector<Choice> without_room = add(lattice.families(), space, options, routing, report);
  rank(report);
  if (!report.least_too_large) report.least_too_large = lattice.lightest();
  if (!options.exhaustive) {
    std::set<Family> further;
    for (const Choice& layout : to_refine(report, std::move(without_room))) {
      for (Family& family : lattice.refined(layout)) {
        if (is_refined(family)) further.insert(std::move(family));
      }
    }
    add({further.begin(), further.end()}, space, options, routing, report);
    rank(report);
  }
  for (std::size_t i = 1; i < report.ranked.size(); ++i) {
    report.ranked[i].loses_by = searching::loses_by(report.ranked[i], report.ranked.front(), options);
  }
  return report;
}

Placed place(const Plan& plan, const SearchOptions& options, const SearchReport& report) {
  Placed placed;
  const StatedRouting routing = StatedRouting::of(plan);
  const searching::Evaluation evaluation(plan, routing, options);
  if (evaluation.memory_bytes() > options.memory_bytes) placed.too_large = evaluation.memory_arithmetic();
  placed.layout = evaluation.timed();
  placed.place =
      static_cast<std::size_t>(std::ranges::lower_bound(report.ranked, placed.layout, before) - report.ranked.begin());
  if (!report.ranked.empty() && before(report.ranked.front(), placed.layout)) {
    placed.layout.loses_by = searching::loses_by(placed.layout, report.ranked.front(), options);
  }
  return placed;
}

}  // namespace shardproof
