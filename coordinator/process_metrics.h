// The metrics that every Prometheus client exports of its process, by their
// usual names.
#ifndef SWITCHYARD_COORDINATOR_PROCESS_METRICS_H_
#define SWITCHYARD_COORDINATOR_PROCESS_METRICS_H_

#include <vector>

namespace prometheus {
struct MetricFamily;
}

namespace switchyard {

// process_cpu_seconds_total, process_resident_memory_bytes, process_open_fds
// and process_start_time_seconds, read from /proc now. Leaves out what it
// cannot read.
void AppendProcessMetrics(std::vector<prometheus::MetricFamily>* families);

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_PROCESS_METRICS_H_
