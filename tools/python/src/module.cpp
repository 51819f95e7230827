// The extension module shardproof._core.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <map>
#include <memory>
#include <variant>

#include "emu/report/json.h"
#include "emu/run/reduction.h"
#include "ops/format.h"
#include "tools/python/src/python_scheme.h"

namespace nb = nanobind;

namespace shardproof::python {
namespace {

/// The memory of a contiguous array, held until the call is over.
class Buffer {
 public:
  Buffer(nb::handle array, bool writable) {
    if (array.is_none()) return;
    const int flags = PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(array.ptr(), &view_, flags) != 0) throw nb::python_error();
    held_ = true;
  }
  ~Buffer() {
    if (held_) PyBuffer_Release(&view_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return held_ ? view_.buf : nullptr; }
  std::size_t bytes() const { return held_ ? static_cast<std::size_t>(view_.len) : 0; }

 private:
  Py_buffer view_{};
  bool held_ = false;
};

template <class Enum>
Enum named(const std::string& name, Enum last, const char* what) {
  for (int i = 0; i <= static_cast<int>(last); ++i) {
    if (to_string(static_cast<Enum>(i)) == name) return static_cast<Enum>(i);
  }
  throw nb::value_error((std::string(what) + " '" + name + "' does not exist").c_str());
}

Rounding rounding_named(const std::string& name) {
  for (const ops::Format format : {ops::Format::fp64, ops::Format::fp32, ops::Format::bf16, ops::Format::fp16}) {
    if (name == ops::to_string(format)) return rounding_of(format);
  }
  throw nb::value_error(("no format '" + name + "': fp64, fp32, bf16 or fp16 is needed").c_str());
}

Axes axes_named(const std::vector<std::string>& names) {
  Axes axes;
  for (const std::string& name : names) {
    const auto found = std::ranges::find_if(kAxes, [&](Axis axis) { return to_string(axis) == name; });
    if (found == kAxes.end()) throw nb::value_error(("no axis '" + name + "'").c_str());
    axes = axes.with(*found);
  }
  return axes;
}

Parallel parallel_of(const std::map<std::string, int>& degrees) {
  Parallel parallel;
  for (const auto& [name, degree] : degrees) {
    int* const field = name == "tp"   ? &parallel.tp
                       : name == "cp" ? &parallel.cp
                       : name == "dp" ? &parallel.dp
                       : name == "pp" ? &parallel.pp
                       : name == "ep" ? &parallel.ep
                                      : &parallel.etp;
    *field = degree;
  }
  parallel.edp = std::max(1, parallel.tp * parallel.cp * parallel.dp / std::max(1, parallel.ep * parallel.etp));
  return parallel;
}

using Expected = std::tuple<std::string, int, std::vector<std::int64_t>, nb::object>;

ExpectedTaps expected_of(const std::vector<Expected>& tensors) {
  ExpectedTaps expected;
  for (const auto& [name, step, dims, array] : tensors) {
    const Buffer buffer(array, false);
    const auto* const values = static_cast<const double*>(buffer.data());
    expected.add(name, dims, std::vector<double>(values, values + buffer.bytes() / sizeof(double)), {.step = step});
  }
  return expected;
}

/// The report as JSON, or a rank that raised, and what the error says.
std::tuple<std::string, int, std::string> run(PythonScheme& scheme, const std::vector<Expected>& tensors, double bound,
                                              int threads, std::optional<std::uint64_t> schedule, int schedules) {
  const ExpectedTaps expected = expected_of(tensors);
  const nb::gil_scoped_release others_run;
  try {
    const VerifyReport report =
        scheme.run(expected, {.bound = bound, .threads = threads, .schedule = schedule, .schedules = schedules});
    return {to_json(report), -1, ""};
  } catch (const RankError& error) {
    return {"", to_int(error.rank()), error.what()};
  }
}

/// A call under way, with the memory of the arrays that it reads and writes.
struct IssuedCall {
  std::unique_ptr<Buffer> in;
  std::unique_ptr<Buffer> out;
  CallHandle handle;
};

/// How a call is made: the rank waits for it; it is under way; or it is as one under way, and the rank waits at once.
enum class How : int { blocking, issued, both };

/// None where the rank waits for the call here.
std::unique_ptr<IssuedCall> call(PythonScheme& scheme, int rank, const GroupHandle& group, const std::string& operation,
                                 int type, nb::handle in, nb::handle out, const std::string& reduction,
                                 const std::string& algorithm, const std::optional<std::string>& wire,
                                 const std::optional<std::string>& accumulate, int gpus_per_node, int root,
                                 std::optional<std::vector<std::size_t>> counts, std::vector<std::size_t> recv_counts,
                                 const std::string& file, const std::string& function, std::uint32_t line, int how) {
  auto from = std::make_unique<Buffer>(in, false);
  auto to = std::make_unique<Buffer>(out, true);
  CallRequest request{.operation = named(operation, Operation::exchange, "the operation"),
                      .type = static_cast<ElementType>(type),
                      .in = from->data(),
                      .out = to->data(),
                      .root = root,
                      .counts = std::move(counts),
                      .recv_counts = std::move(recv_counts),
                      .sends = {},
                      .recvs = {},
                      .file = interned(file),
                      .function = interned(function),
                      .line = line};
  request.in_count = from->bytes() / size_of(request.type);
  request.out_count = to->bytes() / size_of(request.type);
  request.options.reduction = named(reduction, Reduction::average, "the reduction");
  request.options.algorithm = named(algorithm, Algorithm::hierarchical, "the algorithm");
  request.options.gpus_per_node = gpus_per_node;
  if (wire) request.options.wire = rounding_named(*wire);
  if (accumulate) request.options.accumulate = rounding_named(*accumulate);
  const nb::gil_scoped_release others_run;
  if (static_cast<How>(how) != How::issued) {
    if (static_cast<How>(how) == How::both) {
      scheme.issue_and_wait(rank, group, request);
    } else {
      scheme.call(rank, group, request);
    }
    return nullptr;
  }
  auto made = std::make_unique<IssuedCall>();
  made->handle = scheme.issue(rank, group, request);
  made->in = std::move(from);
  made->out = std::move(to);
  return made;
}

void wait(PythonScheme& scheme, int rank, IssuedCall& call) {
  const nb::gil_scoped_release others_run;
  scheme.wait(rank, call.handle);
}

/// An array, its element type and the other rank.
using Message = std::tuple<nb::object, int, int>;

void exchange(PythonScheme& scheme, int rank, const GroupHandle& group, const std::vector<Message>& sends,
              const std::vector<Message>& recvs, const std::string& file, const std::string& function,
              std::uint32_t line) {
  std::vector<std::unique_ptr<Buffer>> buffers;
  CallRequest request{.operation = Operation::exchange,
                      .counts = {},
                      .recv_counts = {},
                      .sends = {},
                      .recvs = {},
                      .file = interned(file),
                      .function = interned(function),
                      .line = line};
  const auto part = [&](const Message& message, bool is_send) {
    const auto& [array, type, peer] = message;
    const Buffer& held = *buffers.emplace_back(std::make_unique<Buffer>(array, !is_send));
    const auto element = static_cast<ElementType>(type);
    return internal::Part{.is_send = is_send,
                          .type = element,
                          .count = held.bytes() / size_of(element),
                          .source = is_send ? held.data() : nullptr,
                          .target = is_send ? nullptr : held.data(),
                          .peer = GroupRank{peer}};
  };
  for (const Message& message : sends) request.sends.push_back(part(message, true));
  for (const Message& message : recvs) request.recvs.push_back(part(message, false));
  const nb::gil_scoped_release others_run;
  scheme.call(rank, group, request);
}

TapValues tap_values(ElementType type, const Buffer& buffer, std::int64_t rows, std::int64_t cols) {
  switch (type) {
    case ElementType::f32:
      return ops::MatrixView<const float>{static_cast<const float*>(buffer.data()), rows, cols};
    case ElementType::i32:
      return ops::MatrixView<const std::int32_t>{static_cast<const std::int32_t*>(buffer.data()), rows, cols};
    case ElementType::i64:
      return ops::MatrixView<const std::int64_t>{static_cast<const std::int64_t*>(buffer.data()), rows, cols};
    default:
      return ops::MatrixView<const double>{static_cast<const double*>(buffer.data()), rows, cols};
  }
}

using Extent = std::pair<std::int64_t, std::int64_t>;

Placement placement_of(Extent whole, Extent rows, Extent cols, const std::vector<std::int64_t>& row_list) {
  Placement placement{.rows = whole.first,
                      .cols = whole.second,
                      .row_part = {rows.first, rows.second},
                      .col_part = {cols.first, cols.second}};
  placement.row_list = row_list;
  return placement;
}

TapValues placed_values(int type, const Buffer& buffer, const Placement& placement) {
  const auto element = static_cast<ElementType>(type);
  const std::int64_t rows = placement.row_part.count, cols = placement.col_part.count;
  if (buffer.bytes() != static_cast<std::size_t>(rows * cols) * size_of(element)) {
    throw nb::value_error("the tensor's size is not that of its placement");
  }
  return tap_values(element, buffer, rows, cols);
}

void tap(PythonScheme& scheme, int rank, const std::string& name, int step, Extent whole, Extent rows, Extent cols,
         const std::vector<std::int64_t>& row_list, const std::vector<std::string>& partial,
         const std::vector<int>& partial_ranks, const std::vector<std::string>& replicas, int type, nb::handle array) {
  const Buffer buffer(array, false);
  Placement placement = placement_of(whole, rows, cols, row_list);
  placement.partial = axes_named(partial);
  placement.partial_ranks = partial_ranks;
  placement.replicas = axes_named(replicas);
  const TapValues values = placed_values(type, buffer, placement);
  const nb::gil_scoped_release others_run;
  scheme.tap(rank, name, step, placement, values);
}

/// A rank, a tap's name, its placement, the ranks that its partial sums are of, its element type and its array.
using HeldBlock =
    std::tuple<int, std::string, Extent, Extent, Extent, std::vector<std::int64_t>, std::vector<int>, int, nb::object>;

/// As a scheme whose ranks tap these blocks, each its own in order, and do nothing else; without a thread for each.
std::string judge_blocks(const std::map<std::string, int>& degrees, const std::vector<HeldBlock>& blocks,
                         const std::vector<Expected>& tensors, double bound) {
  struct Held {
    std::string name;
    Placement placement;
    TapValues values;
  };
  std::vector<std::unique_ptr<Buffer>> buffers;
  std::map<int, std::vector<Held>> of_rank;
  for (const auto& [rank, name, whole, rows, cols, row_list, partial_ranks, type, array] : blocks) {
    Placement placement = placement_of(whole, rows, cols, row_list);
    placement.partial_ranks = partial_ranks;
    const Buffer& buffer = *buffers.emplace_back(std::make_unique<Buffer>(array, false));
    const TapValues values = placed_values(type, buffer, placement);
    of_rank[rank].push_back({name, std::move(placement), values});
  }
  const ExpectedTaps expected = expected_of(tensors);
  const auto program = [&](Rank& rank) -> Task<> {
    const auto found = of_rank.find(to_int(rank.id()));
    if (found == of_rank.end()) co_return;
    for (const Held& held : found->second) {
      std::visit([&]<class T>(ops::MatrixView<const T> part) { rank.tap<T>(held.name, part, held.placement, -1); },
                 held.values);
    }
  };
  const nb::gil_scoped_release others_run;
  return to_json(verify_scheme(parallel_of(degrees), program, expected, {.bound = bound}));
}

}  // namespace

NB_MODULE(_core, m) {
  // A module's exceptions and types live until the interpreter ends, as do ranks that never came back.
  nb::set_leak_warnings(false);
  nb::exception<InvalidCall>(m, "InvalidCall", PyExc_ValueError);
  nb::exception<RunOver>(m, "RunOver", PyExc_BaseException);

  nb::class_<GroupHandle>(m, "Group")
      .def_prop_ro("rank", [](const GroupHandle& handle) { return handle.rank; })
      .def_prop_ro("size", [](const GroupHandle& handle) { return handle.group.size(); })
      .def_prop_ro("name", [](const GroupHandle& handle) { return handle.group.name(); })
      .def_prop_ro("members", [](const GroupHandle& handle) {
        std::vector<int> ranks;
        for (const GlobalRank member : handle.group.members) ranks.push_back(to_int(member));
        return ranks;
      });

  nb::class_<IssuedCall>(m, "IssuedCall");

  m.def("judge_blocks", &judge_blocks);

  nb::class_<PythonScheme>(m, "Scheme")
      .def("__init__", [](PythonScheme* self, const std::map<std::string, int>& degrees,
                          double patience) { new (self) PythonScheme(parallel_of(degrees), patience); })
      .def("run", &run)
      .def("interrupt", &PythonScheme::interrupt)
      .def("close", &PythonScheme::close)
      .def("begin", &PythonScheme::begin, nb::call_guard<nb::gil_scoped_release>())
      .def("end", &PythonScheme::end, nb::arg("rank"), nb::arg("failure").none(),
           nb::call_guard<nb::gil_scoped_release>())
      .def("group", &PythonScheme::group, nb::call_guard<nb::gil_scoped_release>())
      .def("call", &call, nb::arg("rank"), nb::arg("group"), nb::arg("operation"), nb::arg("type"),
           nb::arg("input").none(), nb::arg("output").none(), nb::arg("reduction"), nb::arg("algorithm"),
           nb::arg("wire").none(), nb::arg("accumulate").none(), nb::arg("gpus_per_node"), nb::arg("root"),
           nb::arg("counts").none(), nb::arg("recv_counts"), nb::arg("file"), nb::arg("function"), nb::arg("line"),
           nb::arg("how"))
      .def("wait", &wait)
      .def("exchange", &exchange)
      .def("tap", &tap)
      .def("at", &PythonScheme::at);
}

}  // namespace shardproof::python
