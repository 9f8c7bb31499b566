// Warp operations, computed by the last lane that arrives for all of them.
#include "state.h"

#include <string.h>

namespace kqm_emulation {

namespace {

struct vote {
  bool predicate;
  uint32_t result;
};

void finish_vote(warp_state &warp, uint32_t mask) {
  uint32_t result = 0;
  for (uint32_t left = mask; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    result |= uint32_t(static_cast<const vote *>(warp.lanes[lane].payload)->predicate) << lane;
  }
  for (uint32_t left = mask; left; left &= left - 1)
    static_cast<vote *>(warp.lanes[__builtin_ctz(left)].payload)->result = result;
}

struct shuffle_operands {
  uint64_t value;
  uint64_t result;
  shuffle_mode mode;
  int argument;
  int width;
};

int source_lane(const shuffle_operands &operands, int lane) {
  const int segment = lane & ~(operands.width - 1);
  switch (operands.mode) {
  case shuffle_mode::lane: return segment | (operands.argument & (operands.width - 1));
  case shuffle_mode::up: return lane - operands.argument < segment ? lane : lane - operands.argument;
  case shuffle_mode::down: return lane + operands.argument >= segment + operands.width ? lane : lane + operands.argument;
  default: {
    const int source = lane ^ operands.argument;
    return source >= segment + operands.width ? lane : source;
  }
  }
}

void finish_shuffle(warp_state &warp, uint32_t mask) {
  for (uint32_t left = mask; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    thread_state &thread = warp.lanes[lane];
    shuffle_operands &operands = *static_cast<shuffle_operands *>(thread.payload);
    const int source = source_lane(operands, lane);
    if (__builtin_expect(uint32_t(source) > 31 || !(mask >> source & 1), 0))
      fail_thread(&thread, BAD_SHUFFLE, thread.file, thread.line, "shuffle of mask %08x reads lane %d, which it does not name",
                  mask, source);
    operands.result = static_cast<const shuffle_operands *>(warp.lanes[source].payload)->value;
  }
}

typedef float four_floats __attribute__((vector_size(16)));

struct mma_operands {
  int32_t *d;
  const uint32_t *a;
  const uint32_t *b;
};

// Lane 4 g + c holds, of each 16 wide half of k, elements 4 c to 4 c + 3 of rows g and g + 8 of A and of column g of B,
// and elements 2 c and 2 c + 1 of rows g and g + 8 of D.
//
// Computed in f32, for its vector instructions: every sum is an integer of at most 2^20.
template <int K, class A> void finish_mma(warp_state &warp, uint32_t) {
  A a[16 * K];
  int8_t b[8 * K];
  int32_t *d[32];
  for (int lane = 0; lane < 32; lane++) {
    const mma_operands &operands = *static_cast<const mma_operands *>(warp.lanes[lane].payload);
    const int g = lane / 4;
    const int c = lane % 4;
    d[lane] = operands.d;
    for (int half = 0; half < K / 16; half++) {
      memcpy(&a[g * K + 16 * half + 4 * c], &operands.a[2 * half], 4);
      memcpy(&a[(g + 8) * K + 16 * half + 4 * c], &operands.a[2 * half + 1], 4);
      memcpy(&b[g * K + 16 * half + 4 * c], &operands.b[half], 4);
    }
  }
  float rows[16 * K], columns[8 * K];
  for (int i = 0; i < 16 * K; i++) rows[i] = a[i];
  for (int i = 0; i < 8 * K; i++) columns[i] = b[i];
  four_floats right[K][2];
  for (int k = 0; k < K; k++)
    for (int half = 0; half < 2; half++) {
      const float *const first = columns + 4 * half * K + k;
      right[k][half] = four_floats{first[0], first[K], first[2 * K], first[3 * K]};
    }
  // Four rows at a time hide the latency of the additions.
  for (int row = 0; row < 16; row += 4) {
    four_floats sums[4][2] = {};
    for (int k = 0; k < K; k++)
      for (int i = 0; i < 4; i++) {
        const float left = rows[(row + i) * K + k];
        sums[i][0] += left * right[k][0];
        sums[i][1] += left * right[k][1];
      }
    for (int i = 0; i < 4; i++)
      for (int column = 0; column < 8; column++) {
        int32_t &place = d[4 * ((row + i) % 8) + column / 2][(row + i) / 8 * 2 + column % 2];
        place = int32_t(uint32_t(place) + uint32_t(int32_t(sums[i][column / 4][column % 4])));
      }
  }
}

struct product_operands {
  int32_t *d;
  const uint32_t *a;
  const int8_t *b; // [columns][32]: of lane 0
  int columns;
  bool is_signed;
};

// A and D as in finish_mma with K = 32, D for each eight columns.
void finish_product(warp_state &warp, uint32_t) {
  const product_operands &first = *static_cast<const product_operands *>(warp.lanes[0].payload);
  int a[16][32];
  for (int lane = 0; lane < 32; lane++) {
    const product_operands &operands = *static_cast<const product_operands *>(warp.lanes[lane].payload);
    for (int i = 0; i < 16; i++) {
      const uint8_t byte = uint8_t(operands.a[i / 4] >> (8 * (i % 4)));
      a[lane / 4 + 8 * (i / 4 % 2)][16 * (i / 8) + 4 * (lane % 4) + i % 4] = first.is_signed ? int8_t(byte) : byte;
    }
  }
  for (int column = 0; column < first.columns; column++)
    for (int row = 0; row < 16; row++) {
      int sum = 0;
      for (int k = 0; k < 32; k++) sum += a[row][k] * first.b[32 * column + k];
      const int lane = 4 * (row % 8) + column % 8 / 2;
      int32_t &place = static_cast<const product_operands *>(warp.lanes[lane].payload)
                           ->d[column / 8 * 4 + row / 8 * 2 + column % 2];
      place = int32_t(uint32_t(place) + uint32_t(sum));
    }
}

struct mma_f64_operands {
  double *d;
  double a, b;
};

void finish_mma_f64(warp_state &warp, uint32_t) {
  const auto of = [&](int lane) -> const mma_f64_operands & {
    return *static_cast<const mma_f64_operands *>(warp.lanes[lane].payload);
  };
  for (int row = 0; row < 8; row++)
    for (int column = 0; column < 8; column++) {
      double &place = of(4 * row + column / 2).d[column % 2];
      for (int k = 0; k < 4; k++) place += of(4 * row + k).a * of(4 * column + k).b;
    }
}

} // namespace

void warp_mma_f64(double (&d)[2], double a, double b, const char *file, int line) {
  mma_f64_operands operands = {d, a, b};
  collective(0xffffffffu, &operands, finish_mma_f64, false, "mma", file, line);
}

void warp_product(int32_t *d, const uint32_t *a, const shared_piece &array, int64_t index, int columns, bool is_signed,
                  bool adds, const char *file, int line) {
  // Core matrices of eight columns x 16 bytes: [columns / 8][half of k][column % 8][16]. Each lane reads its share, for the checks; the
  // first one all of it.
  const thread_state &self = *running();
  int8_t b[64 * 32];
  const int words = columns * 8;
  for (int i = self.lane == 0 ? 0 : int(self.lane); i < words; i += self.lane == 0 ? 1 : 32) {
    const int octet = i / 64, half = i / 32 % 2, column = octet * 8 + i / 4 % 8, k = 16 * half + 4 * (i % 4);
    read_shared(array, index + i * int(4 / array.element), &b[32 * column + k], 4, file, line);
  }
  if (!adds) memset(d, 0, size_t(columns / 2) * sizeof *d);
  product_operands operands = {d, a, b, columns, is_signed};
  collective(0xffffffffu, &operands, finish_product, false, "wgmma", file, line);
}

void warp_barrier(uint32_t mask, const char *file, int line) {
  collective(mask, nullptr, nullptr, true, "__syncwarp", file, line);
}

uint32_t warp_ballot(uint32_t mask, bool predicate, const char *file, int line) {
  vote operands = {predicate, 0};
  collective(mask, &operands, finish_vote, false, "vote", file, line);
  return operands.result;
}

uint64_t warp_shuffle(shuffle_mode mode, uint32_t mask, uint64_t value, int argument, int width, const char *file,
                      int line) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    fail(BAD_SHUFFLE, file, line, "shuffle of width %d, which is not a power of two up to 32", width);
  shuffle_operands operands = {value, 0, mode, argument, width};
  collective(mask, &operands, finish_shuffle, false, "shuffle", file, line);
  return operands.result;
}

void warp_mma(int32_t (&d)[4], const uint32_t *a, const uint32_t *b, mma shape, const char *file, int line) {
  mma_operands operands = {d, a, b};
  const auto finish = shape == mma::u8_k32   ? finish_mma<32, uint8_t>
                      : shape == mma::s8_k32 ? finish_mma<32, int8_t>
                                             : finish_mma<16, int8_t>;
  collective(0xffffffffu, &operands, finish, false, "mma", file, line);
}

} // namespace kqm_emulation
