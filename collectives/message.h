// The buffers that calls take, and messages that are under way together (Communicator::exchange).
#pragma once

#include <ranges>
#include <span>
#include <type_traits>

#include "collectives/call.h"

namespace shardproof {

/// A contiguous range of elements that may be read.
template <class R>
concept ReadBuffer = std::ranges::contiguous_range<R> && std::ranges::sized_range<R> &&
    Element<std::remove_cv_t<std::ranges::range_value_t<R>>>;
/// A contiguous range of elements that may be written.
template <class R>
concept WriteBuffer = ReadBuffer<R> && !std::is_const_v<std::remove_reference_t<std::ranges::range_reference_t<R>>>;

template <ReadBuffer R>
using ElementOf = std::remove_cv_t<std::ranges::range_value_t<R>>;

template <ReadBuffer R>
std::span<const ElementOf<R>> read_only(const R& range) {
  return std::span<const ElementOf<R>>(range);
}

/// Elements that a call reads when it is issued and looks at again when it is awaited: a range that would be gone with
/// the expression is refused.
template <class T>
class InputView {
 public:
  /// Of an lvalue, or a view.
  // NOLINTBEGIN(google-explicit-constructor,bugprone-forwarding-reference-overload): elements as they are
  template <ReadBuffer R>
  requires(std::is_same_v<ElementOf<R>, T>&& std::ranges::borrowed_range<R>) InputView(R&& elements)
      : elements_(std::ranges::data(elements), std::ranges::size(elements)) {}
  // NOLINTEND(google-explicit-constructor,bugprone-forwarding-reference-overload)
  operator std::span<const T>() const { return elements_; }  // NOLINT(google-explicit-constructor): a view

 private:
  std::span<const T> elements_;
};
/// The same of elements that it writes when it is awaited.
template <class R>
concept OutputBuffer = WriteBuffer<R> && std::ranges::borrowed_range<R>;

/// Counts of a call, which must outlive it: a range that would be gone with the expression is refused.
class CountsView {
 public:
  template <std::ranges::contiguous_range R>
  requires(std::is_same_v<std::ranges::range_value_t<R>, std::size_t>&&
               std::ranges::borrowed_range<R>)  // an lvalue, or a view
      // NOLINTNEXTLINE(google-explicit-constructor,bugprone-forwarding-reference-overload): counts as they are
      CountsView(R&& counts)
      : counts_(std::ranges::data(counts), std::ranges::size(counts)) {}
  operator std::span<const std::size_t>() const { return counts_; }  // NOLINT(google-explicit-constructor): a view

 private:
  std::span<const std::size_t> counts_;
};

/// One message to, or from, another rank of the group.
class Send {
 public:
  template <ReadBuffer R>
  Send(const R& data, GroupRank to)
      : part{true, element_type<ElementOf<R>>(), std::ranges::size(data), std::ranges::data(data), nullptr, to} {}
  internal::Part part;
};
class Recv {
 public:
  template <WriteBuffer R>
  Recv(R&& data, GroupRank from)
      : part{false, element_type<ElementOf<R>>(), std::ranges::size(data), nullptr, std::ranges::data(data), from} {}
  internal::Part part;
};
static_assert(sizeof(Send) == sizeof(internal::Part) && sizeof(Recv) == sizeof(internal::Part));

/// Messages that are under way together: none waits for another of the same exchange. Two messages between the same
/// pair of ranks in the same direction match in order.
struct Exchange {
  std::span<const Send> sends = {};
  std::span<const Recv> recvs = {};
};

}  // namespace shardproof
