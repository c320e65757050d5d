#include "coordinator/request.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/sampling_params.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

absl::StatusOr<std::vector<uint32_t>> PromptTokenIds(
    const v1::GenerateRequest& request, const ServedModel& model) {
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText: {
      if (model.tokenizer == nullptr) {
        return absl::UnimplementedError(
            absl::StrCat("text: ", model.name,
                         " has no tokenizer.json, so it serves prompts in "
                         "token_ids only"));
      }
      if (request.text().empty()) {
        return absl::InvalidArgumentError("text: the prompt is empty");
      }
      absl::StatusOr<std::vector<uint32_t>> ids =
          model.tokenizer->Encode(request.text(), /*add_special_tokens=*/true);
      if (!ids.ok()) {
        return absl::Status(ids.status().code(),
                            absl::StrCat("text: ", ids.status().message()));
      }
      return ids;
    }
    case v1::GenerateRequest::kTokenIds:
      return std::vector<uint32_t>(request.token_ids().ids().begin(),
                                   request.token_ids().ids().end());
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError(
      "prompt: there is none; set text or token_ids");
}

// `field`: of the request, that the ids come from.
absl::Status CheckPrompt(const std::vector<uint32_t>& ids,
                         v1::GenerateRequest::PromptCase field,
                         const ServedModel& model) {
  if (ids.empty()) {
    return absl::InvalidArgumentError(
        "prompt: it is empty; at least one token is needed");
  }
  if (ids.size() >= model.max_context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prompt: its ", ids.size(),
        " tokens leave no room for a completion in the model's context of ",
        model.max_context_tokens, " tokens"));
  }
  const std::optional<uint32_t> most = model.limits.max_prompt_tokens;
  if (most.has_value() && ids.size() > *most) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt: its ", ids.size(), " tokens are more than the ",
                     *most, " that this server allows"));
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < static_cast<uint32_t>(model.config.vocab_size)) continue;
    if (field == v1::GenerateRequest::kText) {
      return absl::InvalidArgumentError(
          absl::StrCat("text: tokenizer.json makes a token of id ", ids[i],
                       " of a part of it, and the model's vocabulary has only ",
                       model.config.vocab_size));
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "token_ids.ids[", i, "]: ", ids[i],
        " is not below the vocabulary's size of ", model.config.vocab_size));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<EngineRequest> ParseGenerateRequest(
    const v1::GenerateRequest& request, const ServedModel& model,
    absl::string_view assigned_id, uint64_t random_seed) {
  EngineRequest result;
  if (request.request_id().size() > kMaxRequestIdBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "request_id: its ", request.request_id().size(),
        " bytes are more than the ", kMaxRequestIdBytes, " allowed"));
  }
  result.request_id = request.request_id().empty() ? std::string(assigned_id)
                                                   : request.request_id();
  SY_ASSIGN_OR_RETURN(result.prompt_token_ids, PromptTokenIds(request, model));
  SY_RETURN_IF_ERROR(
      CheckPrompt(result.prompt_token_ids, request.prompt_case(), model));
  SY_RETURN_IF_ERROR(ValidateSamplingParams(
      request.sampling(), static_cast<uint32_t>(model.config.vocab_size),
      model.limits));
  if (request.sampling().stop_size() > 0 && model.tokenizer == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("sampling.stop: ", model.name,
                     " has no tokenizer.json, so there is no text to look for "
                     "stop strings in; use stop_token_ids"));
  }
  SamplingDefaults defaults;
  defaults.eos_token_ids.assign(model.config.eos_token_ids.begin(),
                                model.config.eos_token_ids.end());
  defaults.context_room = model.max_context_tokens -
                          static_cast<uint32_t>(result.prompt_token_ids.size());
  defaults.seed = random_seed;
  result.sampling = ResolveSamplingParams(request.sampling(), defaults);
  if (request.has_placement()) result.placement = request.placement();
  return result;
}

}  // namespace switchyard
