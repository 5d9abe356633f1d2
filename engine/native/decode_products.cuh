// The products of a step of decoding, each with what lies before and behind it in a layer.
//
// A few tokens are multiplied with a weight [out, depth] that is read once: what counts is that
// memory is never idle. Sixteen rows of the weight are a tile. A block has tiles of its own and
// holds the tokens in shared memory; its warps share the tiles' depth evenly, each walking along it
// in units of 64 with several units on their way in registers. The parts of a tile's sums meet in
// shared memory. Blocks of a cluster split the depth where there are few tiles, or where the tokens
// would not fit. The first units are asked for before the kernel before has ended.
#pragma once

#ifndef CARD
#define CARD "card.cuh"
#endif
#include CARD

namespace decode {

using bf16 = __nv_bfloat16;

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kUnit = 64;   // of depth
constexpr int kAhead = 4;   // units of a warp on their way to registers
constexpr int kBehind = 8;  // units after those, on their way to the second cache at first
constexpr int kSplits = 8;  // blocks that share a product's depth, at most
constexpr int kLine = 20;   // floats between the tokens of a tile's sums, 16 rows each: no conflicts
constexpr int kPad = 32;    // elements between tokens: neighbours lie in other banks

enum Mode { kStore, kAdd, kGate, kHeads };

struct Product {
  const bf16* weight;  // [out, depth]
  const bf16* input;   // [tokens, depth], lines input_stride apart
  int64_t input_stride;
  int tokens, depth;
  const bf16* bias;         // [out], or none
  const bf16* norm_weight;  // [depth]: the input's root mean square norm is taken, or none
  float epsilon;
  bool from_one;  // the norm is by 1 + weight
  bf16* output;   // kAdd: added to what is there; kHeads: the queries
  int64_t output_stride;
  int tiles, tiles_of_group, tiles_of_round;
  int widest;  // units of depth that a block of a cluster has at most
  bool gelu;   // kGate: tanh's approximation; else SiLU
  // kHeads: queries, keys and values, rotated; keys and values go to their pages
  int heads, kv_heads, head_dim, page_size;
  const float* angles;  // [tokens, head_dim]: cosines, then sines
  const int* page_start;
  const int* page_indices;
  const int* positions;
  void* keys;  // [pages, page_size, kv_heads, head_dim]
  void* values;
  bool fp8;
  const char* next[2];  // brought to the second cache while others compute
  int64_t next_bytes[2];
};

struct Units {
  uint4 above[2], below[2];  // 8 of depth each: of row `lane / 4`, and of the row paired with it
};

template <int kMode>
__device__ __forceinline__ int64_t first_row(const Product& p, int tile, int row) {
  if constexpr (kMode == kGate) return static_cast<int64_t>(tile) * 8 + row;
  if constexpr (kMode == kHeads) {
    const int of_head = p.head_dim / 16;
    return static_cast<int64_t>(tile / of_head) * p.head_dim + (tile % of_head) * 8 + row;
  }
  return static_cast<int64_t>(tile) * 16 + row;
}

// From a row of a tile's upper half to the one that shares its threads: gate and up, halves of a head.
template <int kMode>
__device__ __forceinline__ int64_t to_pair(const Product& p) {
  if constexpr (kMode == kGate) return static_cast<int64_t>(p.tiles) * 8;
  if constexpr (kMode == kHeads) return p.head_dim / 2;
  return 8;
}

__device__ __forceinline__ float activated(float v, bool gelu) {
  if (gelu) {
    const float inner = 0.7978845608028654f * (v + 0.044715f * v * v * v);
    return 0.5f * v * (1.0f + tanhf(inner));
  }
  return v / (1.0f + expf(-v));
}

__device__ __forceinline__ void store_head(const Product& p, int token, int head, int place,
                                           float first, float second) {
  const int half = p.head_dim / 2;
  if (head < p.heads + p.kv_heads) {
    const float* line = p.angles + static_cast<int64_t>(token) * p.head_dim;
    const float cosine = card::read_fresh(line + place);
    const float sine = card::read_fresh(line + half + place);
    const float turned = first * cosine - second * sine;
    second = second * cosine + first * sine;
    first = turned;
  }
  if (head < p.heads) {
    bf16* line = p.output + token * p.output_stride + static_cast<int64_t>(head) * p.head_dim;
    line[place] = __float2bfloat16(first);
    line[place + half] = __float2bfloat16(second);
    return;
  }
  const int position = card::read_fresh(p.positions + token);
  const int start = card::read_fresh(p.page_start + token);
  const int page = card::read_fresh(p.page_indices + start + position / p.page_size);
  const bool key = head < p.heads + p.kv_heads;
  const int kv_head = head - p.heads - (key ? 0 : p.kv_heads);
  const int64_t slot = static_cast<int64_t>(page) * p.page_size + position % p.page_size;
  const int64_t at = (slot * p.kv_heads + kv_head) * p.head_dim + place;
  void* kept = key ? p.keys : p.values;
  if (p.fp8) {
    static_cast<uint8_t*>(kept)[at] = card::to_fp8(first);
    static_cast<uint8_t*>(kept)[at + half] = card::to_fp8(second);
  } else {
    static_cast<bf16*>(kept)[at] = __float2bfloat16(first);
    static_cast<bf16*>(kept)[at + half] = __float2bfloat16(second);
  }
}

template <int kMode>
__device__ __forceinline__ void finish(const Product& p, int token, int tile, int row, float first,
                                       float second) {
  const int64_t at = first_row<kMode>(p, tile, row), pair = at + to_pair<kMode>(p);
  if (p.bias != nullptr) {
    first += __bfloat162float(p.bias[at]);
    second += __bfloat162float(p.bias[pair]);
  }
  if constexpr (kMode == kHeads) {
    const int head = static_cast<int>(at / p.head_dim);
    store_head(p, token, head, static_cast<int>(at % p.head_dim), first, second);
    return;
  }
  bf16* line = p.output + token * p.output_stride;
  if constexpr (kMode == kGate) {
    line[at] = __float2bfloat16(activated(first, p.gelu) * second);
    return;
  }
  if constexpr (kMode == kAdd) {
    first += __bfloat162float(card::read_fresh(line + at));
    second += __bfloat162float(card::read_fresh(line + pair));
  }
  line[at] = __float2bfloat16(first);
  line[pair] = __float2bfloat16(second);
}

// Where the shared memory of a block holds what.
struct Shared {
  bf16* tokens;    // [tokens, stride]
  bf16* norm;      // [depth of the block]
  float* sums;     // [parts of tiles, columns, kLine]
  float* squares;  // [tokens, kWarps]
  float* scales;   // [tokens]
  int stride;
};

__host__ __device__ __forceinline__ int64_t token_stride(int widest) {
  return static_cast<int64_t>(widest) * kUnit + kPad;
}

__host__ __device__ __forceinline__ int64_t held_bytes(int tokens, int widest) {
  return (tokens * token_stride(widest) + widest * kUnit) * 2;
}

__host__ __device__ __forceinline__ int64_t shared_bytes(int tokens, int columns, int widest,
                                                         int tiles_of_round) {
  const int64_t sums = static_cast<int64_t>(tiles_of_round + kWarps - 1) * columns * kLine * 4;
  return held_bytes(tokens, widest) + sums + tokens * (kWarps + 1) * 4;
}

// The slice of the tokens that this block multiplies, in shared memory. Warps take tokens in turn,
// and share one where there are too few; a thread works on what it has copied itself.
struct Holding {
  int first, step;    // tokens of this warp
  int begin, stride;  // elements of a token of this thread, eight at a time
  int part, parts;    // of the warps that share a token

  __device__ explicit Holding(int tokens) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    parts = kWarps;
    while (parts > 1 && parts * tokens > kWarps) parts /= 2;
    part = warp % parts;
    first = warp / parts;
    step = kWarps / parts;
    begin = (part * 32 + lane) * 8;
    stride = parts * 256;
  }
};

__device__ __forceinline__ void fetch_tokens(const Product& p, const Shared& shared,
                                             const Holding& h, int from, int units) {
  for (int token = h.first; token < p.tokens; token += h.step) {
    const bf16* line = p.input + token * p.input_stride + from * kUnit;
    for (int at = h.begin; at < units * kUnit; at += h.stride)
      card::copy_to_shared(shared.tokens + token * shared.stride + at, line + at);
  }
}

// All of the norm but the division by the root, which has to wait for the whole.
__device__ __forceinline__ void norm_tokens(const Product& p, const Shared& shared,
                                            const Holding& h, int units) {
  const float one = p.from_one ? 1.0f : 0.0f;
  for (int token = h.first; token < p.tokens; token += h.step) {
    float squares = 0;
    for (int at = h.begin; at < units * kUnit; at += h.stride) {
      __nv_bfloat162* v =
          reinterpret_cast<__nv_bfloat162*>(shared.tokens + token * shared.stride + at);
      const __nv_bfloat162* w = reinterpret_cast<const __nv_bfloat162*>(shared.norm + at);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float x = __bfloat162float(v[i].x), y = __bfloat162float(v[i].y);
        squares += x * x + y * y;
        v[i].x = __float2bfloat16(x * (__bfloat162float(w[i].x) + one));
        v[i].y = __float2bfloat16(y * (__bfloat162float(w[i].y) + one));
      }
    }
    squares = card::sum_lanes(squares);
    if (threadIdx.x % 32 == 0) shared.squares[token * kWarps + h.part] = squares;
  }
  if (threadIdx.x < p.tokens)
    for (int part = h.parts; part < kWarps; part++)
      shared.squares[threadIdx.x * kWarps + part] = 0;
}

// The parts of a tile's sums: which warps have them, in a block whose share of the depth is `units`.
struct Parts {
  int lowest, highest, total;

  __device__ Parts(int count, int of_round, int units) : total(count * units) {
    lowest = ((of_round * units + 1) * kWarps - 1) / total;
    highest = ((of_round + 1) * units * kWarps - 1) / total;
  }

  // A round may have fewer units than there are warps.
  __device__ bool idle(int warp) const {
    return total * warp / kWarps == total * (warp + 1) / kWarps;
  }
};

// Have a share of the next weights on its way to the second cache.
__device__ __forceinline__ void bring_next(const Product& p) {
  constexpr int64_t kPiece = 16384;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int64_t share = p.next_bytes[i] / gridDim.x / 128 * 128;
    const char* mine = p.next[i] + share * blockIdx.x;
    for (int64_t at = 0; at < share; at += kPiece)
      card::prefetch_many(mine + at, static_cast<uint32_t>(min(share - at, kPiece)));
  }
}

template <int kColumns, int kMode>
__global__ void __launch_bounds__(kThreads, 2) multiply(const Product p) {
  constexpr int kGroups = kColumns / 8;
  SHARED_MEMORY(memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = lane / 4, quad = lane % 4;
  const int split = card::cluster_size(), rank = card::cluster_rank();
  const int all = p.depth / kUnit;
  const int from = all * rank / split, units = all * (rank + 1) / split - from;
  const int group = blockIdx.x / split;
  const int first_tile = group * p.tiles_of_group;
  const int last_tile = min(first_tile + p.tiles_of_group, p.tiles);

  Shared shared;
  shared.stride = static_cast<int>(token_stride(p.widest));
  shared.tokens = reinterpret_cast<bf16*>(memory);
  shared.norm = shared.tokens + p.tokens * token_stride(p.widest);
  shared.sums = reinterpret_cast<float*>(memory + held_bytes(p.tokens, p.widest));
  shared.squares = shared.sums + (p.tiles_of_round + kWarps - 1) * kColumns * kLine;
  shared.scales = shared.squares + p.tokens * kWarps;

  const Holding holding(p.tokens);

  card::let_next_begin();
  Units ahead[kAhead];
  const bf16 *above, *below;  // where the load goes on, in the rows of its tile
  int load_tile, load_unit;
  const auto enter_tile = [&](int tile) {
    const int64_t at = first_row<kMode>(p, tile, row);
    above = p.weight + at * p.depth + (from + load_unit) * kUnit + quad * 8;
    below = above + to_pair<kMode>(p) * p.depth;
  };
  const auto load = [&](Units& units_ahead) {
    units_ahead.above[0] = card::read_constant(above);
    units_ahead.below[0] = card::read_constant(below);
    units_ahead.above[1] = card::read_constant(above + 32);
    units_ahead.below[1] = card::read_constant(below + 32);
    above += kUnit;
    below += kUnit;
    if (++load_unit == units) {
      load_unit = 0;
      enter_tile(min(++load_tile, p.tiles - 1));
    }
  };
  int begin = 0, end = 0;  // of this warp in the round, units counted through its tiles
  const auto enter_round = [&](int tile) {
    const int total = (min(tile + p.tiles_of_round, last_tile) - tile) * units;
    begin = total * warp / kWarps;
    end = total * (warp + 1) / kWarps;
    load_tile = tile + begin / units;
    load_unit = begin % units;
    enter_tile(min(load_tile, p.tiles - 1));
#pragma unroll
    for (int i = 0; i < kAhead; i++)
      if (begin + i < end) load(ahead[i]);
  };
  enter_round(first_tile);
  for (int i = begin + kAhead + lane / 16; i < min(end, begin + kAhead + kBehind); i += 2) {
    const int64_t at = first_row<kMode>(p, first_tile + i / units, lane % 8);
    const int64_t line = at + (lane & 8 ? to_pair<kMode>(p) : 0);
    card::prefetch(p.weight + line * p.depth + (from + i % units) * kUnit);
  }
  if (p.norm_weight != nullptr)  // each thread those that it needs itself
    for (int at = holding.begin; at < units * kUnit; at += holding.stride)
      card::copy_to_shared(shared.norm + at, p.norm_weight + from * kUnit + at);
  card::wait_for_previous();
  fetch_tokens(p, shared, holding, from, units);
  card::wait_for_copies();
  if (p.norm_weight != nullptr) norm_tokens(p, shared, holding, units);
  __syncthreads();

  const bf16* columns[kGroups];  // of the tokens; columns too many repeat the last
#pragma unroll
  for (int i = 0; i < kGroups; i++)
    columns[i] = shared.tokens + min(i * 8 + row, p.tokens - 1) * shared.stride + quad * 8;

  for (int tile = first_tile; tile < last_tile; tile += p.tiles_of_round) {
    const int count = min(p.tiles_of_round, last_tile - tile);
    float sums[kGroups][4] = {};
    int unit = begin % units, place = begin / units + warp;
    const int stop = end;
    const auto keep = [&]() {
      float* kept = shared.sums + (place * kColumns + quad * 2) * kLine + row;
#pragma unroll
      for (int i = 0; i < kGroups; i++) {
        kept[0] = sums[i][0];
        kept[kLine] = sums[i][1];
        kept[8] = sums[i][2];
        kept[kLine + 8] = sums[i][3];
        kept += 8 * kLine;
        sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0;
      }
    };
    for (int work = begin; work < stop; work += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; i++) {
        if (work + i >= stop) break;
        const Units& u = ahead[i];
#pragma unroll
        for (int j = 0; j < kGroups; j++) {
          const bf16* column = columns[j] + unit * kUnit;
#pragma unroll
          for (int half = 0; half < 2; half++) {
            const uint4 x = *reinterpret_cast<const uint4*>(column + 32 * half);
            const uint4 &a = u.above[half], &b = u.below[half];
            card::multiply(sums[j], a.x, b.x, a.y, b.y, x.x, x.y);
            card::multiply(sums[j], a.z, b.z, a.w, b.w, x.z, x.w);
          }
        }
        if (work + i + kAhead < stop) load(ahead[i]);
        if (++unit == units) {
          keep();
          unit = 0;
          place++;
        }
      }
    }
    if (unit != 0 && begin < stop) keep();
    if (tile + p.tiles_of_round < last_tile) enter_round(tile + p.tiles_of_round);

    __syncthreads();
    const int pairs = count * 8, elements = pairs * p.tokens;
    if (split > 1) {  // what this block has of a sum goes where its first part lies
      for (int e = threadIdx.x; e < elements; e += kThreads) {
        const int token = e / pairs, of_round = e % pairs / 8, in_tile = e % 8;
        const Parts parts(count, of_round, units);
        float* kept = shared.sums + ((of_round + parts.lowest) * kColumns + token) * kLine + in_tile;
        float first = kept[0], second = kept[8];
        for (int w = parts.lowest + 1; w <= parts.highest; w++) {
          if (parts.idle(w)) continue;
          const float* more = kept + (w - parts.lowest) * kColumns * kLine;
          first += more[0];
          second += more[8];
        }
        kept[0] = first;
        kept[8] = second;
      }
      card::cluster_barrier();
    }
    if (tile == first_tile && p.norm_weight != nullptr) {
      if (threadIdx.x < p.tokens) {
        float squares = 0;
        for (int other = 0; other < split; other++)
          for (int part = 0; part < kWarps; part++) {
            const float* at = shared.squares + threadIdx.x * kWarps + part;
            squares += split > 1 ? card::read_shared(at, other) : *at;
          }
        shared.scales[threadIdx.x] = rsqrtf(squares / p.depth + p.epsilon);
      }
      __syncthreads();
    }
    const int own_end = elements * (rank + 1) / split;
    for (int e = elements * rank / split + threadIdx.x; e < own_end; e += kThreads) {
      const int token = e / pairs, of_round = e % pairs / 8, in_tile = e % 8;
      const float* origin = shared.sums + (of_round * kColumns + token) * kLine + in_tile;
      float first = 0, second = 0;
      if (split > 1) {
        float firsts[kSplits] = {}, seconds[kSplits] = {};
#pragma unroll
        for (int other = 0; other < kSplits; other++) {
          if (other >= split) break;
          const int theirs = all * (other + 1) / split - all * other / split;
          const Parts parts(count, of_round, theirs);
          const float* at = origin + parts.lowest * kColumns * kLine;
          firsts[other] = card::read_shared(at, other);
          seconds[other] = card::read_shared(at + 8, other);
        }
#pragma unroll
        for (int other = 0; other < kSplits; other++) {
          first += firsts[other];
          second += seconds[other];
        }
      } else {
        const Parts parts(count, of_round, units);
        for (int w = parts.lowest; w <= parts.highest; w++) {
          if (parts.idle(w)) continue;
          first += origin[w * kColumns * kLine];
          second += origin[w * kColumns * kLine + 8];
        }
      }
      if (p.norm_weight != nullptr) {
        first *= shared.scales[token];
        second *= shared.scales[token];
      }
      finish<kMode>(p, token, tile + of_round, in_tile, first, second);
    }
    if (split > 1) {
      card::cluster_barrier();
    } else {
      __syncthreads();
    }
  }
  if (threadIdx.x == 0) bring_next(p);
}

// How the tiles are dealt out: to `blocks` blocks at most, `split` of which share each tile's depth.
// False if the tokens do not fit into shared memory.
inline bool deal(Product& p, int columns, int split, int blocks, int64_t shared_limit, int* grid) {
  p.widest = (p.depth / kUnit + split - 1) / split;
  int groups = blocks / split < 1 ? 1 : blocks / split;
  if (groups > p.tiles) groups = p.tiles;
  p.tiles_of_group = (p.tiles + groups - 1) / groups;
  *grid = (p.tiles + p.tiles_of_group - 1) / p.tiles_of_group * split;
  int rounds = 1;
  for (;; rounds++) {
    p.tiles_of_round = (p.tiles_of_group + rounds - 1) / rounds;
    if (shared_bytes(p.tokens, columns, p.widest, p.tiles_of_round) <= shared_limit) return true;
    if (p.tiles_of_round == 1) return false;
  }
}

}  // namespace decode
