// How commands that talk to a server reach it: the flags that they share.
#ifndef SWITCHYARD_CLI_CLIENT_FLAGS_H_
#define SWITCHYARD_CLI_CLIENT_FLAGS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cli/flags.h"
#include "rpc/credentials.h"

namespace switchyard {

// --tls-ca, --tls-cert, --tls-key and --token-file, under a heading of their
// own. `files` is borrowed.
void AddClientFlags(ClientFiles* files, FlagSet* flags);
// The same with --target, which names the server, in front. Borrows `target`.
void AddTargetFlags(std::string* target, std::string help, ClientFiles* files,
                    FlagSet* flags);

// A channel to `target` (host:port) as `files` say; its first call connects.
absl::StatusOr<std::shared_ptr<grpc::Channel>> Dial(const std::string& target,
                                                    const ClientFiles& files);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_CLIENT_FLAGS_H_
