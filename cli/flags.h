// The command line of one sub-command: a table of flags that parses, explains
// itself (--help) and refuses what it does not know.
//
//   ServeOptions options;  // defaults live in the struct
//
//   FlagSet flags("switchyard serve", "Serves a model.", "--model DIR");
//
//   flags.String("model", &options.model, "DIR", "the checkpoint", kRequired);
//
//   flags.Int("port", &options.port, 0, 65535, "of the API; 0 picks one");
//
//   if (std::optional<int> code = flags.ParseOrExitCode(args)) return *code;
//
// Accepted: --name=value, --name value, --switch, --switch=false, `--` before
// operands that begin with a dash, and operands anywhere. The values a flag is
// bound to hold its default when it is declared; parsing overwrites only those
// that were given. Targets are borrowed and must outlive the parse.
#ifndef SWITCHYARD_CLI_FLAGS_H_
#define SWITCHYARD_CLI_FLAGS_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace switchyard {

// Exit codes of every command.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;  // it could not do its work
inline constexpr int kExitUsage = 2;    // it was called wrongly

enum FlagPresence { kOptional, kRequired };

class FlagSet {
 public:
  // `usage` is what follows the command in the first line of the help, which
  // wraps `summary` by itself.
  FlagSet(std::string command, std::string summary, std::string usage);

  // A heading in the help, for the flags that follow.
  void Section(std::string title);

  // `placeholder` names the value in the help: --model DIR.
  void String(std::string name, std::string* value, std::string placeholder,
              std::string help, FlagPresence presence = kOptional);
  void String(std::string name, std::optional<std::string>* value,
              std::string placeholder, std::string help);
  void Choice(std::string name, std::string* value,
              std::vector<std::string> choices, std::string help);
  // Comma separated; empty entries are refused.
  void List(std::string name, std::vector<std::string>* value,
            std::string placeholder, std::string help,
            FlagPresence presence = kOptional);
  // T is an integer type or an optional of one; min and max are inclusive.
  template <typename T>
  void Int(std::string name, T* value, int64_t min, int64_t max,
           std::string help, FlagPresence presence = kOptional) {
    AddInt(std::move(name), DefaultText(*value), min, max, std::move(help),
           presence, [value](int64_t v) { *value = v; });
  }
  // Any of 64 bits.
  void Unsigned(std::string name, std::optional<uint64_t>* value,
                std::string help);
  // T is float, double or an optional of one.
  template <typename T>
  void Real(std::string name, T* value, double min, double max,
            std::string help) {
    AddReal(std::move(name), DefaultText(*value), min, max, std::move(help),
            [value](double v) { *value = v; });
  }
  void Bool(std::string name, bool* value, std::string help);
  // A size such as 4096, 512MiB or 2GiB (KiB, MiB, GiB, TiB; also KB, MB, ...).
  void Bytes(std::string name, std::optional<int64_t>* value, std::string help);
  // A duration such as 500ms, 30s or 2m; min is inclusive.
  void Duration(std::string name, absl::Duration* value, std::string help,
                absl::Duration min = absl::ZeroDuration());

  // The next operand (in order of declaration).
  void Operand(std::string name, std::string* value, std::string help,
               FlagPresence presence = kRequired);
  // All further operands.
  void Operands(std::string name, std::vector<std::string>* values,
                std::string help);

  enum class Action { kRun, kShowHelp };
  // `args` excludes the command itself. InvalidArgument names the flag, what
  // was given and what would be right. Stops at --help.
  absl::StatusOr<Action> Parse(absl::Span<const std::string> args) const;

  // Parse for a command's main function: empty when the command is to run, else
  // its exit code, after printing the help (stdout) or one line (stderr).
  std::optional<int> ParseOrExitCode(absl::Span<const std::string> args) const;

  std::string Help() const;

 private:
  struct Flag {
    std::string name;
    std::string placeholder;  // empty for a switch
    std::string help;
    std::string default_text;
    FlagPresence presence = kOptional;
    std::function<absl::Status(absl::string_view)> set;
  };
  struct OperandSpec {
    std::string name;
    std::string help;
    FlagPresence presence = kRequired;
    bool repeated = false;
    std::function<void(absl::string_view)> set;
  };
  struct SectionStart {
    size_t first_flag;
    std::string title;
  };

  template <typename T>
  static std::string DefaultText(const T& value) {
    if constexpr (std::is_integral_v<T>) {
      return IntegerText(static_cast<int64_t>(value));
    } else {
      return RealText(static_cast<double>(value));
    }
  }
  template <typename T>
  static std::string DefaultText(const std::optional<T>& value) {
    return value.has_value() ? DefaultText(*value) : "";
  }
  static std::string IntegerText(int64_t value);
  static std::string RealText(double value);
  void AddInt(std::string name, std::string default_text, int64_t min,
              int64_t max, std::string help, FlagPresence presence,
              std::function<void(int64_t)> set);
  void AddReal(std::string name, std::string default_text, double min,
               double max, std::string help, std::function<void(double)> set);
  void Add(Flag flag);
  const Flag* Find(absl::string_view name) const;

  std::string command_;
  std::string summary_;
  std::string usage_;
  std::vector<Flag> flags_;
  std::vector<SectionStart> sections_;
  std::vector<OperandSpec> operands_;
};

// "2GiB" -> 2147483648. InvalidArgument tells the accepted forms.
absl::StatusOr<int64_t> ParseBytes(absl::string_view text);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_FLAGS_H_
