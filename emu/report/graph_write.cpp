// The deployment graph as JSON and for Graphviz.
#include <fmt/format.h>

#include <iterator>
#include <map>
#include <nlohmann/json.hpp>

#include "emu/report/dot.h"
#include "emu/report/json.h"
#include "emu/timeline/graph.h"

namespace shardproof {
namespace {

using Json = nlohmann::ordered_json;

Json node_json(const GraphNode& node) {
  Json json = {{"id", node.id},       {"type", node.type}, {"gpu", node.gpu},
               {"shape", node.shape}, {"comp", node.comp}, {"style", node.style}};
  if (!node.gpus.empty()) json["gpus"] = node.gpus;
  if (node.layer >= 0) json["layer"] = node.layer;
  if (node.count > 1) json["count"] = node.count;
  return json;
}

std::string dot_escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, " x "));
}

}  // namespace

std::string to_json(const DeploymentGraph& graph) {
  // One node or edge a line: a graph is read, and compared line by line.
  std::string text =
      fmt::format("{{\n  \"schema\": \"shardproof.graph/1\",\n  \"name\": {},\n  \"ranks\": {},\n  \"nodes\": [",
                  Json(graph.name).dump(-1, ' ', false, Json::error_handler_t::replace), graph.ranks);
  const char* separator = "\n";
  for (const GraphNode& node : graph.nodes) {
    text += separator;
    text += "    " + node_json(node).dump(-1, ' ', false, Json::error_handler_t::replace);
    separator = ",\n";
  }
  text += "\n  ],\n  \"edges\": [";
  separator = "\n";
  for (const auto& [from, to] : graph.edges) {
    fmt::format_to(std::back_inserter(text), "{}    {{\"from\": {}, \"to\": {}}}", separator,
                   Json(graph.nodes[static_cast<std::size_t>(from)].id).dump(),
                   Json(graph.nodes[static_cast<std::size_t>(to)].id).dump());
    separator = ",\n";
  }
  return text + "\n  ]\n}\n";
}

std::string to_dot(const DeploymentGraph& graph) {
  std::string text = fmt::format("digraph \"{}\" {{\n  rankdir=TB;\n  node [fontname=\"Helvetica\", fontsize=10];\n",
                                 dot_escaped(graph.name));
  struct Layer {
    std::string name;
    std::string nodes;
  };
  std::map<int, Layer> layers;
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    const GraphNode& node = graph.nodes[i];
    const char* form = node.type == "comm" ? "ellipse" : node.type == "agg" ? "parallelogram" : "box";
    const std::string where =
        node.count > 1         ? fmt::format("x {}", node.count)
        : node.gpus.size() > 1 ? fmt::format("GPUs {}-{} ({})", node.gpus.front(), node.gpus.back(), node.gpus.size())
                               : fmt::format("GPU {}", node.gpu);
    const std::size_t dot = node.layer >= 0 ? node.id.find('.') : std::string::npos;
    const std::string name = dot == std::string::npos ? node.id : node.id.substr(dot + 1);
    const std::string layer = dot == std::string::npos ? std::string() : node.id.substr(0, dot);
    layers[node.layer].name = layer;
    layers[node.layer].nodes += fmt::format("    n{} [label=\"{}\\n{}\\n{}\", shape={}, style={}];\n", i,
                                            dot_escaped(name), where, shape_text(node.shape), form, node.style);
  }
  for (const auto& [number, layer] : layers) {
    if (number < 0) {
      text += layer.nodes;
    } else {
      text += fmt::format("  subgraph cluster_{} {{\n    label=\"{}\"; color=gray;\n{}  }}\n", number, layer.name,
                          layer.nodes);
    }
  }
  for (const auto& [from, to] : graph.edges) text += fmt::format("  n{} -> n{};\n", from, to);
  return text + "}\n";
}

}  // namespace shardproof
