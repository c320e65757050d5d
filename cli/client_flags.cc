#include "cli/client_flags.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "kernels/status.h"

namespace switchyard {

namespace {

constexpr char kSection[] = "How to reach the server";

void AddFileFlags(ClientFiles* files, FlagSet* flags) {
  flags->String(
      "tls-ca", &files->tls.ca, "FILE",
      "use TLS, and trust servers whose certificate these CAs signed (PEM)");
  flags->String("tls-cert", &files->tls.cert, "FILE",
                "our certificate, where the server asks for one (PEM)");
  flags->String("tls-key", &files->tls.key, "FILE", "its key (PEM)");
  flags->String("token-file", &files->token_file, "FILE",
                "its first line is the bearer token to send");
}

}  // namespace

void AddClientFlags(ClientFiles* files, FlagSet* flags) {
  flags->Section(kSection);
  AddFileFlags(files, flags);
}

void AddTargetFlags(std::string* target, std::string help, ClientFiles* files,
                    FlagSet* flags) {
  flags->Section(kSection);
  flags->String("target", target, "HOST:PORT", std::move(help));
  AddFileFlags(files, flags);
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
