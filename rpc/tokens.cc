#include "rpc/tokens.h"

#include <grpcpp/server_context.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <sys/stat.h>

#include <fstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

constexpr absl::Duration kLookInterval = absl::Seconds(1);

}  // namespace

absl::StatusOr<std::vector<std::string>> ReadTokens(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> tokens;
  std::string line;
  while (std::getline(file, line)) {
    const absl::string_view token = absl::StripAsciiWhitespace(line);
    if (token.empty() || token[0] == '#') continue;
    tokens.emplace_back(token);
  }
  if (!file.is_open() || file.bad()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the token file ", path, " cannot be read"));
  }
  if (tokens.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the token file ", path, " has no token; it needs one a line"));
  }
  return tokens;
}

bool TokenSet::Version::operator==(const Version& other) const {
  return device == other.device && inode == other.inode && size == other.size &&
         modified_ns == other.modified_ns;
}

TokenSet::TokenSet(std::string path,
                   std::function<void(const absl::Status&)> on_reload)
    : path_(std::move(path)), on_reload_(std::move(on_reload)) {}

absl::StatusOr<std::unique_ptr<TokenSet>> TokenSet::Load(
    const std::string& path,
    std::function<void(const absl::Status&)> on_reload) {
  std::unique_ptr<TokenSet> set(new TokenSet(path, std::move(on_reload)));
  absl::MutexLock lock(&set->mutex_);
  set->version_ = set->CurrentVersion();
  SY_RETURN_IF_ERROR(set->Reload());
  return set;
}

bool TokenSet::Accepts(absl::string_view token) {
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(),
         digest.data());
  absl::MutexLock lock(&mutex_);
  ReloadIfChanged();
  bool found = false;
  for (const Digest& known : digests_) {
    found |= CRYPTO_memcmp(known.data(), digest.data(), digest.size()) == 0;
  }
  return found;
}

absl::Status TokenSet::Reload() {
  SY_ASSIGN_OR_RETURN(const std::vector<std::string> tokens, ReadTokens(path_));
  digests_.resize(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    SHA256(reinterpret_cast<const unsigned char*>(tokens[i].data()),
           tokens[i].size(), digests_[i].data());
  }
  return absl::OkStatus();
}

void TokenSet::ReloadIfChanged() {
  const absl::Time now = absl::Now();
  if (now < next_look_) return;
  next_look_ = now + kLookInterval;
  const Version version = CurrentVersion();
  if (version == version_) return;
  version_ = version;
  const absl::Status status = Reload();
  if (on_reload_ != nullptr) on_reload_(status);
}

TokenSet::Version TokenSet::CurrentVersion() const {
  Version version;
  struct stat file;
  if (stat(path_.c_str(), &file) != 0) return version;
  version.device = file.st_dev;
  version.inode = file.st_ino;
  version.size = file.st_size;
  version.modified_ns =
      int64_t{file.st_mtim.tv_sec} * 1000000000 + file.st_mtim.tv_nsec;
  return version;
}

absl::Status CheckToken(TokenSet* tokens,
                        const grpc::ServerContextBase& context) {
  if (tokens == nullptr) return absl::OkStatus();
  const auto& metadata = context.client_metadata();
  const auto header = metadata.find(kTokenHeader);
  if (header == metadata.end()) {
    return absl::UnauthenticatedError(
        "authorization: the call brings none; `Bearer TOKEN` is needed");
  }
  absl::string_view value(header->second.data(), header->second.size());
  // The scheme's case is of no account (RFC 9110, 11.1).
  if (!absl::StartsWithIgnoreCase(value, kTokenPrefix)) {
    return absl::UnauthenticatedError(
        "authorization: it must have the form `Bearer TOKEN`");
  }
  value.remove_prefix(absl::string_view(kTokenPrefix).size());
  if (!tokens->Accepts(value)) {
    return absl::UnauthenticatedError(
        "authorization: the token is not one of those that this port accepts");
  }
  return absl::OkStatus();
}

}  // namespace switchyard
