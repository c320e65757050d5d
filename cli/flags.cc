#include "cli/flags.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

// The help's second column.
constexpr size_t kHelpColumn = 34;
constexpr size_t kHelpWidth = 100;

absl::Status Bad(absl::string_view expected) {
  return absl::InvalidArgumentError(expected);
}

// Appends `text`, whose lines begin at column `indent`, wrapped at word
// boundaries. REQUIRES: the line so far ends at that column.
void AppendWrapped(absl::string_view text, size_t indent, std::string* out) {
  size_t column = indent;
  for (absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    if (column + 1 + word.size() > kHelpWidth) {
      absl::StrAppend(out, "\n", std::string(indent, ' '));
      column = indent;
    } else if (column > indent) {
      out->push_back(' ');
      ++column;
    }
    absl::StrAppend(out, word);
    column += word.size();
  }
  out->push_back('\n');
}

void AppendEntry(absl::string_view left, absl::string_view right,
                 std::string* out) {
  std::string entry = absl::StrCat("  ", left);
  if (entry.size() + 2 > kHelpColumn) {
    absl::StrAppend(out, entry, "\n", std::string(kHelpColumn, ' '));
  } else {
    absl::StrAppend(out, entry, std::string(kHelpColumn - entry.size(), ' '));
  }
  AppendWrapped(right, kHelpColumn, out);
}

}  // namespace

absl::StatusOr<int64_t> ParseBytes(absl::string_view text) {
  struct Unit {
    absl::string_view suffix;
    int64_t bytes;
  };
  static constexpr Unit kUnits[] = {
      {"KiB", int64_t{1} << 10},
      {"MiB", int64_t{1} << 20},
      {"GiB", int64_t{1} << 30},
      {"TiB", int64_t{1} << 40},
      {"KB", 1000},
      {"MB", 1000 * 1000},
      {"GB", 1000 * 1000 * 1000},
      {"TB", int64_t{1000} * 1000 * 1000 * 1000},
      {"B", 1},
      {"", 1},
  };
  const size_t digits = text.find_first_not_of("0123456789.");
  const absl::string_view number = text.substr(0, digits);
  const absl::string_view suffix =
      digits == absl::string_view::npos ? "" : text.substr(digits);
  double value = 0;
  if (absl::SimpleAtod(number, &value)) {
    for (const Unit& unit : kUnits) {
      if (!absl::EqualsIgnoreCase(suffix, unit.suffix)) continue;
      const double bytes = value * static_cast<double>(unit.bytes);
      if (bytes > 0x1p62) break;
      return static_cast<int64_t>(std::llround(bytes));
    }
  }
  return Bad("expected a size such as 4096, 512MiB or 2GiB");
}

FlagSet::FlagSet(std::string command, std::string summary, std::string usage)
    : command_(std::move(command)),
      summary_(std::move(summary)),
      usage_(std::move(usage)) {}

void FlagSet::Section(std::string title) {
  sections_.push_back({flags_.size(), std::move(title)});
}

void FlagSet::Add(Flag flag) { flags_.push_back(std::move(flag)); }

void FlagSet::String(std::string name, std::string* value,
                     std::string placeholder, std::string help,
                     FlagPresence presence) {
  Add({std::move(name), std::move(placeholder), std::move(help), *value,
       presence, [value](absl::string_view text) {
         *value = std::string(text);
         return absl::OkStatus();
       }});
}

void FlagSet::String(std::string name, std::optional<std::string>* value,
                     std::string placeholder, std::string help) {
  Add({std::move(name), std::move(placeholder), std::move(help),
       value->value_or(""), kOptional, [value](absl::string_view text) {
         *value = std::string(text);
         return absl::OkStatus();
       }});
}

void FlagSet::Choice(std::string name, std::string* value,
                     std::vector<std::string> choices, std::string help) {
  std::string placeholder = absl::StrJoin(choices, "|");
  Add({std::move(name), std::move(placeholder), std::move(help), *value,
       kOptional, [value, choices](absl::string_view text) {
         for (const std::string& choice : choices) {
           if (choice != text) continue;
           *value = choice;
           return absl::OkStatus();
         }
         return Bad(
             absl::StrCat("expected one of ", absl::StrJoin(choices, ", ")));
       }});
}

void FlagSet::List(std::string name, std::vector<std::string>* value,
                   std::string placeholder, std::string help,
                   FlagPresence presence) {
  Add({std::move(name), std::move(placeholder), std::move(help),
       absl::StrJoin(*value, ","), presence, [value](absl::string_view text) {
         std::vector<std::string> entries;
         for (absl::string_view entry : absl::StrSplit(text, ',')) {
           entry = absl::StripAsciiWhitespace(entry);
           if (entry.empty()) {
             return Bad(
                 "expected a comma separated list without empty entries");
           }
           entries.emplace_back(entry);
         }
         *value = std::move(entries);
         return absl::OkStatus();
       }});
}

void FlagSet::Bool(std::string name, bool* value, std::string help) {
  Add({std::move(name), "", std::move(help), *value ? "true" : "", kOptional,
       [value](absl::string_view text) {
         if (text == "true" || text == "1") {
           *value = true;
         } else if (text == "false" || text == "0") {
           *value = false;
         } else {
           return Bad("expected true or false");
         }
         return absl::OkStatus();
       }});
}

void FlagSet::Bytes(std::string name, std::optional<int64_t>* value,
                    std::string help) {
  Add({std::move(name), "SIZE", std::move(help),
       value->has_value() ? absl::StrCat(**value) : "", kOptional,
       [value](absl::string_view text) {
         SY_ASSIGN_OR_RETURN(*value, ParseBytes(text));
         return absl::OkStatus();
       }});
}

void FlagSet::Duration(std::string name, absl::Duration* value,
                       std::string help, absl::Duration min) {
  Add({std::move(name), "TIME", std::move(help), absl::FormatDuration(*value),
       kOptional, [value, min](absl::string_view text) {
         absl::Duration parsed;
         if (!absl::ParseDuration(std::string(text), &parsed) ||
             parsed < absl::ZeroDuration()) {
           return Bad("expected a duration such as 500ms, 30s or 2m");
         }
         if (parsed < min) {
           return Bad(absl::StrCat("expected a duration of at least ",
                                   absl::FormatDuration(min)));
         }
         *value = parsed;
         return absl::OkStatus();
       }});
}

void FlagSet::Unsigned(std::string name, std::optional<uint64_t>* value,
                       std::string help) {
  Add({std::move(name), "N", std::move(help), "", kOptional,
       [value](absl::string_view text) {
         uint64_t parsed = 0;
         if (!absl::SimpleAtoi(text, &parsed)) {
           return Bad(absl::StrCat("expected a whole number from 0 to ",
                                   std::numeric_limits<uint64_t>::max()));
         }
         *value = parsed;
         return absl::OkStatus();
       }});
}

std::string FlagSet::IntegerText(int64_t value) { return absl::StrCat(value); }

std::string FlagSet::RealText(double value) { return absl::StrCat(value); }

void FlagSet::AddInt(std::string name, std::string default_text, int64_t min,
                     int64_t max, std::string help, FlagPresence presence,
                     std::function<void(int64_t)> set) {
  Add({std::move(name), "N", std::move(help), std::move(default_text), presence,
       [min, max, set = std::move(set)](absl::string_view text) {
         int64_t value = 0;
         if (!absl::SimpleAtoi(text, &value) || value < min || value > max) {
           return Bad(
               max == std::numeric_limits<int64_t>::max()
                   ? absl::StrCat("expected a whole number of at least ", min)
                   : absl::StrCat("expected a whole number from ", min, " to ",
                                  max));
         }
         set(value);
         return absl::OkStatus();
       }});
}

void FlagSet::AddReal(std::string name, std::string default_text, double min,
                      double max, std::string help,
                      std::function<void(double)> set) {
  Add({std::move(name), "X", std::move(help), std::move(default_text),
       kOptional, [min, max, set = std::move(set)](absl::string_view text) {
         double value = 0;
         if (!absl::SimpleAtod(text, &value) || !(value >= min) ||
             !(value <= max)) {
           return Bad(
               absl::StrCat("expected a number from ", min, " to ", max));
         }
         set(value);
         return absl::OkStatus();
       }});
}

void FlagSet::Operand(std::string name, std::string* value, std::string help,
                      FlagPresence presence) {
  operands_.push_back(
      {std::move(name), std::move(help), presence, false,
       [value](absl::string_view text) { *value = std::string(text); }});
}

void FlagSet::Operands(std::string name, std::vector<std::string>* values,
                       std::string help) {
  operands_.push_back(
      {std::move(name), std::move(help), kOptional, true,
       [values](absl::string_view text) { values->emplace_back(text); }});
}

const FlagSet::Flag* FlagSet::Find(absl::string_view name) const {
  for (const Flag& flag : flags_) {
    if (flag.name == name) return &flag;
  }
  return nullptr;
}

absl::StatusOr<FlagSet::Action> FlagSet::Parse(
    absl::Span<const std::string> args) const {
  std::vector<const Flag*> given;
  size_t num_operands = 0;
  bool operands_only = false;
  for (size_t i = 0; i < args.size(); ++i) {
    absl::string_view arg = args[i];
    if (operands_only || arg.size() < 2 || arg[0] != '-') {
      if (num_operands >= operands_.size()) {
        return Bad(absl::StrCat("unexpected argument '", arg, "'"));
      }
      operands_[num_operands].set(arg);
      if (!operands_[num_operands].repeated) ++num_operands;
      continue;
    }
    if (arg == "--") {
      operands_only = true;
      continue;
    }
    if (arg == "--help" || arg == "-h") return Action::kShowHelp;
    const size_t equals = arg.find('=');
    const absl::string_view name = arg.substr(0, equals);
    const Flag* flag = arg[1] == '-' ? Find(name.substr(2)) : nullptr;
    if (flag == nullptr) return Bad(absl::StrCat("unknown flag ", name));
    absl::string_view value;
    if (equals != absl::string_view::npos) {
      value = arg.substr(equals + 1);
    } else if (flag->placeholder.empty()) {
      value = "true";
    } else if (i + 1 < args.size()) {
      value = args[++i];
    } else {
      return Bad(
          absl::StrCat(name, " needs a value: ", name, " ", flag->placeholder));
    }
    if (absl::Status status = flag->set(value); !status.ok()) {
      return Bad(absl::StrCat(name, "=", value, ": ", status.message()));
    }
    given.push_back(flag);
  }
  for (const Flag& flag : flags_) {
    if (flag.presence != kRequired) continue;
    bool found = false;
    for (const Flag* one : given) found |= one == &flag;
    if (!found) {
      return Bad(
          absl::StrCat("--", flag.name, " ", flag.placeholder, " is missing"));
    }
  }
  for (size_t i = num_operands; i < operands_.size(); ++i) {
    if (operands_[i].presence == kRequired) {
      return Bad(
          absl::StrCat("the argument ", operands_[i].name, " is missing"));
    }
  }
  return Action::kRun;
}

std::optional<int> FlagSet::ParseOrExitCode(
    absl::Span<const std::string> args) const {
  const absl::StatusOr<Action> action = Parse(args);
  if (!action.ok()) {
    std::fprintf(stderr, "%s: %s (see %s --help)\n", command_.c_str(),
                 std::string(action.status().message()).c_str(),
                 command_.c_str());
    return kExitUsage;
  }
  if (*action == Action::kShowHelp) {
    std::fputs(Help().c_str(), stdout);
    return kExitOk;
  }
  return std::nullopt;
}

std::string FlagSet::Help() const {
  std::string out = absl::StrCat("Usage: ", command_, " ", usage_, "\n\n");
  AppendWrapped(summary_, 0, &out);
  if (!operands_.empty()) absl::StrAppend(&out, "\nArguments:\n");
  for (const OperandSpec& operand : operands_) {
    AppendEntry(operand.name, operand.help, &out);
  }
  size_t next_section = 0;
  for (size_t i = 0; i < flags_.size(); ++i) {
    if (next_section < sections_.size() &&
        sections_[next_section].first_flag == i) {
      absl::StrAppend(&out, "\n", sections_[next_section++].title, ":\n");
    } else if (i == 0) {
      absl::StrAppend(&out, "\nFlags:\n");
    }
    const Flag& flag = flags_[i];
    std::string help = flag.help;
    if (flag.presence == kRequired) {
      absl::StrAppend(&help, " (required)");
    } else if (!flag.default_text.empty()) {
      absl::StrAppend(&help, " (default: ", flag.default_text, ")");
    }
    AppendEntry(
        absl::StrCat("--", flag.name, flag.placeholder.empty() ? "" : " ",
                     flag.placeholder),
        help, &out);
  }
  // After a section it would seem to be one of its flags.
  if (!sections_.empty()) out.push_back('\n');
  AppendEntry("--help", "show this", &out);
  return out;
}

}  // namespace switchyard
