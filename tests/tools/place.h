// A folder of a test's own, and what lies in it.
#pragma once

#include <filesystem>
#include <string>

namespace shardproof::testing {

/// Gone with what it holds at the end of the scope.
class Folder {
 public:
  Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder();

  std::string path(const std::string& name) const { return (path_ / name).string(); }
  /// Writes the file; returns its path.
  std::string write(const std::string& name, const std::string& text) const;
  std::string read(const std::string& name) const;
  /// How many entries there are, hidden ones too.
  std::size_t entries() const;

 private:
  std::filesystem::path path_;
};

/// A plan of 4 ranks that is proven in a few milliseconds.
extern const char* const kTinyPlan;

}  // namespace shardproof::testing
