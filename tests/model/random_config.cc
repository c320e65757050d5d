#include "tests/model/random_config.h"

#include <string>
#include <vector>

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

class Generator {
 public:
  explicit Generator(std::mt19937& random) : random_(random) {}

  Json Model() {
    hidden_size_ = Pick<int>({32, 48, 64});
    Json config;
    config["model_type"] = Pick<std::string>({"apriel2_text", "apriel2"});
    config["hidden_size"] = hidden_size_;
    config["vocab_size"] = Pick<int>({16, 257, 320});
    config["tie_word_embeddings"] = Coin();
    config["embeddings"] = {{"max_position_embeddings", Pick<int>({64, 4096})}};
    config["head"] = {
        {"normalization",
         {{"type", "rms_norm"}, {"epsilon", Pick<double>({1e-5, 1e-6})}}}};
    if (Coin()) {
      config["eos_token_id"] = Pick<Json>({2, Json::array({3, 2}), nullptr});
    }
    Json decoder;
    decoder["num_blocks"] = Pick<int>({1, 2, 5});
    if (Coin()) {
      decoder["type"] = "fixed";
      decoder["block"] = Block();
    } else {
      decoder["type"] = "pattern";
      decoder["blocks"] = {{"a", Block()}, {"b", Block()}};
      decoder["pattern"] =
          Pick<Json>({Json::array({"a", "b"}), Json::array({"b"}),
                      Json::array({"a", "a", "b"})});
    }
    config["decoder"] = decoder;
    return config;
  }

 private:
  template <typename T>
  T Pick(std::vector<T> values) {
    return values[random_() % values.size()];
  }
  bool Coin() { return random_() % 2 == 0; }

  Json Block() {
    Json block;
    block["mixer"] = Coin() ? Stochastic() : Mixer();
    Json mlp;
    mlp["type"] = "mlp";
    mlp["intermediate_size"] = Pick<int>({64, 96});
    mlp["gated"] = Coin();
    mlp["activation"] = Pick<std::string>(
        {"silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2"});
    if (!mlp["gated"].get<bool>()) {
      mlp["add_linear_biases"] = Coin();
      if (Coin()) mlp["layer_2"] = {{"bias", {{"enabled", Coin()}}}};
    }
    block["mlp"] = mlp;
    block["normalization"] = {{"type", "rms_norm"}};
    return block;
  }

  Json Stochastic() {
    Json mixers;
    const int num = Pick<int>({1, 2, 5});
    for (int i = 0; i < num; ++i) mixers["m" + std::to_string(i)] = Mixer();
    Json mixer;
    mixer["type"] = "stochastic";
    mixer["mixers"] = mixers;
    if (Coin()) mixer["main_mixer_name"] = "m" + std::to_string(num - 1);
    return mixer;
  }

  Json Mixer() {
    switch (random_() % 4) {
      case 0:
        return Attention();
      case 1:
        return Gdn();
      case 2:
        return Kda();
      default:
        return Mamba();
    }
  }

  Json Attention() {
    Json mixer = {{"type", "attention"},
                  {"heads", Pick<int>({4, 8})},
                  {"head_size", Pick<int>({8, 16})},
                  {"rotary", {{"type", "mistral_1d"}, {"theta", 1e4}}},
                  {"add_linear_biases", Coin()}};
    if (Coin()) mixer["head_groups"] = Pick<int>({1, 2, 4});
    if (Coin()) mixer["window_size"] = Pick<int>({1, 7, 16, 100});
    if (Coin()) mixer["key_layer"] = {{"bias", {{"enabled", Coin()}}}};
    if (Coin()) mixer["dense_layer"] = {{"bias", {{"enabled", nullptr}}}};
    return mixer;
  }

  Json Gdn() {
    return {{"type", "gdn"},
            {"value_heads", 4 * Pick<int>({1, 2})},
            {"key_heads", Pick<int>({1, 2, 4})},
            {"key_head_dim", Pick<int>({8, 16})},
            {"value_head_dim", Pick<int>({8, 16})},
            {"convolution_layer", {{"kernel_size", Pick<int>({2, 4})}}}};
  }

  Json Kda() {
    Json mixer = {{"type", "kda"},
                  {"heads", Pick<int>({4, 8})},
                  {"head_dim", Pick<int>({8, 16})}};
    if (Coin()) mixer["normalization"] = {{"activation", "sigmoid"}};
    return mixer;
  }

  Json Mamba() {
    Json mixer = {{"type", "mamba"},
                  {"state_size", 8},
                  {"d_xb", Pick<int>({32, 64})},
                  {"d_inner", 64 * Pick<int>({1, 3})},
                  {"conv_bias", Coin()},
                  {"dt_proj_bias", Coin()},
                  {"add_linear_biases", Coin()},
                  {"repeat_kv_before_conv", Coin()}};
    if (Coin()) mixer["dt_rank"] = Pick<Json>({4, "auto"});
    return mixer;
  }

  std::mt19937& random_;
  int hidden_size_ = 0;
};

}  // namespace

nlohmann::ordered_json RandomConfigJson(std::mt19937& random) {
  return Generator(random).Model();
}

}  // namespace switchyard
