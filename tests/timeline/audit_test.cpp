#include "emu/timeline/audit.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/shipped_plans.h"

namespace shardproof {
namespace {

using ::testing::HasSubstr;

LoadedGraph document_002() {
  return load_graph(std::string(SHARDPROOF_SOURCE_DIR) + "/tests/timeline/graphs/document_002.json");
}

void expect_finding(const std::vector<Finding>& findings, const std::string& kind, const std::string& words) {
  const bool found = std::any_of(findings.begin(), findings.end(), [&](const Finding& finding) {
    return finding.kind == kind && finding.message.find(words) != std::string::npos;
  });
  std::string all;
  for (const Finding& finding : findings) all += "  " + finding.kind + ": " + finding.message + "\n";
  EXPECT_TRUE(found) << "no " << kind << " with \"" << words << "\" among:\n" << all;
}

std::vector<Finding> audit_text(const std::string& text, const Plan& plan) {
  const LoadedGraph loaded = parse_graph(text, "graph.json");
  for (const Problem& problem : loaded.problems) ADD_FAILURE() << problem.field << ": " << problem.message;
  return loaded.graph ? audit(*loaded.graph, plan) : std::vector<Finding>{};
}

std::string node(const std::string& id, const std::string& more) {
  return fmt::format(R"({{"id": "{}", "type": "compute", {}}})", id, more);
}

TEST(Audit, SaysOfDocument002sGraphWhatTheDocumentSays) {
  const LoadedGraph loaded = document_002();
  ASSERT_TRUE(loaded.graph);

  const std::vector<Finding> findings = audit(*loaded.graph, testing::shipped_plan("ep64_tp2"));

  expect_finding(findings, "unused_gpus", "3 of 128 GPUs are used; never used: 3-127");
  expect_finding(findings, "experts_without_nodes", "1 expert node; 63 of 64 expert-parallel groups have none");
  expect_finding(findings, "missing_tp_allreduce", "64 groups; 64 of them have no TP all-reduce");
  expect_finding(findings, "single_alltoall", "1 all-to-all node for 2 groups of 64 GPUs");
  expect_finding(findings, "single_aggregation", "1 aggregation node on 1 of 128 GPUs");
  expect_finding(findings, "impossible_shape", "the whole width 4096, but etp 2 leaves a GPU 2048");
}

TEST(Audit, SaysThatDocument002sGraphHasNoStages) {
  const LoadedGraph loaded = document_002();
  ASSERT_TRUE(loaded.graph);

  const std::vector<Finding> findings = audit(*loaded.graph, testing::shipped_plan("ep16_tp2_pp4"));

  expect_finding(findings, "missing_stage", "3 of 4 pipeline stages have no node: stages 1-3");
  expect_finding(findings, "missing_p2p", "stages 1-3");
}

TEST(Audit, FindsGpusBeyondThePlan) {
  const Plan plan = testing::shipped_plan("tp4_ep4_pp4");

  const auto findings = audit_text(
      "{\"nodes\": [" + node("a", "\"gpu\": 16") + "," + node("b", "\"gpu\": -3") + "], \"edges\": []}", plan);

  expect_finding(findings, "gpus_beyond_plan", "GPUs 0-15; the graph also uses 16");
  expect_finding(findings, "gpus_beyond_plan", "1 node has no GPU that could exist");
}

TEST(Audit, FindsCyclesAndEdgesToNowhere) {
  const Plan plan = testing::shipped_plan("tp4_ep4_pp4");

  const auto findings = audit_text(
      R"({"nodes": [{"id": "a", "gpu": 0}, {"id": "b", "gpu": 0}, {"id": "c", "gpu": 0}],
          "edges": [["a", "b"], {"source": "b", "target": "c"}, {"from": "c", "to": "b"}, ["c", "d"]]})",
      plan);

  expect_finding(findings, "cycle", "2 nodes can never start");
  expect_finding(findings, "cycle", "\"b\" -> \"c\" -> \"b\"");
  expect_finding(findings, "dangling_edge", "\"d\" does not exist");
}

TEST(Audit, FindsASelfLoop) {
  const auto findings =
      audit_text(R"({"nodes": [{"id": "a", "gpu": 0}], "edges": [["a", "a"]]})", testing::shipped_plan("tp4_ep4_pp4"));

  expect_finding(findings, "cycle", "\"a\" -> \"a\"");
}

TEST(Audit, FindsDuplicateIdsAndImpossibleShapes) {
  const auto findings = audit_text(
      R"({"nodes": [{"id": "a", "gpu": 0, "shape": [1, -2]}, {"id": "a", "gpu": 0, "shape": [2.5]}], "edges": []})",
      testing::shipped_plan("tp4_ep4_pp4"));

  expect_finding(findings, "duplicate_id", "1 node has an id that another has, the first \"a\"");
  expect_finding(findings, "impossible_shape", "2 nodes have a shape that cannot be, the first [1, -2]");
}

TEST(Audit, FindsNothingMissingInAnEmptyGraphTwice) {
  const auto findings = audit_text(R"({"nodes": []})", testing::shipped_plan("ep16_tp2_pp4"));

  expect_finding(findings, "unused_gpus", "0 of 128 GPUs are used");
  expect_finding(findings, "missing_stage", "4 of 4");
}

TEST(ParseGraph, RefusesWrongTypesNamingThePlace) {
  const auto refused = [](const std::string& text, const std::string& field) {
    const LoadedGraph loaded = parse_graph(text, "graph.json");
    EXPECT_FALSE(loaded.graph) << text;
    ASSERT_FALSE(loaded.problems.empty()) << text;
    EXPECT_EQ(loaded.problems[0].field, field) << text << ": " << loaded.problems[0].message;
  };

  refused("3", "graph.json");
  refused("[]", "graph.json");
  refused("{}", "nodes");
  refused(R"({"nodes": {}})", "nodes");
  refused(R"({"nodes": [3]})", "nodes[0]");
  refused(R"({"nodes": [{"id": 3}]})", "nodes[0].id");
  refused(R"({"nodes": [{"id": "a", "gpu": "0"}]})", "nodes[0].gpu");
  refused(R"({"nodes": [{"id": "a", "shape": [1, "x"]}]})", "nodes[0].shape");
  refused(R"({"nodes": [{"gpu": 0}]})", "nodes[0].id");
  refused(R"({"nodes": [], "edges": [["a"]]})", "edges[0]");
  refused(R"({"nodes": [], "edges": [{"from": 1, "to": "a"}]})", "edges[0]");
  refused("{\"nodes\": [\n  {\"id\"", "graph.json:2:8");
  refused(std::string(100000, '['), "graph.json");
}

std::string refusal(const std::string& text) {
  const LoadedGraph loaded = parse_graph(text, "graph.json");
  return loaded.problems.empty() ? "" : loaded.problems[0].field + ": " + loaded.problems[0].message;
}

TEST(ParseGraph, ReadsNoKeyTwice) {
  const std::string node = R"("id": "a", "type": "comm", "comp": "c", "gpu": 0, "gpus": [1], "shape": [2])";
  EXPECT_EQ(refusal("{\"nodes\": [{" + node + R"(}], "edges": [["a", "a"], {"from": "a", "to": "a"}]})"), "");

  for (const std::string key :
       {R"("id": "b")", R"("type": "comm")", R"("comp": "c")", R"("gpu": 0)", R"("gpus": [1])", R"("shape": [2])"}) {
    EXPECT_THAT(refusal("{\"nodes\": [{" + node + ", " + key + "}]}"), HasSubstr("nodes[0]")) << key;
    EXPECT_THAT(refusal("{\"nodes\": [{" + node + ", " + key + "}]}"), HasSubstr("keep one")) << key;
  }
  EXPECT_THAT(refusal(R"({"nodes": [], "nodes": []})"), HasSubstr("nodes: "));
  EXPECT_THAT(refusal(R"({"nodes": [], "edges": [], "edges": []})"), HasSubstr("edges: "));
  EXPECT_THAT(refusal(R"({"nodes": [], "edges": [{"from": "a", "source": "b", "to": "c"}]})"), HasSubstr("edges[0]: "));
  EXPECT_THAT(refusal(R"({"nodes": [], "edges": [{"from": "a", "to": "b", "to": "c"}]})"), HasSubstr("edges[0]: "));
}

TEST(ParseGraph, ReadsEveryByteIdAndDim) {
  std::string cut = R"({"nodes": []} )";
  cut += '\0';
  std::string dims;
  for (int i = 0; i < 16; ++i) dims += (i == 0 ? "" : ", ") + std::to_string(i + 1);
  const auto shaped = [](const std::string& shape) { return R"({"nodes": [{"id": "a", "shape": [)" + shape + "]}]}"; };

  EXPECT_THAT(refusal(cut + "[1]"), HasSubstr("byte 15 is NUL"));
  EXPECT_THAT(refusal(R"({"nodes": [], "edges": [["a", "b", "c"]]})"), HasSubstr("edges[0]: has more than two ids"));
  EXPECT_EQ(refusal(shaped(dims)), "");
  EXPECT_THAT(refusal(shaped(dims + ", 17")), HasSubstr("nodes[0].shape: has more than 16 dims"));
}

TEST(ParseGraph, SkipsKeysThatMeanNothingHere) {
  const LoadedGraph loaded =
      parse_graph(R"({"meta": {"nodes": [1, {"id": []}]}, "nodes": [{"id": "a", "x": [[{}]], "gpu": 0}], "edges": []})",
                  "graph.json");

  ASSERT_TRUE(loaded.graph);
  EXPECT_EQ(loaded.graph->nodes.size(), 1u);
}

TEST(Audit, AnswersForAMillionNodes) {
  std::string text = "{\"nodes\": [";
  for (int i = 0; i < 1'000'000; ++i) {
    text += fmt::format(R"({}{{"id": "n{}", "type": "compute", "gpu": {}, "shape": [1, 64]}})", i == 0 ? "" : ",", i,
                        i % 16);
  }
  text += "], \"edges\": [";
  for (int i = 1; i < 1'000'000; ++i) text += fmt::format("{}[\"n{}\", \"n{}\"]", i == 1 ? "" : ",", i - 1, i);
  text += "]}";

  const auto findings = audit_text(text, testing::shipped_plan("tp4_ep4_pp4"));

  expect_finding(findings, "missing_tp_allreduce", "tp 4");
}

}  // namespace
}  // namespace shardproof
