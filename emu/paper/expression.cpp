#include "emu/paper/expression.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

namespace shardproof {
namespace {

constexpr std::size_t kMaxLength = 500;
constexpr int kMaxDepth = 40;

struct Failure {
  std::string message;
};

/// A value on the way, with the text it came from.
struct Term {
  QuantityValue value;
  std::string text;
  bool single = false;
};

/// Recursive descent; Failure is thrown inside and never leaves this file.
class Parser {
 public:
  Parser(std::string_view text, const Quantities& quantities) : text_(text), quantities_(quantities) {}

  Term parse() {
    Term term = sum();
    skip_spaces();
    if (at_ != text_.size()) fail(fmt::format("unexpected '{}'", text_[at_]));
    return term;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Failure{fmt::format("{} at character {}", what, at_ + 1)};
  }

  void skip_spaces() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t')) ++at_;
  }

  bool take(char c) {
    skip_spaces();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  Term sum() {
    Term left = product();
    while (true) {
      if (take('+')) {
        left = combine(std::move(left), '+', product());
      } else if (take('-')) {
        left = combine(std::move(left), '-', product());
      } else {
        return left;
      }
    }
  }

  Term product() {
    Term left = atom();
    while (true) {
      if (take('*')) {
        left = combine(std::move(left), '*', atom());
      } else if (take('/')) {
        left = combine(std::move(left), '/', atom());
      } else {
        return left;
      }
    }
  }

  Term atom() {
    skip_spaces();
    if (at_ >= text_.size()) fail("the expression ends where a number or a quantity is needed");
    if (take('(')) {
      if (++depth_ > kMaxDepth) fail("nested too deeply");
      Term inner = sum();
      --depth_;
      if (!take(')')) fail("a ')' is missing");
      inner.text = "(" + inner.text + ")";
      inner.single = false;
      return inner;
    }
    const char c = text_[at_];
    if ((c >= '0' && c <= '9') || c == '.') return literal();
    if ((c >= 'a' && c <= 'z') || c == '_') return quantity();
    fail(fmt::format("unexpected '{}'", c < 0x20 ? '?' : c));
  }

  Term literal() {
    const std::string rest(text_.substr(at_, 40));
    char* end = nullptr;
    const double value = std::strtod(rest.c_str(), &end);
    if (end == rest.c_str() || !std::isfinite(value)) fail("not a number");
    at_ += static_cast<std::size_t>(end - rest.c_str());
    Term term;
    term.value.value = value;
    term.text = fmt::format("{:.10g}", value);
    return term;
  }

  Term quantity() {
    const std::size_t begin = at_;
    while (at_ < text_.size() && ((text_[at_] >= 'a' && text_[at_] <= 'z') ||
                                  (text_[at_] >= '0' && text_[at_] <= '9') || text_[at_] == '_')) {
      ++at_;
    }
    const std::string_view name = text_.substr(begin, at_ - begin);
    std::vector<double> arguments;
    if (take('(')) {
      if (++depth_ > kMaxDepth) fail("nested too deeply");
      do {
        const Term argument = sum();
        if (!argument.value.unknown.empty() || argument.value.per_rank) fail("an argument must be one number");
        arguments.push_back(argument.value.value);
      } while (take(','));
      --depth_;
      if (!take(')')) fail("a ')' is missing");
    }
    const QuantityDefinition* definition = Quantities::find(name);
    if (definition == nullptr) throw Failure{fmt::format("no quantity is named \"{}\"{}", name, nearest(name))};
    auto value = quantities_.evaluate(name, arguments);
    if (!value) {
      throw Failure{fmt::format("{} takes {} argument{}, not {}", name, definition->arguments,
                                definition->arguments == 1 ? "" : "s", arguments.size())};
    }
    Term term;
    term.value = std::move(*value);
    const double shown = term.value.per_rank ? term.value.max : term.value.value;
    term.text = fmt::format("{} {}", name, readable(shown, term.value.dimension));
    term.single = true;
    return term;
  }

  static std::string nearest(std::string_view name) {
    std::string best;
    std::size_t most = 3;
    for (const QuantityDefinition& definition : quantity_definitions()) {
      const std::size_t length = std::min(name.size(), definition.name.size());
      const auto same = static_cast<std::size_t>(
          std::mismatch(name.begin(), name.begin() + static_cast<std::ptrdiff_t>(length), definition.name.begin())
              .first -
          name.begin());
      if (same > most) {
        most = same;
        best = definition.name;
      }
    }
    return best.empty() ? std::string("; `check --list-quantities` prints them all")
                        : fmt::format("; did you mean \"{}\"?", best);
  }

  static double apply(double a, char operation, double b) {
    switch (operation) {
      case '+':
        return a + b;
      case '-':
        return a - b;
      case '*':
        return a * b;
      default:
        return a / b;
    }
  }

  /// Of a projection: the least and the most of its corners.
  void spread(const QuantityValue& a, char operation, const QuantityValue& b, QuantityValue& value) const {
    value.interval = true;
    value.low = value.high = value.value;
    for (const double x : {a.interval ? a.low : a.value, a.interval ? a.high : a.value}) {
      for (const double y : {b.interval ? b.low : b.value, b.interval ? b.high : b.value}) {
        const double corner = apply(x, operation, y);
        value.low = std::min(value.low, corner);
        value.high = std::max(value.high, corner);
      }
    }
  }

  Term combine(Term left, char operation, Term right) const {
    Term result;
    QuantityValue& value = result.value;
    result.text = fmt::format("{} {} {}", left.text, operation, right.text);
    if (result.text.size() > 4000) fail("the expression is too long");
    const QuantityValue& a = left.value;
    const QuantityValue& b = right.value;
    value.unknown = !a.unknown.empty() ? a.unknown : b.unknown;
    if (!value.unknown.empty()) return result;
    if (a.per_rank && b.per_rank) fail("two quantities that differ from rank to rank cannot be combined");
    if (operation == '/' && !b.per_rank && b.value == 0) fail("division by zero");
    if (operation == '/' && b.per_rank && b.min <= 0 && b.max >= 0) fail("division by zero");
    value.dimension = a.dimension != Dimension::count ? a.dimension : b.dimension;
    if (operation == '/' && a.dimension == b.dimension) value.dimension = Dimension::count;
    value.per_rank = a.per_rank || b.per_rank;
    if (!value.per_rank) {
      value.value = apply(a.value, operation, b.value);
      if (a.interval || b.interval) spread(a, operation, b, value);
      return result;
    }
    const auto at = [&](double QuantityValue::*figure) {
      return apply(a.per_rank ? a.*figure : a.value, operation, b.per_rank ? b.*figure : b.value);
    };
    const double one = at(&QuantityValue::max);
    const double other = at(&QuantityValue::min);
    value.max = std::max(one, other);
    value.min = std::min(one, other);
    value.mean = at(&QuantityValue::mean);
    return result;
  }

  std::string_view text_;
  const Quantities& quantities_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

ExpressionValue evaluate_expression(std::string_view text, const Quantities& quantities) {
  ExpressionValue result;
  if (text.size() > kMaxLength) {
    result.error = fmt::format("{} characters long; at most {} are read", text.size(), kMaxLength);
    return result;
  }
  try {
    Term term = Parser(text, quantities).parse();
    result.single = term.single;
    result.value = std::move(term.value);
    if (!result.single && result.value.unknown.empty()) {
      const double shown = result.value.per_rank ? result.value.max : result.value.value;
      if (!std::isfinite(shown)) {
        result.error = "the result is not finite";
        return result;
      }
      result.value.arithmetic = fmt::format("{} = {}", term.text, readable(shown, result.value.dimension));
    }
  } catch (const Failure& failure) {
    result.error = failure.message;
  }
  return result;
}

}  // namespace shardproof
