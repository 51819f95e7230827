#include "emu/judge/generate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "emu/judge/prepared.h"
#include "emu/plan/batch.h"
#include "emu/run/tap.h"

namespace shardproof {
namespace {

/// Rows of the logits, put together from the ranks' parts of the vocabulary.
class LogitRows final : public TapSink {
 public:
  LogitRows(std::vector<std::int64_t> wanted, std::int64_t vocabulary) {
    for (const std::int64_t row : wanted) rows_[row].resize(static_cast<std::size_t>(vocabulary));
  }

  void tap(GlobalRank /*rank*/, const TapKey& key, const Placement& placement, const TapValues& part) override {
    if (key.id.kind != TapKind::logits || !key.name.empty()) return;
    std::visit([&](const auto& values) { take(placement, values); }, part);
  }
  const std::vector<double>& row(std::int64_t row) const { return rows_.at(row); }

 private:
  template <class T>
  void take(const Placement& placement, const ops::MatrixView<const T>& values) {
    const std::lock_guard lock(mutex_);
    for (std::int64_t i = 0; i < values.rows; ++i) {
      const auto found = rows_.find(placement.row(i));
      if (found == rows_.end()) continue;
      std::transform(values.row(i).begin(), values.row(i).end(), found->second.begin() + placement.col_part.begin,
                     [](T value) { return static_cast<double>(value); });
    }
  }

  std::mutex mutex_;
  std::map<std::int64_t, std::vector<double>> rows_;
};

GeneratedToken best_of(const std::vector<double>& logits) {
  const auto best = std::ranges::max_element(logits) - logits.begin();
  GeneratedToken token{.id = static_cast<std::int32_t>(best), .margin = std::numeric_limits<double>::infinity()};
  for (std::size_t id = 0; id < logits.size(); ++id) {
    const double below = logits[static_cast<std::size_t>(best)] - logits[id];
    if (static_cast<std::ptrdiff_t>(id) == best || below >= token.margin) continue;
    token.second = static_cast<std::int32_t>(id);
    token.margin = below;
  }
  return token;
}

class Generator {
 public:
  Generator(const RunnablePlan& plan, const VerifyOptions& options) : options_(options) {
    generation_.plan = plan.plan();
    const Workload& workload = generation_.plan.workload;
    if (!workload.serving || ops::computes_in_double(options.format) != (options.format == ops::Format::fp64)) {
      throw std::invalid_argument("tokens are generated from requests, in a float format");
    }
    options_.diagnose = false;
    const Batch batch(workload, generation_.plan.model.vocab_size);
    std::int64_t first = 0;
    for (const Request& request : workload.serving->requests) {
      const auto begin = batch.tokens().begin() + first;
      ids_.emplace_back(begin, begin + request.prompt);
      first += request.tokens();
    }
    generation_.outputs.resize(ids_.size());
  }

  Generation run() {
    std::int64_t longest = 0;
    for (const Request& request : requests()) longest = std::max(longest, request.output);
    for (std::int64_t made = 1; made <= longest && !generation_.failed; ++made) add_token(made);
    if (!generation_.failed) generation_.plan = as_far_as(std::numeric_limits<std::int64_t>::max(), true);
    if (!generation_.failed && longest > 0) choose_again();
    if (generation_.failed) generation_.plan = generation_.failed->plan;
    return std::move(generation_);
  }

 private:
  const std::vector<Request>& requests() const { return generation_.plan.workload.serving->requests; }

  /// The plan whose requests put out at most so many tokens, those before them known. Steps that are stated are of the
  /// whole outputs.
  Plan as_far_as(std::int64_t outputs, bool whole) const {
    Plan plan = generation_.plan;
    Serving& serving = *plan.workload.serving;
    if (!whole) serving.steps.clear();
    plan.workload.token_ids.clear();
    for (std::size_t i = 0; i < ids_.size(); ++i) {
      Request& request = serving.requests[i];
      request.output = std::min(request.output, outputs);
      const auto count = std::min<std::int64_t>(request.tokens(), std::ssize(ids_[i]));
      plan.workload.token_ids.emplace_back(ids_[i].begin(), ids_[i].begin() + count);
    }
    set_lengths(plan.workload);
    return plan;
  }

  /// Runs the plan; its logits at the rows.
  bool runs(const Plan& plan, LogitRows& logits) {
    VerifyOptions options = options_;
    options.taps = &logits;
    VerifyReport report = verify(plan, options);
    if (report.verdict != Verdict::pass) generation_.failed = std::move(report);
    return !generation_.failed;
  }

  /// The `made`-th token of every request that puts out as many.
  void add_token(std::int64_t made) {
    const Plan plan = as_far_as(made, false);
    std::vector<std::int64_t> last;
    std::int64_t first = 0;
    for (const std::int64_t length : plan.workload.lengths) last.push_back((first += length) - 1);
    LogitRows logits(last, plan.model.vocab_size);
    if (!runs(plan, logits)) return;
    for (std::size_t i = 0; i < ids_.size(); ++i) {
      if (requests()[i].output >= made) ids_[i].push_back(best_of(logits.row(last[i])).id);
    }
  }

  /// All tokens are there: what the plan's own steps make of them, and how far its logits are off.
  void choose_again() {
    const Plan& plan = generation_.plan;
    std::vector<std::int64_t> wanted;
    std::vector<std::pair<std::size_t, std::int64_t>> of;  // request, place in its output
    std::int64_t first = 0;
    for (std::size_t i = 0; i < ids_.size(); ++i) {
      for (std::int64_t place = 0; place < requests()[i].output; ++place) {
        wanted.push_back(first + requests()[i].prompt - 1 + place);
        of.emplace_back(i, place);
      }
      first += requests()[i].tokens();
    }
    LogitRows logits(wanted, plan.model.vocab_size);
    if (!runs(plan, logits)) return;
    const PreparedReference whole = prepare_whole_model(plan, options_.format, options_.weights);
    const ExpectedTap& expected =
        whole.expected.all()[static_cast<std::size_t>(whole.expected.find({.kind = TapKind::logits}))];
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      const std::vector<double>& row = logits.row(wanted[i]);
      GeneratedToken token = best_of(row);
      for (std::size_t id = 0; id < row.size(); ++id) {
        token.error = std::max(token.error, std::abs(row[id] - expected.at(wanted[i], static_cast<std::int64_t>(id))));
      }
      const auto [request, place] = of[i];
      const std::int32_t before = ids_[request][static_cast<std::size_t>(requests()[request].prompt + place)];
      token.differs = token.id != before;
      if (token.differs) {
        token.margin = row[static_cast<std::size_t>(token.id)] - row[static_cast<std::size_t>(before)];
        token.second = std::exchange(token.id, before);
      }
      generation_.outputs[request].push_back(token);
    }
  }

  VerifyOptions options_;
  Generation generation_;
  std::vector<std::vector<std::int32_t>> ids_;  ///< of each request, as far as they are known
};

}  // namespace

std::vector<std::pair<std::int64_t, std::int64_t>> Generation::close() const {
  std::vector<std::pair<std::int64_t, std::int64_t>> found;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    for (std::size_t place = 0; place < outputs[i].size(); ++place) {
      if (outputs[i][place].close()) found.emplace_back(i, place);
    }
  }
  return found;
}

bool Generation::contradicts_itself() const {
  return std::ranges::any_of(outputs, [](const std::vector<GeneratedToken>& output) {
    return std::ranges::any_of(output, [](const GeneratedToken& token) { return token.differs && !token.close(); });
  });
}

Generation generate(const RunnablePlan& plan, const VerifyOptions& options) {
  return Generator(plan, options).run();
}

}  // namespace shardproof
