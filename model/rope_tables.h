// RopeTables: the cosines and sines of every attention layer, one table per
// kind, on the device. Owned by the model; filled while it loads,
// read-only afterwards.
#ifndef SWITCHYARD_MODEL_ROPE_TABLES_H_
#define SWITCHYARD_MODEL_ROPE_TABLES_H_

#include <cstdint>
#include <map>
#include <tuple>

#include "absl/status/statusor.h"
#include "kernels/device.h"

namespace switchyard {

struct RopeTable {
  const float* data = nullptr;  // [num_positions, head_size], see rope.h
  int64_t num_positions = 0;
};

struct RopeKind {
  double theta = 0;
  int32_t head_size = 0;
  bool bf16_frequencies = false;
};

class RopeTables {
 public:
  RopeTables(Device* device, int64_t num_positions)
      : device_(device), num_positions_(num_positions) {}

  // The table, made when first asked for. ResourceExhausted.
  absl::StatusOr<RopeTable> Get(const RopeKind& kind);

 private:
  Device* const device_;
  const int64_t num_positions_;
  std::map<std::tuple<double, int32_t, bool>, DeviceBuffer> tables_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_ROPE_TABLES_H_
