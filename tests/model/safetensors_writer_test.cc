#include "model/safetensors_writer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

TensorView View(const std::string& dtype, std::vector<int64_t> shape,
                const std::string& bytes) {
  TensorView view;
  view.dtype_name = dtype;
  view.shape = std::move(shape);
  view.bytes = {reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()};
  return view;
}

TEST(SafetensorsWriterTest, WhatIsWrittenIsRead) {
  const std::string a(12, 'a'), b(8, 'b'), c(4, 'c'), none;
  const TensorMap tensors = {{"one", View("BF16", {2, 3}, a)},
                             {"two", View("I64", {1}, b)},
                             {"scalar \"\\\xc3\xa4", View("F32", {}, c)},
                             {"none", View("F32", {0}, none)}};
  EXPECT_EQ(SafetensorsHeader(tensors).size() % 8, 0);
  const std::string path =
      absl::StrCat(testing::TempDir(), "/model.safetensors");
  ASSERT_TRUE(WriteSafetensors(path, tensors).ok());
  EXPECT_FALSE(std::filesystem::exists(path + ".partial"));
  const auto model = SafetensorsModel::Open(testing::TempDir());
  ASSERT_TRUE(model.ok()) << model.status();
  ASSERT_EQ(model->tensors().size(), tensors.size());
  for (const auto& [name, view] : tensors) {
    const auto* entry = model->Find(name);
    ASSERT_NE(entry, nullptr) << name;
    EXPECT_EQ(entry->view.dtype_name, view.dtype_name);
    EXPECT_EQ(entry->view.shape, view.shape);
    EXPECT_EQ(entry->view.bytes, view.bytes);
  }
}

TEST(SafetensorsWriterTest, NamesThePathItCannotWrite) {
  const absl::Status status = WriteSafetensors("no/such/dir/f", {});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(
      absl::StartsWith(status.message(), "cannot create no/such/dir/f"));
}

}  // namespace
}  // namespace switchyard
