// Drives a libFuzzer target without libFuzzer, so that it runs wherever a C++
// compiler does.
//
//   TARGET [--runs=N] [--seed=S] [--first_run=K] [--max_len=BYTES]
//   [--dict=FILE] CORPUS...
//
// CORPUS names files or directories. Every file is run as it is, then N inputs
// derived from them by mutation. Input number K depends on the seed, K, the
// corpus and the dictionary alone: a failure prints the command line that
// repeats it, and leaves the input in `crash-SEED-K` in $TEST_TMPDIR (else the
// current directory). There is no coverage feedback; a target makes up for it
// with LLVMFuzzerCustomMutator, which is used as libFuzzer would.
#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

extern "C" {
int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
__attribute__((weak)) int LLVMFuzzerInitialize(int* argc, char*** argv);
__attribute__((weak)) size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size,
                                                     size_t max_size,
                                                     unsigned int seed);
size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);
__attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());
}

namespace {

using Bytes = std::vector<uint8_t>;

struct Options {
  uint64_t runs = 0;
  uint64_t seed = 1;
  uint64_t first_run = 0;
  uint64_t max_len = 65536;
  std::string dict;
  std::vector<std::string> corpus;
};

// What a signal handler needs in order to report the input that is running;
// LLVMFuzzerMutate has no other way to get at its dictionary and random numbers
// either.
struct Session {
  Options options;
  std::vector<Bytes> corpus;
  std::vector<Bytes> dictionary;
  std::mt19937_64 random;
  Bytes input;
  uint64_t run = 0;
  bool mutated = false;
  bool reported = false;
};

Session& session() {
  static Session* const instance = new Session;
  return *instance;
}

uint64_t Below(uint64_t bound) { return session().random() % bound; }

// One mutation of `bytes`, which may come out longer than max_size.
void MutateOnce(Bytes& bytes) {
  // Lengths, counts and indices are where parsers go wrong.
  static constexpr uint64_t kInteresting[] = {0,
                                              1,
                                              0x7f,
                                              0x80,
                                              0xff,
                                              0x100,
                                              0x7fff,
                                              0x8000,
                                              0xffff,
                                              0x10000,
                                              0x7fffffff,
                                              0x80000000,
                                              0xffffffff,
                                              0x100000000,
                                              0x7fffffffffffffff,
                                              0xffffffffffffffff};
  Session& s = session();
  const size_t at = bytes.empty() ? 0 : Below(bytes.size());
  const auto insert = [&](const Bytes& what) {
    bytes.insert(bytes.begin() + Below(bytes.size() + 1), what.begin(),
                 what.end());
  };
  switch (Below(bytes.empty() ? 3 : 10)) {
    case 0:
      insert({static_cast<uint8_t>(Below(256))});
      break;
    case 1:
      if (!s.dictionary.empty())
        insert(s.dictionary[Below(s.dictionary.size())]);
      break;
    case 2: {  // a run of one byte
      insert(Bytes(1 + Below(64), static_cast<uint8_t>(Below(256))));
      break;
    }
    case 3:
      bytes[at] ^= 1u << Below(8);
      break;
    case 4:
      bytes[at] = static_cast<uint8_t>(Below(256));
      break;
    case 5: {  // delete
      const size_t n = 1 + Below(std::min<size_t>(bytes.size() - at, 32));
      bytes.erase(bytes.begin() + at, bytes.begin() + at + n);
      break;
    }
    case 6: {  // copy a part of it elsewhere
      const size_t n = 1 + Below(std::min<size_t>(bytes.size() - at, 64));
      insert(Bytes(bytes.begin() + at, bytes.begin() + at + n));
      break;
    }
    case 7: {  // splice: the head of this, the tail of another
      if (s.corpus.empty()) break;
      const Bytes& other = s.corpus[Below(s.corpus.size())];
      if (other.empty()) break;
      bytes.resize(at);
      bytes.insert(bytes.end(), other.begin() + Below(other.size()),
                   other.end());
      break;
    }
    case 8: {  // an interesting number, little endian
      const uint64_t number = kInteresting[Below(std::size(kInteresting))];
      const size_t n = std::min<size_t>(bytes.size() - at, 1u << Below(4));
      std::memcpy(bytes.data() + at, &number, n);
      break;
    }
    case 9:
      if (!s.dictionary.empty()) {
        const Bytes& word = s.dictionary[Below(s.dictionary.size())];
        const size_t n = std::min(bytes.size() - at, word.size());
        std::copy_n(word.begin(), n, bytes.begin() + at);
      }
      break;
  }
}

void MakeInput(uint64_t run) {
  Session& s = session();
  s.run = run;
  s.mutated = true;
  std::seed_seq seed{s.options.seed, s.options.seed >> 32, run, run >> 32};
  s.random.seed(seed);
  s.input = s.corpus[Below(s.corpus.size())];
  const uint64_t rounds = 1 + Below(4);
  for (uint64_t i = 0; i < rounds; ++i) {
    const size_t size = s.input.size();
    s.input.resize(s.options.max_len);
    s.input.resize(
        LLVMFuzzerCustomMutator != nullptr
            ? LLVMFuzzerCustomMutator(s.input.data(), size, s.options.max_len,
                                      static_cast<unsigned int>(s.random()))
            : LLVMFuzzerMutate(s.input.data(), size, s.options.max_len));
  }
}

void ReportFailure() {
  Session& s = session();
  if (s.reported) return;
  s.reported = true;
  if (!s.mutated) {
    std::fprintf(stderr, "failed on a file of the corpus as it is\n");
    return;
  }
  const char* dir = std::getenv("TEST_TMPDIR");
  const std::string path = std::string(dir != nullptr ? dir : ".") + "/crash-" +
                           std::to_string(s.options.seed) + "-" +
                           std::to_string(s.run);
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(s.input.data()),
             static_cast<std::streamsize>(s.input.size()));
  std::fprintf(stderr,
               "failed on input %llu, saved as %s; to repeat: --seed=%llu "
               "--first_run=%llu --runs=1\n",
               static_cast<unsigned long long>(s.run), path.c_str(),
               static_cast<unsigned long long>(s.options.seed),
               static_cast<unsigned long long>(s.run));
}

void OnSignal(int signal) {
  ReportFailure();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

bool ReadFile(const std::filesystem::path& path, Bytes* bytes) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return false;
  bytes->assign(std::istreambuf_iterator<char>(file), {});
  return true;
}

// A line is `"word"` or `name="word"` with the escapes \\, \" and \xHH, or
// empty, or a comment that begins with #.
bool ReadDictionary(const std::string& path, std::vector<Bytes>* words) {
  std::ifstream file(path);
  if (!file) return false;
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find('"');
    const size_t last = line.rfind('"');
    if (line.empty() || line[0] == '#' || first == last) continue;
    Bytes word;
    for (size_t i = first + 1; i < last; ++i) {
      if (line[i] != '\\') {
        word.push_back(static_cast<uint8_t>(line[i]));
      } else if (line[i + 1] == 'x' && i + 3 < last) {
        word.push_back(static_cast<uint8_t>(
            std::strtol(line.substr(i + 2, 2).c_str(), nullptr, 16)));
        i += 3;
      } else {
        word.push_back(static_cast<uint8_t>(line[++i]));
      }
    }
    words->push_back(std::move(word));
  }
  return true;
}

bool ParseArguments(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    absl::string_view argument = argv[i];
    if (!absl::StartsWith(argument, "--")) {
      options->corpus.emplace_back(argument);
      continue;
    }
    const bool known = (absl::ConsumePrefix(&argument, "--runs=") &&
                        absl::SimpleAtoi(argument, &options->runs)) ||
                       (absl::ConsumePrefix(&argument, "--seed=") &&
                        absl::SimpleAtoi(argument, &options->seed)) ||
                       (absl::ConsumePrefix(&argument, "--first_run=") &&
                        absl::SimpleAtoi(argument, &options->first_run)) ||
                       (absl::ConsumePrefix(&argument, "--max_len=") &&
                        absl::SimpleAtoi(argument, &options->max_len));
    if (!known && absl::ConsumePrefix(&argument, "--dict=")) {
      options->dict = std::string(argument);
    } else if (!known) {
      std::cerr << "not a flag of this program, or not a number: " << argv[i]
                << "\n";
      return false;
    }
  }
  return true;
}

bool LoadCorpus() {
  Session& s = session();
  for (const std::string& name : s.options.corpus) {
    std::vector<std::filesystem::path> paths;
    if (std::filesystem::is_directory(name)) {
      for (const auto& entry : std::filesystem::directory_iterator(name))
        if (!entry.is_directory()) paths.push_back(entry.path());
      std::sort(paths.begin(), paths.end());
    } else {
      paths.emplace_back(name);
    }
    for (const std::filesystem::path& path : paths) {
      s.corpus.emplace_back();
      if (!ReadFile(path, &s.corpus.back())) {
        std::cerr << "cannot read " << path << "\n";
        return false;
      }
    }
  }
  if (s.corpus.empty()) s.corpus.emplace_back();  // the empty input
  if (!s.options.dict.empty() &&
      !ReadDictionary(s.options.dict, &s.dictionary)) {
    std::cerr << "cannot read " << s.options.dict << "\n";
    return false;
  }
  for (const Bytes& file : s.corpus)
    s.options.max_len = std::max<uint64_t>(s.options.max_len, file.size());
  return true;
}

// A copy of its own size, so that a sanitizer sees a read past the end.
void RunInput() {
  const Bytes& input = session().input;
  const std::unique_ptr<uint8_t[]> copy(new uint8_t[input.size()]);
  std::copy(input.begin(), input.end(), copy.get());
  LLVMFuzzerTestOneInput(copy.get(), input.size());
}

}  // namespace

size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size) {
  Bytes bytes(data, data + size);
  for (uint64_t n = 1 + Below(3); n > 0; --n) MutateOnce(bytes);
  if (bytes.size() > max_size) bytes.resize(max_size);
  std::copy(bytes.begin(), bytes.end(), data);
  return bytes.size();
}

int main(int argc, char** argv) {
  if (LLVMFuzzerInitialize != nullptr) LLVMFuzzerInitialize(&argc, &argv);
  Session& s = session();
  if (!ParseArguments(argc, argv, &s.options) || !LoadCorpus()) return 2;
  for (int signal : {SIGABRT, SIGSEGV, SIGFPE, SIGBUS, SIGILL, SIGTERM}) {
    if (__sanitizer_set_death_callback == nullptr || signal == SIGABRT ||
        signal == SIGTERM)
      std::signal(signal, OnSignal);
  }
  if (__sanitizer_set_death_callback != nullptr)
    __sanitizer_set_death_callback(ReportFailure);

  for (const Bytes& file : s.corpus) {
    s.input = file;
    RunInput();
  }
  const uint64_t progress = std::max<uint64_t>(s.options.runs / 10, 1);
  for (uint64_t i = 0; i < s.options.runs; ++i) {
    MakeInput(s.options.first_run + i);
    RunInput();
    if ((i + 1) % progress == 0)
      std::cout << i + 1 << " of " << s.options.runs << " inputs" << std::endl;
  }
  std::cout << "clean: " << s.corpus.size() << " corpus files, "
            << s.options.runs << " mutated inputs, seed " << s.options.seed
            << std::endl;
  return 0;
}
