#include "tools/search_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "emu/paper/quantities.h"
#include "tools/terminal.h"

namespace shardproof::tools {
namespace {

std::string rate(double tokens) {
  return with_thousands(std::llround(tokens));
}

bool serves(const SearchRun& run) {
  return run.space.base.workload.serving.has_value();
}

std::string workload_text(const SearchRun& run) {
  const Workload& workload = run.space.base.workload;
  const auto [least, most] = std::ranges::minmax(workload.lengths);
  std::string text;
  if (workload.serving) {
    const auto& requests = workload.serving->requests;
    const bool alike = std::ranges::count(requests, requests.front()) == std::ssize(requests);
    text = alike ? fmt::format("requests of {} tokens in, {} out", requests.front().prompt, requests.front().output)
                 : fmt::format("requests of up to {} tokens", most);
  } else {
    text = least == most ? fmt::format("sequences of {} tokens", most)
                         : fmt::format("sequences of {} to {} tokens", least, most);
  }
  if (run.space.batches.empty()) return fmt::format("{} {}", workload.batch(), text);
  std::string batches;
  for (const std::int64_t batch : run.space.batches) batches += fmt::format("{}{}", batches.empty() ? "" : ", ", batch);
  return fmt::format("{} {}", batches, text);
}

std::string objective_text(const SearchOptions& options) {
  std::string text = options.objective == Objective::throughput     ? "most tokens/s"
                     : options.objective == Objective::output_token ? "least time per output token"
                                                                    : "least time to the first token";
  if (options.limits.first_token > 0) text += fmt::format("; ttft within {}", duration(options.limits.first_token));
  if (options.limits.output_token > 0) text += fmt::format("; tpot within {}", duration(options.limits.output_token));
  return text;
}

std::string head(const SearchRun& run) {
  const Hardware& hardware = *run.space.base.hardware;
  std::string text = fmt::format("{} on {} GPUs, {} a node, {:g} GB each; hardware: {}\n",
                                 toned(one_line(run.space.base.name), Tone::bold), run.space.gpus,
                                 hardware.gpus_per_node, hardware.memory_gb, run.options.hardware.name);
  for (const std::string& taken : run.options.hardware.taken) text += fmt::format("  open: {}\n", taken);
  text += fmt::format("  {}; {}\n", workload_text(run), objective_text(run.options));
  const SearchReport& report = run.report;
  text += fmt::format("  {} layouts fit and are projected, {} of them within the limits; {} need too much memory{}\n",
                      with_thousands(std::ssize(report.ranked)), with_thousands(report.good()),
                      with_thousands(report.too_large),
                      report.refused > 0 ? fmt::format("; {} are refused, the first because of {}",
                                                       with_thousands(report.refused), report.refused_because)
                                         : "");
  if (report.ranked.empty() && report.least_too_large) {
    text += fmt::format("  least too large: {}: {}\n", shardproof::describe(report.least_too_large->choice),
                        report.least_too_large->arithmetic);
  }
  return text;
}

std::vector<std::string> row(const std::string& place, const TimedLayout& layout) {
  return {place,
          layout.pareto ? "*" : "",
          shardproof::describe(layout.choice),
          rate(layout.tokens_per_second.value),
          duration(layout.output_token.value),
          duration(layout.first_token.value),
          fmt::format("{:.1f} GB", layout.memory_bytes * 1e-9),
          "  " + (layout.loses_by.empty() ? std::string("the best") : layout.loses_by)};
}

std::string front(const SearchRun& run, std::int64_t top) {
  std::vector<std::vector<std::string>> rows{
      {"", "", "layout", serves(run) ? "tokens/s" : "prompt tokens/s", "tpot", "ttft", "memory", "  loses by"}};
  const std::vector<TimedLayout>& ranked = run.report.ranked;
  for (std::int64_t i = 0; i < std::ssize(ranked); ++i) {
    const TimedLayout& layout = ranked[static_cast<std::size_t>(i)];
    if (i < top || layout.pareto) rows.push_back(row(fmt::format("{}", i + 1), layout));
  }
  return rows.size() == 1 ? "" : "\n" + table(rows, 3) + "* on the Pareto front of tokens/s, tpot and ttft\n";
}

std::string intervals(const SearchRun& run) {
  const TimedLayout& best = run.report.ranked.front();
  const auto span = [](const Interval& of) { return fmt::format("{} to {}", duration(of.low), duration(of.high)); };
  return fmt::format("the best lies in: tokens/s {} to {}, tpot {}, ttft {}\n", rate(best.tokens_per_second.low),
                     rate(best.tokens_per_second.high), span(best.output_token), span(best.first_token));
}

std::string given_text(const SearchRun& run) {
  const Placed& given = *run.given;
  const TimedLayout& layout = given.layout;
  std::string text =
      fmt::format("\nthe plan as given ({}): {} of {} layouts are better; {} tokens/s, tpot {}, ttft {}\n",
                  shardproof::describe(layout.choice), with_thousands(static_cast<long long>(given.place)),
                  with_thousands(std::ssize(run.report.ranked)), rate(layout.tokens_per_second.value),
                  duration(layout.output_token.value), duration(layout.first_token.value));
  if (!given.too_large.empty()) text += fmt::format("  it does not fit: {}\n", given.too_large);
  if (!layout.loses_by.empty()) text += fmt::format("  {}\n", layout.loses_by);
  return text;
}

}  // namespace

std::string search_text(const SearchRun& run, std::int64_t top) {
  std::string text = head(run) + front(run, top);
  if (!run.report.ranked.empty()) text += intervals(run);
  if (run.given) text += given_text(run);
  return text;
}

}  // namespace shardproof::tools
