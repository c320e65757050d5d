#include "coordinator/unknown_methods.h"

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "coordinator/client_status.h"

namespace switchyard {
namespace {

// Of a method's name in the message; a path can be as long as the headers.
constexpr size_t kMaxNameBytes = 200;

class Refusal final : public grpc::ServerGenericBidiReactor {
 public:
  explicit Refusal(const grpc::Status& why) { Finish(why); }
  void OnDone() override { delete this; }
};

}  // namespace

grpc::ServerGenericBidiReactor* UnknownMethods::CreateReactor(
    grpc::GenericCallbackServerContext* context) {
  const absl::string_view method =
      absl::string_view(context->method()).substr(0, kMaxNameBytes);
  return new Refusal(ToClientStatus(absl::UnimplementedError(absl::StrCat(
      "there is no method ", absl::CHexEscape(method), " here: ", advice_))));
}

}  // namespace switchyard
