#include "tests/project/source_tree.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace shardproof::project {
namespace {

bool is_skipped_folder(const std::filesystem::path& folder) {
  const std::string name = folder.filename().string();
  return name.starts_with("build") || (name.starts_with(".") && name != ".ci") || name == "__pycache__";
}

/// One pass over C++ text that knows where a comment or a literal ends.
class Blanker {
 public:
  Blanker(std::string_view text, Blank what) : text_(text), what_(what), out_(text) {}

  std::string run() {
    while (at_ < text_.size()) {
      if (starts_with("//")) {
        blank_until(text_.find('\n', at_), true);
      } else if (starts_with("/*")) {
        blank_until(past(text_.find("*/", at_ + 2), 2), true);
      } else if (starts_with("R\"")) {
        const std::size_t open = text_.find('(', at_);
        const std::string close = ")" + std::string(text_.substr(at_ + 2, open - at_ - 2)) + "\"";
        blank_until(past(text_.find(close, at_), close.size()), literals());
      } else if (text_[at_] == '"' || (text_[at_] == '\'' && !follows_digit())) {
        blank_until(end_of_quoted(), literals());
      } else {
        ++at_;
      }
    }
    return out_;
  }

 private:
  bool literals() const { return what_ == Blank::comments_and_literals; }
  bool starts_with(std::string_view token) const { return text_.substr(at_).starts_with(token); }
  // 1'000 separates digits; it opens no literal.
  bool follows_digit() const { return at_ > 0 && std::isxdigit(static_cast<unsigned char>(text_[at_ - 1])) != 0; }
  static std::size_t past(std::size_t found, std::size_t length) {
    return found == std::string_view::npos ? found : found + length;
  }
  std::size_t end_of_quoted() const {
    const char quote = text_[at_];
    for (std::size_t i = at_ + 1; i < text_.size(); ++i) {
      if (text_[i] == '\\') {
        ++i;
      } else if (text_[i] == quote || text_[i] == '\n') {
        return i + 1;
      }
    }
    return text_.size();
  }
  void blank_until(std::size_t end, bool blank) {
    end = std::min(end, text_.size());
    for (; at_ < end; ++at_) {
      if (blank && text_[at_] != '\n') out_[at_] = ' ';
    }
  }

  std::string_view text_;
  Blank what_;
  std::string out_;
  std::size_t at_ = 0;
};

}  // namespace

std::vector<SourceFile> read_tree(const std::string& root) {
  std::vector<SourceFile> files;
  auto entry = std::filesystem::recursive_directory_iterator(root);
  for (; entry != std::filesystem::recursive_directory_iterator(); ++entry) {
    if (entry->is_directory()) {
      if (is_skipped_folder(entry->path())) entry.disable_recursion_pending();
    } else if (entry->is_regular_file() && entry->path().filename() != ".git") {  // a file in a linked work tree
      files.push_back(
          {std::filesystem::relative(entry->path(), root).generic_string(), read_file(entry->path().string())});
    }
  }
  std::ranges::sort(files, {}, &SourceFile::path);
  return files;
}

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

std::string blanked(std::string_view text, Blank what) {
  return Blanker(text, what).run();
}

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    lines.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

bool is_cpp(std::string_view path) {
  return path.ends_with(".h") || path.ends_with(".cpp");
}

}  // namespace shardproof::project
