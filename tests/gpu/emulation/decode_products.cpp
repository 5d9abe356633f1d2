// The kernel of decode_products.cuh on a processor, for the tests: arguments as Python has them.
#define CARD "host_card.h"
#include "decode_products.cuh"

template <int kColumns, int kMode>
static bool run_as(const decode::Product& p, int split, int grid) {
  const int64_t bytes = decode::shared_bytes(p.tokens, kColumns, p.widest, p.tiles_of_round);
  return host::run(grid, split, bytes, [&] { decode::multiply<kColumns, kMode>(p); });
}

template <int kColumns>
static bool run_for(const decode::Product& p, int mode, int split, int grid) {
  switch (mode) {
    case decode::kStore: return run_as<kColumns, decode::kStore>(p, split, grid);
    case decode::kAdd: return run_as<kColumns, decode::kAdd>(p, split, grid);
    case decode::kGate: return run_as<kColumns, decode::kGate>(p, split, grid);
    default: return run_as<kColumns, decode::kHeads>(p, split, grid);
  }
}

extern "C" int size_of_product() { return sizeof(decode::Product); }

// 0: done; 1: the threads wait in vain; 2: the tokens do not fit
extern "C" int run(decode::Product* p, int mode, int split, int blocks, int64_t shared_limit) {
  int grid = 0;
  const int columns = p->tokens <= 8 ? 8 : p->tokens <= 16 ? 16 : 32;
  if (!decode::deal(*p, columns, split, blocks, shared_limit, &grid)) return 2;
  const bool done = columns == 8    ? run_for<8>(*p, mode, split, grid)
                    : columns == 16 ? run_for<16>(*p, mode, split, grid)
                                    : run_for<32>(*p, mode, split, grid);
  return done ? 0 : 1;
}
