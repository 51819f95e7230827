#include "emu/timeline/graph.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "emu/plan/scale.h"
#include "emu/report/dot.h"
#include "emu/report/json.h"
#include "emu/timeline/audit.h"
#include "tests/support/shipped_plans.h"

namespace shardproof {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

std::set<std::string> ids(const DeploymentGraph& graph) {
  std::set<std::string> all;
  for (const GraphNode& node : graph.nodes) EXPECT_TRUE(all.insert(node.id).second) << node.id << " stands twice";
  return all;
}

std::string findings_of(const DeploymentGraph& graph, const Plan& plan) {
  const LoadedGraph loaded = parse_graph(to_json(graph), "graph.json");
  std::string text;
  for (const Problem& problem : loaded.problems) text += problem.field + ": " + problem.message + "\n";
  if (!loaded.graph) return text;
  for (const Finding& finding : audit(*loaded.graph, plan)) text += finding.kind + ": " + finding.message + "\n";
  return text;
}

TEST(DeploymentGraph, NamesNodesInTheDocumentsManner) {
  const Plan plan = testing::shipped_plan("tp4_ep4_pp4");

  const std::set<std::string> names = ids(deployment_graph(scaled(plan, {})));

  for (const char* id : {"embedding_0", "layer_0.expert_3_0", "layer_0.ep_alltoall_0", "layer_0.ep_alltoall_return_0",
                         "layer_0.tp_allreduce_0", "layer_2.tp_allreduce_1", "layer_0.ep_agg_3", "layer_4.pp_stage_2_0",
                         "layer_7.attention_15", "head_12"}) {
    EXPECT_THAT(names, Contains(id));
  }
  EXPECT_FALSE(names.contains("layer_0.expert_3_1"));
}

TEST(DeploymentGraph, OfShippedPlansHasNoFindings) {
  for (const char* name : {"tp4_ep4_pp4", "tp2_ep4_pp2_dp2", "ep4_tp2_pp2_sp", "cp4_tp2_ep4"}) {
    const Plan plan = testing::shipped_plan(name);
    EXPECT_EQ(findings_of(deployment_graph(scaled(plan, {})), plan), "") << name;
  }
}

TEST(DeploymentGraph, OfGeneratedPlansHasNoFindings) {
  std::mt19937_64 random(17);
  for (int round = 0; round < 40; ++round) {
    const Plan plan = testing::random_runnable_plan(random, 16);
    EXPECT_EQ(findings_of(deployment_graph(plan), plan), "") << "round " << round;
  }
}

/// Whether an edge leads from one id to the other.
bool has_edge(const DeploymentGraph& graph, const std::string& from, const std::string& to) {
  return std::ranges::any_of(graph.edges, [&](const std::pair<int, int>& edge) {
    return graph.nodes[static_cast<std::size_t>(edge.first)].id == from &&
           graph.nodes[static_cast<std::size_t>(edge.second)].id == to;
  });
}

TEST(DeploymentGraph, CarriesTheResidualStreamAroundEveryBlock) {
  const Plan plan = testing::shipped_plan("tp4_ep4_pp4");

  const DeploymentGraph graph = deployment_graph(scaled(plan, {}));

  EXPECT_TRUE(has_edge(graph, "embedding.tp_allreduce_0", "layer_0.attention_residual_1"));
  EXPECT_TRUE(has_edge(graph, "layer_0.tp_allreduce_0", "layer_0.attention_residual_1"));
  EXPECT_TRUE(has_edge(graph, "layer_0.attention_residual_1", "layer_0.router_1"));
  EXPECT_TRUE(has_edge(graph, "layer_0.attention_residual_1", "layer_0.residual_1"));
  EXPECT_TRUE(has_edge(graph, "layer_0.tp_allgather_0", "layer_0.residual_1"));
  EXPECT_TRUE(has_edge(graph, "layer_0.residual_1", "layer_1.attention_residual_1"));
  EXPECT_TRUE(has_edge(graph, "layer_2.pp_stage_1_0", "layer_2.attention_residual_4"));
}

TEST(DeploymentGraph, SelectsLayersAndRanks) {
  const Plan plan = testing::shipped_plan("tp4_ep4_pp4");
  const DeploymentGraph graph = deployment_graph(scaled(plan, {}));

  const DeploymentGraph part = selected(graph, {.first_layer = 2, .last_layer = 2, .first_rank = 5, .last_rank = 5});

  const std::set<std::string> names = ids(part);
  EXPECT_THAT(names, Contains("layer_2.attention_5"));
  EXPECT_THAT(names, Contains("layer_2.tp_allreduce_1"));
  for (const std::string& name : names) EXPECT_TRUE(name.starts_with("layer_2.")) << name;
  EXPECT_FALSE(names.contains("layer_2.attention_4"));
}

TEST(DeploymentGraph, FoldsToOneOfEachPattern) {
  const Plan plan = testing::shipped_plan("tp4_ep4_pp4");

  const DeploymentGraph graph = folded(deployment_graph(scaled(plan, {})), plan);

  EXPECT_LE(graph.nodes.size(), 60u);
  EXPECT_THAT(ids(graph), Contains("layers_0-1.expert"));
  const auto expert = std::find_if(graph.nodes.begin(), graph.nodes.end(),
                                   [](const GraphNode& node) { return node.id == "layers_0-1.expert"; });
  EXPECT_EQ(expert->count, 8);
  EXPECT_THAT(to_dot(graph), HasSubstr("x 8"));
}

TEST(DeploymentGraph, IsWrittenAsJson) {
  const Plan plan = testing::shipped_plan("tp4_ep4_pp4");
  const DeploymentGraph graph = deployment_graph(scaled(plan, {}));

  const auto json = nlohmann::json::parse(to_json(graph));

  EXPECT_EQ(json.at("schema"), "shardproof.graph/1");
  EXPECT_EQ(json.at("nodes").size(), graph.nodes.size());
  EXPECT_EQ(json.at("edges").size(), graph.edges.size());
  for (const char* key : {"id", "type", "gpu", "shape", "comp", "style"}) {
    EXPECT_TRUE(json.at("nodes").at(0).contains(key)) << key;
  }
}

}  // namespace
}  // namespace shardproof
