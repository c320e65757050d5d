#include "cli/client_flags.h"

#include <grpcpp/grpcpp.h>

#include "kernels/status.h"

namespace switchyard {

void AddClientFlags(ClientFiles* files, FlagSet* flags) {
  flags->Section("How to reach the server");
  flags->String("tls-ca", &files->tls.ca, "FILE",
                "TLS, with a server whose certificate these CAs sign (PEM)");
  flags->String("tls-cert", &files->tls.cert, "FILE",
                "our certificate, where the server asks for one (PEM)");
  flags->String("tls-key", &files->tls.key, "FILE", "its key (PEM)");
  flags->String("token-file", &files->token_file, "FILE",
                "the bearer token to send is its first line");
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> Dial(const std::string& target,
                                                    const ClientFiles& files) {
  SY_ASSIGN_OR_RETURN(const ClientCredentials credentials,
                      LoadClientCredentials(files));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);  // a long prompt's log-probabilities
  return OpenChannel(target, credentials, arguments);
}

}  // namespace switchyard
