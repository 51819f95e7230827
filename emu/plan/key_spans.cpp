#include "emu/plan/key_spans.h"

#include <algorithm>

namespace shardproof {
namespace {

/// Of the keys, those at the position and before; and whether one lies at the position itself.
struct Visible {
  std::int64_t keys = 0;
  bool itself = false;
};

Visible visible_at(std::int64_t position, std::span<const Chunk> held) {
  Visible visible;
  for (const Chunk& piece : held) {
    visible.keys += std::clamp<std::int64_t>(position + 1 - piece.begin, 0, piece.count);
    visible.itself = visible.itself || (piece.begin <= position && position < piece.end());
  }
  return visible;
}

/// Lengthens the last span where this one goes on as it does.
void append(const KeySpan& span, std::vector<KeySpan>& spans) {
  if (!spans.empty()) {
    KeySpan& last = spans.back();
    const std::int64_t next = last.keys + (last.causal ? last.queries : 0);
    if (last.first_key == span.first_key && last.causal == span.causal && next == span.keys) {
      last.queries += span.queries;
      return;
    }
  }
  spans.push_back(span);
}

/// Cuts a piece of queries where keys begin and end.
void add_spans(const Chunk& queries, std::span<const Chunk> held, std::int64_t first_key, std::vector<KeySpan>& spans) {
  std::vector<std::int64_t> cuts{queries.begin, queries.end()};
  for (const Chunk& piece : held) {
    for (const std::int64_t at : {piece.begin, piece.end()}) {
      if (queries.begin < at && at < queries.end()) cuts.push_back(at);
    }
  }
  std::ranges::sort(cuts);
  for (std::size_t i = 1; i < cuts.size(); ++i) {
    if (cuts[i] == cuts[i - 1]) continue;
    const Visible first = visible_at(cuts[i - 1], held);
    append({.queries = cuts[i] - cuts[i - 1], .first_key = first_key, .keys = first.keys, .causal = first.itself},
           spans);
  }
}

}  // namespace

std::vector<KeySpan> key_spans(std::span<const Chunk> pieces, std::span<const Chunk> held) {
  std::vector<KeySpan> spans;
  std::int64_t first_key = 0;
  std::size_t first = 0;
  for (const Chunk& queries : pieces) {
    for (; first < held.size() && held[first].sequence < queries.sequence; ++first) first_key += held[first].count;
    std::size_t last = first;
    while (last < held.size() && held[last].sequence == queries.sequence) ++last;
    add_spans(queries, held.subspan(first, last - first), first_key, spans);
  }
  return spans;
}

double pairs_between(std::span<const Chunk> pieces, std::span<const Chunk> held) {
  double pairs = 0;
  for (const KeySpan& span : key_spans(pieces, held)) pairs += span.pairs();
  return pairs;
}

}  // namespace shardproof
