// The JSON documents, each with the version of its schema: "shardproof.verify/2". Within a version keys are added only;
// a key that changes its meaning makes a new version.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace shardproof {

struct CheckReport;
struct DeploymentGraph;
struct Finding;
struct Generation;
struct MutationScore;
struct OrderReport;
struct Plan;
struct ProjectedAnchor;
struct Projection;
struct RequestTimes;
struct Proof;
struct SearchRun;
struct VerifyReport;

/// "shardproof.verify/2"
std::string to_json(const VerifyReport& report);
/// "shardproof.verify/2": the last report, with "algebra" and its "exact_use" when that is the rounding's.
std::string to_json(const Proof& proof);
/// The same with "generated", the tokens that came out.
std::string to_json(const Proof& proof, const Generation& generation);
/// The report of every order of the all-reduce: "shardproof.orders/1".
std::string to_json(const std::vector<OrderReport>& orders);
/// "shardproof.check/1"
std::string to_json(const CheckReport& report);
/// "shardproof.mutate/1"
std::string to_json(std::span<const MutationScore> scores);
/// "shardproof.graph/1"
std::string to_json(const DeploymentGraph& graph);
/// "shardproof.time/1"
std::string to_json(const Projection& projection, const Plan& plan, const RequestTimes* requests = nullptr);
/// "shardproof.projected_anchors/1"
std::string to_json(const std::vector<ProjectedAnchor>& anchors);
/// "shardproof.search/1"
std::string to_json(const SearchRun& run);
/// "shardproof.audit/1"
std::string to_json(const std::vector<Finding>& findings, const Plan& plan);

}  // namespace shardproof
