// Reads a graph as a stream: a million nodes need no tree of values.
#include <fmt/format.h>

#include <cstdint>
#include <nlohmann/json.hpp>

#include "emu/input/json_value.h"
#include "emu/timeline/audit.h"

namespace shardproof {
namespace {

constexpr std::size_t kMostProblems = 20;
constexpr int kMaxDepth = 64;
constexpr std::size_t kMostShapeDims = 16;

/// Where the parser stands. Anything below a place that means nothing is skipped by depth.
enum class Place { top, root, nodes, node, node_shape, node_gpus, edges, edge_object, edge_array, skipped };

class Reader {
 public:
  Reader(std::string_view text, std::string_view name, LoadedGraph& loaded)
      : text_(text), name_(name), loaded_(loaded) {
    places_.push_back(Place::top);
  }

  bool null() { return scalar("null"); }
  bool boolean(bool value) { return scalar(value ? "true" : "false"); }
  bool number_integer(std::int64_t value) { return number(static_cast<double>(value)); }
  bool number_unsigned(std::uint64_t value) { return number(static_cast<double>(value)); }
  bool number_float(double value, const std::string&) { return number(value); }
  bool binary(nlohmann::json::binary_t&) { return false; }

  bool string(std::string& value) {
    switch (place()) {
      case Place::node:
        if (key_ == "id")
          node_.id = std::move(value);
        else if (key_ == "type")
          node_.type = std::move(value);
        else if (key_ == "comp")
          node_.comp = std::move(value);
        else if (key_ == "gpu" || key_ == "shape")
          return wrong("a string");
        return true;
      case Place::edge_object:
        if (key_ == "from" || key_ == "source")
          edge_.first = std::move(value);
        else if (key_ == "to" || key_ == "target")
          edge_.second = std::move(value);
        return true;
      case Place::edge_array:
        if (ends_ == 0)
          edge_.first = std::move(value);
        else if (ends_ == 1)
          edge_.second = std::move(value);
        return ++ends_ != 3 || problem(here(), "has more than two ids; an edge leads from one node to one other");
      default:
        return scalar("a string");
    }
  }

  bool key(std::string& key) {
    key_ = std::move(key);
    const std::uint32_t bit = bit_of_key();
    if (bit == 0) return true;
    std::uint32_t& seen = place() == Place::root ? seen_in_root_ : seen_in_object_;
    if ((seen & bit) != 0) {
      return problem(here(),
                     fmt::format("{} stands here together with another that says the same; keep one", in_quotes(key_)));
    }
    seen |= bit;
    return true;
  }

  bool start_object(std::size_t) {
    switch (place()) {
      case Place::top:
        return enter(Place::root);
      case Place::nodes:
        node_ = {};
        seen_in_object_ = 0;
        return enter(Place::node);
      case Place::edges:
        edge_ = {};
        seen_in_object_ = 0;
        return enter(Place::edge_object);
      case Place::root:
        if (key_ == "nodes" || key_ == "edges") return wrong("an object");
        return enter(Place::skipped);
      case Place::node:
        if (is_node_field()) return wrong("an object");
        return enter(Place::skipped);
      case Place::node_shape:
      case Place::node_gpus:
        return wrong("an object");
      default:
        return enter(Place::skipped);
    }
  }

  bool start_array(std::size_t) {
    switch (place()) {
      case Place::root:
        if (key_ == "nodes") {
          has_nodes_ = true;
          return enter(Place::nodes);
        }
        return enter(key_ == "edges" ? Place::edges : Place::skipped);
      case Place::node:
        if (key_ == "shape") return enter(Place::node_shape);
        if (key_ == "gpus") return enter(Place::node_gpus);
        if (is_node_field()) return wrong("an array");
        return enter(Place::skipped);
      case Place::edges:
        edge_ = {};
        ends_ = 0;
        return enter(Place::edge_array);
      case Place::top:
      case Place::nodes:
      case Place::node_shape:
      case Place::node_gpus:
        return wrong("an array");
      default:
        return enter(Place::skipped);
    }
  }

  bool end_object() {
    const Place left = leave();
    if (left == Place::node) return add_node();
    if (left == Place::edge_object) return add_edge();
    return true;
  }
  bool end_array() {
    if (leave() == Place::edge_array) return add_edge();
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) {
    constexpr int kNumberOverflow = 406;
    loaded_.problems.push_back(syntax_problem(text_, name_, position, error.id == kNumberOverflow));
    return false;
  }

  AuditedGraph take() { return std::move(graph_); }
  bool has_nodes() const { return has_nodes_; }

 private:
  Place place() const { return places_.back(); }

  bool enter(Place place) {
    if (static_cast<int>(places_.size()) > kMaxDepth) {
      loaded_.problems.push_back({std::string(name_), fmt::format("nested deeper than {} levels", kMaxDepth)});
      return false;
    }
    places_.push_back(place);
    return true;
  }
  Place leave() {
    const Place left = places_.back();
    places_.pop_back();
    return left;
  }

  bool is_node_field() const {
    return key_ == "id" || key_ == "type" || key_ == "gpu" || key_ == "shape" || key_ == "comp" || key_ == "gpus";
  }

  /// Of a key that means something where it stands; keys that say the same share one.
  std::uint32_t bit_of_key() const {
    if (place() == Place::root) return key_ == "nodes" ? 1 : key_ == "edges" ? 2 : 0;
    if (place() == Place::node) {
      std::uint32_t bit = 1;
      for (const std::string_view name : {"id", "type", "comp", "gpu", "gpus", "shape"}) {
        if (key_ == name) return bit;
        bit <<= 1;
      }
    }
    if (place() == Place::edge_object) {
      return key_ == "from" || key_ == "source" ? 1 : key_ == "to" || key_ == "target" ? 2 : 0;
    }
    return 0;
  }

  std::string here() const {
    switch (place()) {
      case Place::top:
        return std::string(name_);
      case Place::root:
        return key_.substr(0, 60);
      case Place::nodes:
        return fmt::format("nodes[{}]", graph_.nodes.size());
      case Place::edges:
      case Place::edge_object:
      case Place::edge_array:
        return fmt::format("edges[{}]", graph_.edges.size());
      default:
        return fmt::format("nodes[{}].{}", graph_.nodes.size(), key_.substr(0, 60));
    }
  }

  bool problem(std::string field, std::string message) {
    loaded_.problems.push_back({std::move(field), std::move(message)});
    return loaded_.problems.size() < kMostProblems;
  }

  /// A value of a kind that has no place here. Parsing goes on for scalars, and ends where a whole subtree would
  /// follow.
  bool wrong(std::string_view what) {
    const bool more = problem(here(), fmt::format("{} where {} is needed", what, needed()));
    return more && (what == "a string" || what == "a number" || what == "null" || what == "true" || what == "false");
  }

  std::string_view needed() const {
    switch (place()) {
      case Place::top:
        return "an object with \"nodes\" and \"edges\"";
      case Place::root:
        return "an array";
      case Place::nodes:
        return "a node (an object)";
      case Place::edges:
        return "an edge (an object with from and to, or an array of two ids)";
      case Place::edge_object:
      case Place::edge_array:
        return "the id of a node";
      case Place::node_shape:
      case Place::node_gpus:
        return "a number";
      default:
        return key_ == "gpu" ? "a number" : key_ == "shape" || key_ == "gpus" ? "an array of numbers" : "a string";
    }
  }

  bool scalar(std::string_view what) {
    switch (place()) {
      case Place::skipped:
        return true;
      case Place::root:
        return key_ == "nodes" || key_ == "edges" ? wrong(what) : true;
      case Place::node:
        return is_node_field() ? wrong(what) : true;
      case Place::edge_object:
        return key_ == "from" || key_ == "to" || key_ == "source" || key_ == "target" ? wrong(what) : true;
      default:
        return wrong(what);
    }
  }

  bool number(double value) {
    if (place() == Place::node && key_ == "gpu") {
      add_gpu(value);
      return true;
    }
    if (place() == Place::node_gpus) {
      add_gpu(value);
      return true;
    }
    if (place() == Place::node_shape) {
      node_.shape.push_back(value);
      if (node_.shape.size() != kMostShapeDims + 1) return true;
      node_.shape.pop_back();
      return problem(here(), fmt::format("has more than {} dims", kMostShapeDims));
    }
    return scalar("a number");
  }

  /// Anything that cannot be a GPU's number becomes one that no plan has.
  void add_gpu(double value) {
    const bool sound = value >= 0 && value < 1e9 && value == static_cast<double>(static_cast<std::int64_t>(value));
    node_.gpus.push_back(sound ? static_cast<std::int64_t>(value) : -1);
  }

  bool add_node() {
    if (node_.id.empty()) return problem(fmt::format("nodes[{}].id", graph_.nodes.size()), "is missing");
    graph_.nodes.push_back(std::move(node_));
    node_ = {};
    return true;
  }
  bool add_edge() {
    if (edge_.first.empty() || edge_.second.empty()) {
      return problem(fmt::format("edges[{}]", graph_.edges.size()), "needs the ids of two nodes, from and to");
    }
    graph_.edges.push_back(std::move(edge_));
    edge_ = {};
    return true;
  }

  std::string_view text_;
  std::string_view name_;
  LoadedGraph& loaded_;
  AuditedGraph graph_;
  AuditedNode node_;
  std::pair<std::string, std::string> edge_;
  std::vector<Place> places_;
  std::string key_;
  int ends_ = 0;
  std::uint32_t seen_in_root_ = 0;
  std::uint32_t seen_in_object_ = 0;  // of the node or edge that is being read
  bool has_nodes_ = false;
};

}  // namespace

LoadedGraph parse_graph(std::string_view text, std::string_view name) {
  LoadedGraph loaded;
  // The parser would take it for the end of the text.
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos) {
    loaded.problems.push_back({"", fmt::format("byte {} is NUL, which no JSON text holds", nul + 1)});
    return loaded;
  }
  Reader reader(text, name, loaded);
  const bool complete = nlohmann::json::sax_parse(text.data(), text.data() + text.size(), &reader);
  if (complete && loaded.problems.empty() && !reader.has_nodes()) {
    loaded.problems.push_back({"nodes", "is missing; an array of nodes is needed"});
  }
  if (complete && loaded.problems.empty()) loaded.graph = reader.take();
  return loaded;
}

LoadedGraph load_graph(const std::filesystem::path& path) {
  FileText file = read_file(path, kMaxGraphBytes);
  if (!file.text) return {std::nullopt, std::move(file.problems)};
  return parse_graph(*file.text, path.string());
}

}  // namespace shardproof
