// Checks of attention; its timings are in attention_times.cc.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/backends.h"
#include "tests/bench/kernels/harness.h"
#include "tests/bench/kernels/rope_table.h"
#include "tests/bench/kernels/timings.h"

namespace switchyard::bench {
namespace {

struct SeqShape {
  int32_t context, num_new;
};

struct Shape {
  std::vector<SeqShape> seqs;  // decodes first
  int32_t heads = 8, kv_heads = 2, head_size = 128;
  int32_t block_size = 16;
  int32_t window = 0;
  bool ring = false;
  DType dtype = DType::kBF16;
  bool invariant = false;
};

// One case: the sequences' caches on the host, and the op's answer against the
// definition in double.
class AttentionCase {
 public:
  AttentionCase(Harness* harness, const Shape& shape) : h_(harness), s_(shape) {
    const int64_t element = DTypeBytes(s_.dtype);
    ring_blocks_ =
        s_.ring ? (s_.window + s_.block_size - 1) / s_.block_size : 0;
    block_bytes_ = (2 * s_.kv_heads * s_.block_size * s_.head_size * element +
                    kCacheUnitBytes - 1) /
                   kCacheUnitBytes * kCacheUnitBytes;
    offsets_ = begins_ = {0};
    for (const SeqShape& seq : s_.seqs) {
      const int32_t total = seq.context + seq.num_new;
      longest_ = std::max(longest_, total);
      const int32_t blocks = (total + s_.block_size - 1) / s_.block_size;
      begins_.push_back(begins_.back() +
                        (s_.ring ? std::min(blocks, ring_blocks_) : blocks));
      offsets_.push_back(offsets_.back() + seq.num_new);
      contexts_.push_back(seq.context);
      for (int32_t i = 0; i < seq.num_new; ++i)
        positions_.push_back(seq.context + i);
    }
    table_ = RopeTable(longest_, s_.head_size);
    FillCache();
  }

  void Run(const std::string& name) {
    const int64_t tokens = offsets_.back();
    const int64_t q_cols = s_.heads * s_.head_size,
                  kv_cols = s_.kv_heads * s_.head_size;
    const Tensor qkv = h_->Random(tokens, q_cols + 2 * kv_cols, s_.dtype);
    Tensor out = h_->Poisoned(tokens, q_cols, s_.dtype);
    const DeviceBuffer arena = h_->Upload(arena_), ids = h_->Upload(ids_),
                       begins = h_->Upload(begins_),
                       offsets = h_->Upload(offsets_),
                       contexts = h_->Upload(contexts_),
                       positions = h_->Upload(positions_),
                       table = h_->Upload(table_);
    PagedAttentionArgs args;
    args.batch.num_seqs = static_cast<int32_t>(s_.seqs.size());
    while (args.batch.num_decodes < args.batch.num_seqs &&
           s_.seqs[args.batch.num_decodes].num_new == 1)
      ++args.batch.num_decodes;
    args.batch.num_tokens = static_cast<int32_t>(tokens);
    args.batch.token_offsets = reinterpret_cast<int32_t*>(offsets.get());
    args.batch.context_lens = reinterpret_cast<int32_t*>(contexts.get());
    args.batch.positions = reinterpret_cast<int32_t*>(positions.get());
    args.batch.max_total_tokens = longest_;
    args.blocks = {arena.get(),
                   reinterpret_cast<uint32_t*>(ids.get()),
                   reinterpret_cast<int32_t*>(begins.get()),
                   begins_.data(),
                   s_.block_size,
                   ring_blocks_};
    args.kv_dtype = s_.dtype;
    args.num_heads = s_.heads;
    args.num_kv_heads = s_.kv_heads;
    args.head_size = s_.head_size;
    args.window = s_.window;
    args.scale = 1 / std::sqrt(static_cast<float>(s_.head_size));
    args.q = qkv.view.Columns(0, q_cols);
    args.k = qkv.view.Columns(q_cols, kv_cols);
    args.v = qkv.view.Columns(q_cols + kv_cols, kv_cols);
    args.rope_table = reinterpret_cast<float*>(table.get());
    args.rope_positions = table_.size() / s_.head_size;
    args.out = out.view;
    Ok(internal::PagedAttentionCuda(
        s_.invariant ? h_->invariant() : h_->context(), args));
    const std::vector<float> result = h_->Download(out.view);
    h_->Check(name, result, Attend(qkv), s_.dtype == DType::kF32 ? 1e-5 : 6e-3);
    CheckCache(name, h_->Download<uint8_t>(arena.get(), arena_.size()));
  }

 private:
  using Vectors = std::vector<double>;  // [positions, kv_heads, head_size]

  int64_t Place(int32_t seq, int32_t position, int32_t head, int which) const {
    int32_t entry = position / s_.block_size;
    if (s_.ring) entry %= ring_blocks_;
    const int64_t row = (int64_t{which} * s_.kv_heads + head) * s_.block_size +
                        position % s_.block_size;
    return ids_[begins_[seq] + entry] * kCacheUnitBytes +
           row * s_.head_size * DTypeBytes(s_.dtype);
  }
  // Positions that are in the cache when there are `length`.
  int32_t FirstCached(int32_t length) const {
    return s_.ring ? std::max(0, length - ring_blocks_ * s_.block_size) : 0;
  }

  void FillCache() {
    const int64_t num_blocks = begins_.back() + 3;
    std::vector<uint32_t> order(num_blocks);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), h_->random());
    ids_.resize(begins_.back());
    for (size_t i = 0; i < ids_.size(); ++i)
      ids_[i] =
          static_cast<uint32_t>(order[i] * (block_bytes_ / kCacheUnitBytes));
    arena_.assign(num_blocks * block_bytes_, 0xff);
    std::normal_distribution<float> normal;
    for (size_t seq = 0; seq < s_.seqs.size(); ++seq) {
      const int32_t context = s_.seqs[seq].context;
      const int64_t row = s_.kv_heads * s_.head_size;
      keys_.emplace_back(context * row);
      values_.emplace_back(context * row);
      for (int32_t p = 0; p < context; ++p) {
        for (int64_t c = 0; c < row; ++c) {
          for (int which = 0; which < 2; ++which) {
            float x = normal(h_->random());
            uint16_t bits = FloatToBF16(x);
            if (s_.dtype == DType::kBF16) x = BF16ToFloat(bits);
            (which == 0 ? keys_ : values_)[seq][p * row + c] = x;
            if (p < FirstCached(context)) continue;
            const int64_t at = Place(seq, p, c / s_.head_size, which) +
                               c % s_.head_size * DTypeBytes(s_.dtype);
            if (s_.dtype == DType::kBF16)
              std::memcpy(&arena_[at], &bits, 2);
            else
              std::memcpy(&arena_[at], &x, 4);
          }
        }
      }
    }
  }

  double Rotated(const float* head, int32_t i, int32_t position) const {
    const int32_t half = s_.head_size / 2;
    const double cosine = table_[position * s_.head_size + i % half];
    const double sine = table_[position * s_.head_size + half + i % half];
    return i < half ? head[i] * cosine - head[i + half] * sine
                    : head[i] * cosine + head[i - half] * sine;
  }

  // The outputs; also extends keys_ and values_ by the new rows.
  Vectors Attend(const Tensor& qkv) {
    const int32_t d = s_.head_size, group = s_.heads / s_.kv_heads;
    const double scale = 1 / std::sqrt(static_cast<double>(d));
    Vectors out;
    for (size_t seq = 0; seq < s_.seqs.size(); ++seq) {
      Vectors& keys = keys_[seq];
      Vectors& values = values_[seq];
      for (int32_t i = 0; i < s_.seqs[seq].num_new; ++i) {
        const float* row = &qkv.host[(offsets_[seq] + i) * qkv.view.cols];
        const int32_t position = s_.seqs[seq].context + i;
        for (int32_t c = 0; c < s_.kv_heads * d; ++c) {
          keys.push_back(
              Rotated(row + (s_.heads + c / d) * d, c % d, position));
          values.push_back(row[(s_.heads + s_.kv_heads) * d + c]);
        }
        const int32_t begin =
            s_.window > 0 ? std::max(0, position + 1 - s_.window) : 0;
        for (int32_t head = 0; head < s_.heads; ++head) {
          Vectors q(d), x(d, 0.0);
          for (int32_t c = 0; c < d; ++c)
            q[c] = Rotated(row + head * d, c, position) * scale;
          const int64_t kv = head / group * d, stride = s_.kv_heads * d;
          std::vector<double> scores;
          for (int32_t p = begin; p <= position; ++p)
            scores.push_back(std::inner_product(
                q.begin(), q.end(), keys.begin() + p * stride + kv, 0.0));
          const double top = *std::max_element(scores.begin(), scores.end());
          double sum = 0;
          for (int32_t p = begin; p <= position; ++p) {
            const double weight = std::exp(scores[p - begin] - top);
            sum += weight;
            for (int32_t c = 0; c < d; ++c)
              x[c] += weight * values[p * stride + kv + c];
          }
          for (const double value : x) out.push_back(value / sum);
        }
      }
    }
    return out;
  }

  // The new rows are where they belong, and nothing else has changed.
  void CheckCache(const std::string& name, const std::vector<uint8_t>& arena) {
    std::vector<float> stored;
    Vectors wanted;
    const int64_t d = s_.head_size, element = DTypeBytes(s_.dtype);
    for (size_t seq = 0; seq < s_.seqs.size(); ++seq) {
      const int32_t end = s_.seqs[seq].context + s_.seqs[seq].num_new;
      for (int32_t p = std::max(s_.seqs[seq].context, FirstCached(end));
           p < end; ++p) {
        for (int32_t c = 0; c < 2 * s_.kv_heads * d; ++c) {
          const int which = c / (s_.kv_heads * d);
          const int32_t head = c / d % s_.kv_heads;
          const int64_t at = Place(seq, p, head, which) + c % d * element;
          std::memcpy(&arena_[at], &arena[at], element);
          if (s_.dtype == DType::kBF16) {
            uint16_t bits;
            std::memcpy(&bits, &arena[at], 2);
            stored.push_back(BF16ToFloat(bits));
          } else {
            float x;
            std::memcpy(&x, &arena[at], 4);
            stored.push_back(x);
          }
          wanted.push_back((
              which == 0
                  ? keys_
                  : values_)[seq][p * s_.kv_heads * d + c % (s_.kv_heads * d)]);
        }
      }
    }
    h_->Check(name + ", appended", stored, wanted,
              s_.dtype == DType::kF32 ? 1e-6 : 4e-3);
    h_->Expect(name + ", the rest of the cache untouched", arena_ == arena);
  }

  Harness* const h_;
  const Shape s_;
  int32_t ring_blocks_ = 0, longest_ = 0;
  int64_t block_bytes_ = 0;
  std::vector<int32_t> begins_, offsets_, contexts_, positions_;
  std::vector<uint32_t> ids_;
  std::vector<uint8_t> arena_;
  std::vector<float> table_;
  std::vector<Vectors> keys_, values_;
};

// A prompt in one piece, alone, against the same in chunks beside another
// sequence: the same bits with a batch-invariant context.
void CheckInvariance(Harness* h, int32_t head_size, int32_t window, bool ring) {
  constexpr int32_t kHeads = 8, kKvHeads = 2, kLength = 600, kBlock = 16;
  const std::vector<int32_t> chunks = {137, 1, 200, 64, 198};
  const int64_t q_cols = kHeads * head_size, kv_cols = kKvHeads * head_size;
  const int64_t cols = q_cols + 2 * kv_cols;
  const Tensor prompt = h->Random(kLength, cols, DType::kBF16);
  const Tensor other = h->Random(kLength, cols, DType::kBF16);
  const DeviceBuffer table = h->Upload(RopeTable(kLength, head_size));
  const int32_t ring_blocks = ring ? (window + kBlock - 1) / kBlock : 0;
  const int32_t stride = ring ? ring_blocks : (kLength + kBlock - 1) / kBlock;
  const int64_t block_bytes = 2 * kv_cols * kBlock * 2;
  std::vector<uint32_t> ids(2 * stride);
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<uint32_t>(i * block_bytes / kCacheUnitBytes);
  std::shuffle(ids.begin(), ids.end(), h->random());
  const DeviceBuffer ids_on_device = h->Upload(ids);
  // The prompt's table is the second one.
  const std::vector<int32_t> begins = {0, stride, 2 * stride};
  const DeviceBuffer begins_on_device = h->Upload(begins);
  // Rows of the prompt [begin, end) after `begin` others, behind `before` rows
  // of another prompt.
  const auto run = [&](std::byte* arena, int32_t begin, int32_t end,
                       int32_t before) {
    std::vector<float> rows(other.host.begin(),
                            other.host.begin() + before * cols);
    rows.insert(rows.end(), prompt.host.begin() + begin * cols,
                prompt.host.begin() + end * cols);
    const int32_t num_tokens = before + end - begin;
    const Tensor qkv =
        h->FromHost(std::move(rows), num_tokens, cols, DType::kBF16);
    const Tensor out = h->Poisoned(num_tokens, q_cols, DType::kBF16);
    std::vector<int32_t> offsets = {0}, contexts, positions;
    if (before > 0) {
      offsets.push_back(before);
      contexts.push_back(0);
    }
    for (int32_t i = 0; i < before; ++i) positions.push_back(i);
    offsets.push_back(num_tokens);
    contexts.push_back(begin);
    for (int32_t i = begin; i < end; ++i) positions.push_back(i);
    const DeviceBuffer offsets_on_device = h->Upload(offsets),
                       contexts_on_device = h->Upload(contexts),
                       positions_on_device = h->Upload(positions);
    PagedAttentionArgs args;
    args.batch.num_seqs = static_cast<int32_t>(contexts.size());
    args.batch.num_decodes = before == 0 && num_tokens == 1 ? 1 : 0;
    args.batch.num_tokens = num_tokens;
    args.batch.token_offsets =
        reinterpret_cast<int32_t*>(offsets_on_device.get());
    args.batch.context_lens =
        reinterpret_cast<int32_t*>(contexts_on_device.get());
    args.batch.positions =
        reinterpret_cast<int32_t*>(positions_on_device.get());
    args.batch.max_total_tokens = kLength;
    const int32_t first = before > 0 ? 0 : 1;
    args.blocks = {arena,
                   reinterpret_cast<uint32_t*>(ids_on_device.get()),
                   reinterpret_cast<int32_t*>(begins_on_device.get()) + first,
                   begins.data() + first,
                   kBlock,
                   ring_blocks};
    args.kv_dtype = DType::kBF16;
    args.num_heads = kHeads;
    args.num_kv_heads = kKvHeads;
    args.head_size = head_size;
    args.window = window;
    args.scale = 1 / std::sqrt(static_cast<float>(head_size));
    args.q = qkv.view.Columns(0, q_cols);
    args.k = qkv.view.Columns(q_cols, kv_cols);
    args.v = qkv.view.Columns(q_cols + kv_cols, kv_cols);
    args.rope_table = reinterpret_cast<float*>(table.get());
    args.rope_positions = kLength;
    args.out = out.view;
    Ok(internal::PagedAttentionCuda(h->invariant(), args));
    const std::vector<float> result = h->Download(out.view);
    return std::vector<float>(result.begin() + before * q_cols, result.end());
  };
  const std::vector<uint8_t> poison(ids.size() * block_bytes, 0xff);
  const DeviceBuffer whole_arena = h->Upload(poison),
                     chunk_arena = h->Upload(poison);
  const std::vector<float> whole = run(whole_arena.get(), 0, kLength, 0);
  std::vector<float> parts;
  int32_t begin = 0;
  for (size_t i = 0; i < chunks.size(); ++i) {
    const std::vector<float> part =
        run(chunk_arena.get(), begin, begin + chunks[i],
            i % 2 == 0 ? 33 * (static_cast<int32_t>(i) + 1) : 0);
    parts.insert(parts.end(), part.begin(), part.end());
    begin += chunks[i];
  }
  h->Expect(absl::StrCat("attention, same bits in chunks and in company, head ",
                         head_size, " window ", window, ring ? " ring" : ""),
            parts == whole);
}

void CheckAll(Harness* h) {
  const std::vector<SeqShape> decodes = {{0, 1},  {1, 1},   {15, 1},  {16, 1},
                                         {63, 1}, {64, 1},  {127, 1}, {700, 1},
                                         {65, 1}, {2100, 1}};
  const std::vector<SeqShape> mixed = {{40, 1},    {300, 1}, {0, 3},
                                       {0, 200},   {5, 64},  {77, 1},
                                       {130, 150}, {64, 300}};
  const auto check = [&](const char* name, Shape shape) {
    AttentionCase(h, shape).Run(absl::StrCat(
        "attention ", name, " head ", shape.head_size, " ", shape.heads, "/",
        shape.kv_heads, " window ", shape.window, shape.ring ? " ring" : "",
        " ", DTypeName(shape.dtype), shape.invariant ? " invariant" : ""));
  };
  for (const int32_t head_size : {16, 32, 64, 128, 256, 80}) {
    for (const auto& [heads, kv_heads] :
         {std::pair(8, 2), std::pair(3, 3), std::pair(24, 2)}) {
      Shape shape;
      shape.seqs = decodes;
      shape.heads = heads;
      shape.kv_heads = kv_heads;
      shape.head_size = head_size;
      check("decode", shape);
      shape.seqs = mixed;
      shape.block_size = 32;
      check("mixed", shape);
    }
  }
  Shape shape;
  for (const int32_t window : {5, 64, 100}) {
    for (const bool ring : {false, true}) {
      shape.window = window;
      shape.ring = ring;
      shape.seqs = decodes;
      check("decode", shape);
      shape.seqs = mixed;
      check("mixed", shape);
      shape.invariant = true;
      check("mixed", shape);
      shape.invariant = false;
    }
  }
  shape = Shape();
  shape.dtype = DType::kF32;
  shape.head_size = 48;
  shape.seqs = mixed;
  check("mixed", shape);
  shape.window = 20;
  shape.ring = true;
  check("mixed", shape);
  shape = Shape();
  shape.block_size = 4;
  shape.seqs = mixed;
  check("mixed, blocks of 4", shape);
  // Lengths and pasts around the tiles of the prefill kernels.
  const std::vector<SeqShape> odd = {
      {0, 2},   {0, 31},  {0, 33},   {0, 63},   {0, 64},   {0, 65},   {0, 127},
      {0, 128}, {0, 129}, {0, 300},  {1, 2},    {7, 9},    {15, 17},  {16, 16},
      {17, 61}, {95, 33}, {127, 2},  {128, 65}, {129, 63}, {255, 3},  {300, 57},
      {640, 7}, {513, 5}, {1000, 3}, {256, 96}, {31, 97},  {63, 130}, {5, 251}};
  shape = Shape();
  shape.seqs = odd;
  for (const int32_t head_size : {64, 128, 256}) {
    for (const auto& [heads, kv_heads] :
         {std::pair(4, 1), std::pair(2, 2), std::pair(7, 1)}) {
      for (const int32_t block_size : {8, 16, 256}) {
        shape.heads = heads;
        shape.kv_heads = kv_heads;
        shape.head_size = head_size;
        shape.block_size = block_size;
        check(absl::StrCat("odd, blocks of ", block_size, ",").c_str(), shape);
      }
    }
    shape.heads = 4;
    shape.kv_heads = 1;
    for (const int32_t window : {1, 63, 130, 257}) {
      for (const bool ring : {false, true}) {
        shape.block_size = 32;
        shape.window = window;
        shape.ring = ring;
        check("odd", shape);
      }
    }
    shape.window = 0;
    shape.ring = false;
  }
  shape = Shape();
  shape.heads = 4;
  shape.kv_heads = 2;
  shape.seqs = {{0, 1300}, {2100, 200}};
  check("long", shape);
  shape.window = 700;
  shape.ring = true;
  check("long", shape);
  // Several prompts: a last bit that differs now and then shows in one of five.
  for (int prompt = 0; prompt < 5; ++prompt) {
    for (const int32_t head_size : {64, 128, 256}) {
      CheckInvariance(h, head_size, 0, false);
      CheckInvariance(h, head_size, 100, true);
    }
  }
  // More sequences than units in a block's share, and long ones among them.
  shape = Shape();
  shape.heads = 32;
  shape.kv_heads = 8;
  for (int i = 0; i < 70; ++i) shape.seqs.push_back({i % 9 == 0 ? 900 : i, 1});
  check("decode many", shape);
  // Few sequences: merges of one part up to more than are loaded at once.
  shape = Shape();
  for (const int32_t context : {0, 1, 15, 16, 17, 128, 129, 1000, 2500, 9000}) {
    shape.seqs = {{context, 1}};
    check(absl::StrCat("decode alone after ", context, ",").c_str(), shape);
    shape.seqs = {{3, 1}, {context, 1}, {200, 1}};
    check(absl::StrCat("decode of 3 after ", context, ",").c_str(), shape);
  }
  // Units that do not divide evenly among a head's blocks.
  shape.heads = 32;
  shape.kv_heads = 8;
  for (const int32_t context : {100, 192, 2049, 2063, 2090, 2112}) {
    shape.seqs = {{context, 1}};
    check(absl::StrCat("decode alone after ", context, ",").c_str(), shape);
    shape.seqs = {{context, 1}, {2 * context, 1}, {7, 1}, {context, 1}};
    check(absl::StrCat("decode of 4 after ", context, ",").c_str(), shape);
  }
  shape.heads = 8;
  shape.kv_heads = 2;
  for (const int32_t head_size : {64, 256}) {
    shape.head_size = head_size;
    shape.seqs = {{9000, 1}};
    check("decode alone after 9000,", shape);
  }
}

}  // namespace

void BenchAttention(Harness* h) {
  CheckAll(h);
  if (h->times_wanted()) TimeAttention(h);
}

}  // namespace switchyard::bench
