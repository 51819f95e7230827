#include "tests/tools/place.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <sstream>

namespace shardproof::testing {

Folder::Folder() {
  static int count = 0;
  path_ = ::testing::TempDir() + "shardproof_folder_" + std::to_string(getpid()) + "_" + std::to_string(count++);
  std::filesystem::create_directories(path_);
}

Folder::~Folder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

std::string Folder::write(const std::string& name, const std::string& text) const {
  std::ofstream(path_ / name, std::ios::binary) << text;
  return path(name);
}

std::string Folder::read(const std::string& name) const {
  std::ostringstream text;
  text << std::ifstream(path_ / name, std::ios::binary).rdbuf();
  return text.str();
}

std::size_t Folder::entries() const {
  return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
}

const char* const kTinyPlan = R"({
  "model": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 32},
  "parallel": {"tp": 2, "dp": 2, "ep": 4},
  "workload": {"batch": 4, "sequence": 6}
})";

}  // namespace shardproof::testing
