// How a process proves who it is: TLS from PEM files, and a bearer token.
#ifndef SWITCHYARD_RPC_CREDENTIALS_H_
#define SWITCHYARD_RPC_CREDENTIALS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace grpc {
class Channel;
class ChannelArguments;
class ChannelCredentials;
class ServerCredentials;
}  // namespace grpc

namespace switchyard {

// Paths of PEM files. All empty: plaintext.
struct TlsFiles {
  std::string cert;  // our certificate, and what leads up to the CA
  std::string key;   // of `cert`
  std::string ca;    // signs the certificates of those we talk to

  bool empty() const { return cert.empty() && key.empty() && ca.empty(); }
};

// For a listening port. With a `ca` only clients that show a certificate signed
// by it get in. The files are watched: handshakes that begin a second or two
// after a change use what is in them then; connections that exist stay.
// kInvalidArgument names the file that is missing or malformed, or the key
// that is not the certificate's.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const TlsFiles& files);

struct ClientFiles {
  TlsFiles tls;            // without a `ca`, but not empty: refused
  std::string token_file;  // its first token is sent; empty: none
};

// What ClientFiles hold. Default-constructed: plaintext, no token.
struct ClientCredentials {
  std::shared_ptr<grpc::ChannelCredentials> channel;  // null: plaintext
  std::string token;                                  // empty: none
};

// Reads the files, now. Errors as above.
absl::StatusOr<ClientCredentials> LoadClientCredentials(
    const ClientFiles& files);

// A channel whose every call carries the token. The certificate of the server
// must be for the host in `address`.
std::shared_ptr<grpc::Channel> OpenChannel(
    const std::string& address, const ClientCredentials& credentials,
    const grpc::ChannelArguments& arguments);

}  // namespace switchyard

#endif  // SWITCHYARD_RPC_CREDENTIALS_H_
