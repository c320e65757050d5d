#include "cli/file_rendezvous.h"

#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <optional>
#include <sstream>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace switchyard {
namespace {

constexpr absl::Duration kPeriod = absl::Milliseconds(2);

std::optional<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

}  // namespace

std::string FileRendezvous::Path(const std::string& key) const {
  return absl::StrCat(directory_, "/", absl::WebSafeBase64Escape(key));
}

absl::Status FileRendezvous::Put(const std::string& key,
                                 const std::string& value) {
  const std::string path = Path(key);
  if (const std::optional<std::string> there = ReadFile(path)) {
    if (*there == value) return absl::OkStatus();
    return absl::AlreadyExistsError(
        absl::StrCat("rendezvous key ", key, " is set to something else"));
  }
  // A reader sees the file whole or not at all.
  const std::string draft = absl::StrCat(path, ".", getpid());
  std::ofstream file(draft, std::ios::binary);
  file << value;
  file.close();
  if (!file || std::rename(draft.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot write ", path));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> FileRendezvous::Get(const std::string& key,
                                                absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!cancelled_) {
    if (std::optional<std::string> value = ReadFile(Path(key))) {
      return *std::move(value);
    }
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("rendezvous key ", key, " was not set in time"));
    }
    absl::SleepFor(kPeriod);
  }
  return absl::CancelledError("the rendezvous was cancelled");
}

}  // namespace switchyard
