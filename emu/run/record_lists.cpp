#include "emu/run/internal/record_lists.h"

#include <algorithm>
#include <exception>
#include <stdexcept>
#include <utility>

#include "emu/run/context.h"
#include "emu/run/program.h"

namespace shardproof::dry {
namespace {

void finish(const Task<>& task) {
  task.handle().resume();
  if (task.error()) std::rethrow_exception(task.error());
}

}  // namespace

void RecordLists::run_whole(const Layout& layout, const WorkItem& item, RankTrace& trace) const {
  const bool pair = item.beside >= 0;
  const RankTokens tokens = deployment_.tokens.rank_shapes(layout.at, item.microbatch);
  const RankTokens beside = pair ? deployment_.tokens.rank_shapes(layout.at, item.beside) : RankTokens{};
  Context<ShapeOnly> ctx(model_, format_, layout, tokens, item.microbatch, &trace, {run_});
  Context<ShapeOnly> other(model_, format_, layout, beside, item.beside, &trace, {run_});
  finish(pair ? run_pair(ctx, other, item) : run_item(ctx, item));
}

std::shared_ptr<const RankTrace> RecordLists::whole(int rank) const {
  const auto id = static_cast<std::size_t>(rank);
  auto trace = std::make_shared<RankTrace>();
  for (const WorkItem& item : deployment_.timetable[id]) {
    run_whole(deployment_.layouts[id], item, *trace);
    require_kept(trace->ops.size(), model_, deployment_.tokens.microbatches());
  }
  return trace;
}

/// Makes the list of one rank.
class RecordLists::Folding {
 public:
  Folding(RecordLists& lists, const Layout& layout) : lists_(lists), layout_(layout) {}

  void add(const WorkItem& item) {
    const Key key = key_of_item(lists_.model_, lists_.deployment_, lists_.run_, layout_, item);
    const auto [known, is_new] = items_.try_emplace(key);
    if (is_new) {
      known->second = {item.microbatch, item.beside >= 0 ? pair(item) : single(item)};
    }
    for (RecordRun run : known->second.runs) {
      run.microbatch_shift += static_cast<std::int32_t>(item.microbatch - known->second.microbatch);
      records_ += run.records();
      trace_->runs.push_back(run);
    }
    require_kept(records_, lists_.model_, lists_.deployment_.tokens.microbatches());
  }

  std::shared_ptr<const RankTrace> list() { return std::move(trace_); }

 private:
  struct Item {
    std::int64_t microbatch = 0;  ///< of the first one that is like it
    std::vector<RecordRun> runs;
  };

  std::vector<RecordRun> pair(const WorkItem& item) {
    const std::size_t begin = trace_->ops.size();
    lists_.run_whole(layout_, item, *trace_);
    return {{.begin = begin, .end = trace_->ops.size()}};
  }

  std::vector<RecordRun> single(const WorkItem& item) {
    const std::vector<Key> keys = keys_of_layers(lists_.model_, lists_.deployment_, lists_.run_, layout_, item);
    const auto [enter, leave] = run_new_layers(item, keys);
    std::vector<RecordRun> runs{appended(enter)};
    for (std::size_t i = 0; i < keys.size();) {
      std::size_t end = i + 1;
      while (end < keys.size() && keys[end] == keys[i]) ++end;
      runs.push_back(run_of(item, keys[i], item.layers.begin + static_cast<std::int64_t>(i)));
      runs.back().layers = static_cast<std::int32_t>(end - i);
      i = end;
    }
    runs.push_back(appended(leave));
    return runs;
  }

  struct Ends {
    std::vector<OpRecord> enter, leave;
  };

  /// Runs the item with none of its layers but the first, and those whose like has not been.
  Ends run_new_layers(const WorkItem& item, const std::vector<Key>& keys) {
    std::vector<int> layers;
    std::vector<const Key*> wanted;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const bool asked = std::ranges::any_of(wanted, [&](const Key* key) { return *key == keys[i]; });
      if (asked || (i > 0 && lists_.layers_.contains(keys[i]))) continue;
      layers.push_back(static_cast<int>(item.layers.begin) + static_cast<int>(i));
      wanted.push_back(&keys[i]);
    }
    RankTrace trace;
    const RankTokens tokens = lists_.deployment_.tokens.rank_shapes(layout_.at, item.microbatch);
    Context<ShapeOnly> ctx(lists_.model_, lists_.format_, layout_, tokens, item.microbatch, &trace, {lists_.run_});
    finish(run_layers(ctx, layers));
    auto at = trace.ops.cbegin();
    const auto until = [&](auto&& ends) {
      const auto from = std::exchange(at, std::find_if(at, trace.ops.cend(), ends));
      return std::vector<OpRecord>(from, at);
    };
    Ends ends;
    ends.enter = until([&](const OpRecord& record) { return !layers.empty() && record.layer == layers.front(); });
    for (std::size_t i = 0; i < layers.size(); ++i) {
      lists_.layers_.try_emplace(*wanted[i], until([&](const OpRecord& record) { return record.layer != layers[i]; }));
    }
    ends.leave.assign(at, trace.ops.cend());
    return ends;
  }

  RecordRun appended(const std::vector<OpRecord>& records) {
    const std::size_t begin = trace_->ops.size();
    trace_->ops.insert(trace_->ops.end(), records.begin(), records.end());
    return {.begin = begin, .end = trace_->ops.size()};
  }

  /// The records of a layer, once in the list.
  RecordRun run_of(const WorkItem& item, const Key& key, std::int64_t layer) {
    const auto [known, is_new] = layers_.try_emplace(&lists_.layers_.at(key));
    RecordRun& run = known->second;
    if (is_new) run = appended(*known->first);
    const OpRecord& first = trace_->ops[run.begin];
    run.layer_shift = static_cast<std::int32_t>(layer) - first.layer;
    run.microbatch_shift = static_cast<std::int32_t>(item.microbatch) - first.microbatch;
    return run;
  }

  RecordLists& lists_;
  const Layout& layout_;
  std::shared_ptr<RankTrace> trace_ = std::make_shared<RankTrace>();
  std::size_t records_ = 0;
  std::map<Key, Item> items_;
  std::map<const std::vector<OpRecord>*, RecordRun> layers_;
};

std::shared_ptr<const RankTrace> RecordLists::folded(int rank) {
  const auto id = static_cast<std::size_t>(rank);
  Folding folding(*this, deployment_.layouts[id]);
  for (const WorkItem& item : deployment_.timetable[id]) folding.add(item);
  return folding.list();
}

}  // namespace shardproof::dry
