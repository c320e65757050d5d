// Bearer tokens: who may call a port, whatever the connection.
#ifndef SWITCHYARD_RPC_TOKENS_H_
#define SWITCHYARD_RPC_TOKENS_H_

#include <sys/types.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace grpc {
class ServerContextBase;
}

namespace switchyard {

// How a token travels: `authorization: Bearer TOKEN`.
inline constexpr char kTokenHeader[] = "authorization";
inline constexpr char kTokenPrefix[] = "Bearer ";

// The tokens in a file: one a line; blank lines and lines that begin with `#`
// are left out. kInvalidArgument names a file that cannot be read or has no
// token; no message ever quotes what is in it.
absl::StatusOr<std::vector<std::string>> ReadTokens(const std::string& path);

// The tokens that a port accepts. Thread-safe.
//
// It keeps hashes only, and compares them all in constant time: how long an
// answer takes tells nothing of how nearly right a guess was.
class TokenSet {
 public:
  // Errors as ReadTokens. The file is read again soon after it changes, at
  // latest for the first call a second later, and `on_reload` hears of it; a
  // change that leaves no token to accept is not taken over, and it hears why.
  static absl::StatusOr<std::unique_ptr<TokenSet>> Load(
      const std::string& path,
      std::function<void(const absl::Status&)> on_reload);

  bool Accepts(absl::string_view token) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Digest = std::array<unsigned char, 32>;  // SHA-256
  // What tells that a file is another one.
  struct Version {
    dev_t device = 0;
    ino_t inode = 0;
    off_t size = 0;
    int64_t modified_ns = 0;
    bool operator==(const Version& other) const;
  };

  TokenSet(std::string path,
           std::function<void(const absl::Status&)> on_reload);
  absl::Status Reload() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReloadIfChanged() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Version CurrentVersion() const;

  const std::string path_;
  const std::function<void(const absl::Status&)> on_reload_;
  absl::Mutex mutex_;
  std::vector<Digest> digests_ ABSL_GUARDED_BY(mutex_);
  Version version_ ABSL_GUARDED_BY(mutex_);
  absl::Time next_look_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

// kUnauthenticated unless the call brings a token that `tokens` accepts; OK
// for every call when `tokens` is null.
absl::Status CheckToken(TokenSet* tokens,
                        const grpc::ServerContextBase& context);

}  // namespace switchyard

#endif  // SWITCHYARD_RPC_TOKENS_H_
