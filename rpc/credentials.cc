#include "rpc/credentials.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <grpcpp/support/client_interceptor.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <fstream>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/status.h"
#include "rpc/tokens.h"

namespace switchyard {
namespace {

constexpr unsigned kRefreshSeconds = 1;

absl::Status Malformed(const std::string& path, absl::string_view what) {
  char reason[256] = "no reason given";
  if (const unsigned long code = ERR_peek_last_error(); code != 0) {
    ERR_error_string_n(code, reason, sizeof(reason));
  }
  ERR_clear_error();
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": ", what, " (", reason, ")"));
}

// gRPC tells nobody what is wrong with a file: handshakes just fail. So the
// files are tried here first.
absl::Status CheckFiles(const TlsFiles& files) {
  if (files.cert.empty() != files.key.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("TLS needs a certificate and its key; given is only ",
                     files.cert.empty() ? files.key : files.cert));
  }
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(
      SSL_CTX_new(TLS_method()), &SSL_CTX_free);
  // Nobody is there to type a passphrase.
  SSL_CTX_set_default_passwd_cb(
      context.get(), +[](char*, int, int, void*) { return 0; });
  if (!files.cert.empty()) {
    if (SSL_CTX_use_certificate_chain_file(context.get(), files.cert.c_str()) !=
        1) {
      return Malformed(files.cert, "cannot be read as a PEM certificate");
    }
    if (SSL_CTX_use_PrivateKey_file(context.get(), files.key.c_str(),
                                    SSL_FILETYPE_PEM) != 1) {
      return Malformed(files.key,
                       absl::StrCat("cannot be read as the PEM key, without a "
                                    "passphrase, of ",
                                    files.cert));
    }
  }
  if (!files.ca.empty() && SSL_CTX_load_verify_locations(
                               context.get(), files.ca.c_str(), nullptr) != 1) {
    return Malformed(files.ca, "cannot be read as PEM CA certificates");
  }
  return absl::OkStatus();
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Adds the token to every call of a channel.
class TokenInterceptor final : public grpc::experimental::Interceptor {
 public:
  explicit TokenInterceptor(const std::string& header) : header_(header) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* call) override {
    if (call->QueryInterceptionHookPoint(
            grpc::experimental::InterceptionHookPoints::
                PRE_SEND_INITIAL_METADATA)) {
      call->GetSendInitialMetadata()->emplace(kTokenHeader, header_);
    }
    call->Proceed();
  }

 private:
  const std::string& header_;
};

class TokenInterceptorFactory final
    : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit TokenInterceptorFactory(const std::string& token)
      : header_(absl::StrCat(kTokenPrefix, token)) {}

  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo*) override {
    return new TokenInterceptor(header_);
  }

 private:
  const std::string header_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const TlsFiles& files) {
  if (files.empty()) return grpc::InsecureServerCredentials();
  if (files.cert.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a CA for clients needs a server certificate and its key; given is "
        "only ",
        files.ca));
  }
  SY_RETURN_IF_ERROR(CheckFiles(files));
  namespace tls = grpc::experimental;
  tls::TlsServerCredentialsOptions options(
      std::make_shared<tls::FileWatcherCertificateProvider>(
          files.key, files.cert, files.ca, kRefreshSeconds));
  options.watch_identity_key_cert_pairs();
  if (!files.ca.empty()) options.watch_root_certs();
  options.set_cert_request_type(
      files.ca.empty()
          ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
          : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  return tls::TlsServerCredentials(options);
}

absl::StatusOr<ClientCredentials> LoadClientCredentials(
    const ClientFiles& files) {
  ClientCredentials credentials;
  if (!files.tls.empty()) {
    if (files.tls.ca.empty()) {
      return absl::InvalidArgumentError(
          "TLS needs the CA that signs the server's certificate");
    }
    SY_RETURN_IF_ERROR(CheckFiles(files.tls));
    grpc::SslCredentialsOptions options;
    options.pem_root_certs = ReadFile(files.tls.ca);
    if (!files.tls.cert.empty()) {
      options.pem_cert_chain = ReadFile(files.tls.cert);
      options.pem_private_key = ReadFile(files.tls.key);
    }
    credentials.channel = grpc::SslCredentials(options);
  }
  if (!files.token_file.empty()) {
    SY_ASSIGN_OR_RETURN(const std::vector<std::string> tokens,
                        ReadTokens(files.token_file));
    credentials.token = tokens[0];
  }
  return credentials;
}

std::shared_ptr<grpc::Channel> OpenChannel(
    const std::string& address, const ClientCredentials& credentials,
    const grpc::ChannelArguments& arguments) {
  const std::shared_ptr<grpc::ChannelCredentials> channel =
      credentials.channel != nullptr ? credentials.channel
                                     : grpc::InsecureChannelCredentials();
  if (credentials.token.empty()) {
    return grpc::CreateCustomChannel(address, channel, arguments);
  }
  std::vector<
      std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>>
      interceptors;
  interceptors.push_back(
      std::make_unique<TokenInterceptorFactory>(credentials.token));
  return grpc::experimental::CreateCustomChannelWithInterceptors(
      address, channel, arguments, std::move(interceptors));
}

}  // namespace switchyard
