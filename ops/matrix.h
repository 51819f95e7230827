// Dense row-major matrices: a non-owning view and an owning buffer.
//
// MatrixView is what every op takes. It is two words of shape, a stride and a pointer, so that headers of this
// folder need no linear-algebra library. A view never owns; Matrix does, and copying one is the named act `copy()`.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

namespace shardproof::ops {

using Index = std::int64_t;

/// A view of `rows` x `cols` elements; element (i, j) is data[i * stride + j], stride >= cols.
template <class T>
struct MatrixView {
  T* data = nullptr;
  Index rows = 0;
  Index cols = 0;
  Index stride = 0;

  constexpr MatrixView() = default;
  constexpr MatrixView(T* data_, Index rows_, Index cols_) : MatrixView(data_, rows_, cols_, cols_) {}
  constexpr MatrixView(T* data_, Index rows_, Index cols_, Index stride_)
      : data(data_), rows(rows_), cols(cols_), stride(stride_) {}
  /// A mutable view converts to a read-only one.
  template <class U>  // NOLINTNEXTLINE(google-explicit-constructor)
  requires(std::is_same_v<T, const U>) constexpr MatrixView(
      MatrixView<U> other)  // implicit, as span<const T> is made from span<T>
      : MatrixView(other.data, other.rows, other.cols, other.stride) {}

  constexpr T& operator()(Index row, Index col) const { return data[row * stride + col]; }
  constexpr std::span<T> row(Index index) const { return {data + index * stride, static_cast<std::size_t>(cols)}; }
  constexpr MatrixView row_range(Index begin, Index count) const {
    return {data + begin * stride, count, cols, stride};
  }
  constexpr MatrixView col_range(Index begin, Index count) const { return {data + begin, rows, count, stride}; }
  constexpr bool contiguous() const { return stride == cols || rows <= 1; }
  constexpr Index size() const { return rows * cols; }
  /// All elements in row-major order; only for a contiguous view.
  constexpr std::span<T> span() const { return {data, static_cast<std::size_t>(size())}; }
};

/// Owns `rows` x `cols` contiguous elements, aligned to 64 bytes; not initialised unless made by `zeros`.
template <class T>
class Matrix {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Matrix() = default;
  Matrix(Index rows, Index cols) : data_(allocate(rows * cols)), rows_(rows), cols_(cols) {}
  static Matrix zeros(Index rows, Index cols) {
    Matrix matrix(rows, cols);
    for (T& value : matrix.span()) value = T{};
    return matrix;
  }
  Matrix(Matrix&& other) noexcept { swap(other); }
  Matrix& operator=(Matrix&& other) noexcept {
    Matrix(static_cast<Matrix&&>(other)).swap(*this);
    return *this;
  }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;
  ~Matrix() = default;
  Matrix copy() const {
    Matrix result(rows_, cols_);
    std::copy_n(data_.get(), rows_ * cols_, result.data_.get());
    return result;
  }

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index size() const { return rows_ * cols_; }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T& operator()(Index row, Index col) { return data_.get()[row * cols_ + col]; }
  const T& operator()(Index row, Index col) const { return data_.get()[row * cols_ + col]; }
  std::span<T> row(Index index) { return view().row(index); }
  std::span<const T> row(Index index) const { return view().row(index); }
  std::span<T> span() { return {data_.get(), static_cast<std::size_t>(size())}; }
  std::span<const T> span() const { return {data_.get(), static_cast<std::size_t>(size())}; }
  MatrixView<T> view() { return {data_.get(), rows_, cols_}; }
  MatrixView<const T> view() const { return {data_.get(), rows_, cols_}; }
  operator MatrixView<T>() { return view(); }              // NOLINT(google-explicit-constructor)
  operator MatrixView<const T>() const { return view(); }  // NOLINT(google-explicit-constructor)

 private:
  // What operator new gives is aligned here, with its address before the elements: glibc's own aligned allocation
  // splits a block at both ends, which a run of many ranks feels.
  static constexpr std::size_t kAlignment = 64;
  static_assert(__STDCPP_DEFAULT_NEW_ALIGNMENT__ >= sizeof(void*) && alignof(T) <= kAlignment);
  struct Free {
    void operator()(T* elements) const { ::operator delete(*(reinterpret_cast<void**>(elements) - 1)); }
  };
  static std::unique_ptr<T[], Free> allocate(Index count) {
    if (count == 0) return {};
    constexpr std::size_t kMost = std::numeric_limits<std::size_t>::max() - kAlignment;
    if (static_cast<std::size_t>(count) > kMost / sizeof(T)) throw std::bad_alloc();
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    void* const memory = ::operator new(bytes + kAlignment);
    void* elements = static_cast<void**>(memory) + 1;
    std::size_t room = bytes + kAlignment - sizeof(void*);
    std::align(kAlignment, bytes, elements, room);
    *(static_cast<void**>(elements) - 1) = memory;
    return std::unique_ptr<T[], Free>(static_cast<T*>(elements));
  }
  void swap(Matrix& other) noexcept {
    data_.swap(other.data_);
    std::swap(rows_, other.rows_);
    std::swap(cols_, other.cols_);
  }

  std::unique_ptr<T[], Free> data_;
  Index rows_ = 0;
  Index cols_ = 0;
};

}  // namespace shardproof::ops
