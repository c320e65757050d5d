// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
// 3"): a counter-based generator. The same function on every device.
#ifndef SWITCHYARD_KERNELS_PHILOX_H_
#define SWITCHYARD_KERNELS_PHILOX_H_

#include <cstdint>

#ifdef __CUDACC__
#define SY_HOST_DEVICE __host__ __device__
#else
#define SY_HOST_DEVICE
#endif

namespace switchyard::internal {

struct PhiloxBlock {
  uint32_t word[4];
};

SY_HOST_DEVICE inline PhiloxBlock Philox4x32(PhiloxBlock counter,
                                             uint64_t key) {
  uint32_t key0 = static_cast<uint32_t>(key);
  uint32_t key1 = static_cast<uint32_t>(key >> 32);
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2],
           c3 = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t next0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    const uint32_t next2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    c0 = next0;
    c2 = next2;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return PhiloxBlock{{c0, c1, c2, c3}};
}

// The random words of tokens 4 * group .. 4 * group + 3, of a row's draw.
SY_HOST_DEVICE inline PhiloxBlock SamplingWords(uint64_t seed, uint32_t draw,
                                                uint32_t group) {
  return Philox4x32(PhiloxBlock{{group, draw, 0, 0}}, seed);
}

}  // namespace switchyard::internal

#endif  // SWITCHYARD_KERNELS_PHILOX_H_
