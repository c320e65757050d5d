// A rendezvous of processes on one machine: a directory with a file for every
// key. For benchmarks, whose ranks have no worker service to meet at.
#ifndef SWITCHYARD_CLI_FILE_RENDEZVOUS_H_
#define SWITCHYARD_CLI_FILE_RENDEZVOUS_H_

#include <atomic>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/rendezvous.h"

namespace switchyard {

class FileRendezvous final : public Rendezvous {
 public:
  // The directory exists, and is the group's alone.
  explicit FileRendezvous(std::string directory)
      : directory_(std::move(directory)) {}

  absl::Status Put(const std::string& key, const std::string& value) override;
  // Looks for the file every few milliseconds.
  absl::StatusOr<std::string> Get(const std::string& key,
                                  absl::Duration timeout) override;
  void Cancel() override { cancelled_ = true; }

 private:
  std::string Path(const std::string& key) const;

  const std::string directory_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_FILE_RENDEZVOUS_H_
