#include "tests/judge/dump_files.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <stdexcept>

#include "emu/judge/dump_writer.h"
#include "emu/plan/batch.h"

namespace shardproof::testing {
namespace {

EditableTensor read(const SafetensorsFile& file, const TensorEntry& entry) {
  EditableTensor tensor{.type = entry.type, .shape = entry.shape, .values = {}};
  if (is_integer(entry.type)) {
    ops::Matrix<std::int64_t> ids(entry.rows(), entry.cols());
    file.read(entry, {0, ids.rows()}, {0, ids.cols()}, ids.view());
    tensor.ids.assign(ids.span().begin(), ids.span().end());
  } else {
    ops::Matrix<double> values(entry.rows(), entry.cols());
    file.read(entry, {0, values.rows()}, {0, values.cols()}, values.view());
    tensor.values.assign(values.span().begin(), values.span().end());
  }
  return tensor;
}

void save(const std::filesystem::path& path, const std::map<std::string, EditableTensor>& tensors) {
  std::vector<TensorBytes> bytes;
  for (const auto& [name, tensor] : tensors) {
    bytes.push_back(is_integer(tensor.type) ? tensor_of(name, tensor.shape, tensor.ids)
                                            : tensor_of(name, tensor.type, tensor.shape, tensor.values));
  }
  const std::string file = safetensors_file(bytes);
  std::ofstream(path, std::ios::binary).write(file.data(), static_cast<std::streamsize>(file.size()));
}

}  // namespace

DumpFiles::DumpFiles(const Plan& plan, ops::Format format, const WeightSource* weights) {
  const ::testing::TestInfo& test = *::testing::UnitTest::GetInstance()->current_test_info();
  folder_ = std::filesystem::path(::testing::TempDir()) / ([&] {
              std::string name = std::string("dump_") + test.test_suite_name() + "_" + test.name();
              std::ranges::replace(name, '/', '_');
              return name;
            }());
  DumpWriter writer(format);
  const VerifyReport report = verify(plan, {.format = format, .threads = 2, .weights = weights, .taps = &writer});
  if (report.verdict != Verdict::pass) throw std::logic_error("the run that is dumped is wrong");
  std::filesystem::remove_all(folder_);
  std::filesystem::create_directories(folder_);
  const Batch batch(plan.workload, plan.model.vocab_size);
  for (int rank = 0; rank < plan.world(); ++rank) {
    const std::string bytes = writer.file(rank, batch.tokens());
    std::ofstream(file(rank), std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    const SafetensorsFile written(file(rank), TensorTypes::floats_and_ids);
    for (const TensorEntry& entry : written.header().tensors) ranks[rank][entry.name] = read(written, entry);
  }
}

void DumpFiles::write() const {
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) std::filesystem::remove(entry.path());
  for (const auto& [rank, tensors] : ranks) save(file(rank), tensors);
}

void DumpFiles::write_whole(const std::string& name) const {
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) std::filesystem::remove(entry.path());
  save(folder_ / name, ranks.at(0));
}

}  // namespace shardproof::testing
