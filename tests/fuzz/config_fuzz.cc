// config.json and, after a NUL byte, generation_config.json: any bytes yield a
// config or an InvalidArgument or Unimplemented of one line, and whatever can
// be derived from a config that was accepted stays within bounds.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>

#include "absl/strings/match.h"
#include "kernels/check.h"
#include "model/cache_spec.h"
#include "model/config.h"
#include "model/placement.h"
#include "model/weight_table.h"
#include "tests/fuzz/json_mutator.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace switchyard {
namespace {

// Deriving is linear in layers; two show what many would.
constexpr int32_t kMaxLayers = 2;

void Derive(const ModelConfig& config) {
  SY_CHECK(config.num_layers() > 0);
  Fingerprint(config);
  const Placement main = Placement::Main(config);
  SY_CHECK(*Placement::FromNames(config, main.Names(config)) == main);
  if (config.num_layers() > kMaxLayers) return;
  SY_CHECK(NumParameters(config) > 0);
  for (const int32_t world_size : {1, 2, 4}) {
    CacheSpecOptions options;
    options.world_size = world_size;
    const auto spec = CacheSpec::Create(config, options);
    SY_CHECK(spec.ok() == ValidateTensorParallel(config, world_size).ok());
    if (!spec.ok()) continue;
    SY_CHECK(spec->SequenceBytes(main, 1000) > 0);
    SY_CHECK(WeightBytesPerRank(config, world_size, 2) > 0);
  }
}

}  // namespace
}  // namespace switchyard

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const size_t split = std::min(text.find('\0'), text.size());
  const auto config = switchyard::ParseModelConfig(
      text.substr(0, split), text.substr(std::min(split + 1, text.size())));
  if (config.ok()) {
    switchyard::Derive(*config);
    return 0;
  }
  const absl::Status& status = config.status();
  SY_CHECK(absl::IsInvalidArgument(status) || absl::IsUnimplemented(status));
  SY_CHECK(!absl::StrContains(status.message(), '\n'));
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size,
                                          size_t max_size, unsigned int seed) {
  std::minstd_rand random(seed);
  if (random() % 4 != 0) {
    const std::string text(reinterpret_cast<const char*>(data), size);
    const size_t split = std::min(text.find('\0'), text.size());
    std::string mutated = switchyard::MutateJson(text.substr(0, split), random);
    if (!mutated.empty()) {
      mutated += text.substr(split);
      if (mutated.size() <= max_size) {
        std::memcpy(data, mutated.data(), mutated.size());
        return mutated.size();
      }
    }
  }
  return LLVMFuzzerMutate(data, size, max_size);
}
