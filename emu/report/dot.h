// The deployment graph for Graphviz.
#pragma once

#include <string>

namespace shardproof {

struct DeploymentGraph;

std::string to_dot(const DeploymentGraph& graph);

}  // namespace shardproof
