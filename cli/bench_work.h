// What a benchmark's step amounts to: which placement is meant, what it has to
// read, what it has to compute. Pure arithmetic over the model's config.
#ifndef SWITCHYARD_CLI_BENCH_WORK_H_
#define SWITCHYARD_CLI_BENCH_WORK_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/cache_spec.h"
#include "model/config.h"
#include "model/placement.h"

namespace switchyard {

// What --placement takes: presets (all-NAME), mixer names joined by '+', one
// per layer, and counts such as 3/25/4/16: layers of attention, sliding-window
// attention, kda and gdn, spread evenly over the depth.
absl::StatusOr<Placement> ParseBenchPlacement(const ModelConfig& config,
                                              absl::string_view text);

// Bytes of memory traffic that one rank's decode step cannot do without.
struct StepTraffic {
  int64_t weight_bytes = 0;  // read: every matrix that the placement uses
  int64_t kv_bytes = 0;      // read: keys and values in reach
  int64_t state_bytes = 0;   // read, and as many written: recurrent states

  // The time they take where memory is read, and copied, at these rates.
  double FloorMs(double read_gbps, double copy_gbps) const {
    return 1e3 * ((weight_bytes + kv_bytes) / (read_gbps * 1e9) +
                  2.0 * state_bytes / (copy_gbps * 1e9));
  }
};

// Of `batch` sequences with `context` positions in the cache each. `cache_spec`
// is of the config, and tells the world size. Matrices have
// `matrix_element_bytes` an element, other weights 4.
StepTraffic TrafficOfStep(const ModelConfig& config,
                          const CacheSpec& cache_spec,
                          int32_t matrix_element_bytes,
                          const Placement& placement, int32_t batch,
                          int32_t context);

// Floating-point operations of a prefill on one rank of `world_size`: products
// with weights, scores and values of attention within the causal mask and the
// window, and the recurrence of the others token by token (6 for every element
// of the state); the logits of one row.
double PrefillFlops(const ModelConfig& config, int32_t world_size,
                    const Placement& placement, int32_t num_tokens);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_BENCH_WORK_H_
