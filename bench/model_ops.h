// What the published models have beside the plain Mixtral's, on their shapes.
#pragma once

namespace shardproof::bench {

void register_model_ops();

}  // namespace shardproof::bench
