// What Python calls of decode_products.cuh.
#include "decode_products.cuh"

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/extra/cuda/device_guard.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

namespace {

namespace ffi = tvm::ffi;
using decode::bf16;
using ffi::Optional;
using ffi::TensorView;

constexpr int64_t kSharedOfBlock = 227 * 1024;  // on compute capability 9.0
constexpr int64_t kSharedOfTwo = (228 * 1024) / 2 - 1024;

void check(cudaError_t status) {
  TVM_FFI_ICHECK(status == cudaSuccess) << cudaGetErrorString(status);
}

template <int kColumns, int kMode>
void launch_as(const decode::Product& p, int split, int grid, cudaStream_t stream) {
  auto kernel = decode::multiply<kColumns, kMode>;
  static bool raised = false;  // the limit is of a card, and a process has one
  if (!raised) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(kSharedOfBlock)));
    raised = true;
  }
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = split;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(decode::kThreads);
  config.dynamicSmemBytes =
      decode::shared_bytes(p.tokens, kColumns, p.widest, p.tiles_of_round);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = split > 1 ? 2 : 1;
  check(cudaLaunchKernelEx(&config, kernel, p));
}

template <int kColumns>
void launch_for(decode::Product& p, int mode, int split, int blocks, cudaStream_t stream) {
  int grid = 0;
  const bool dealt = decode::deal(p, kColumns, split, blocks, kSharedOfTwo, &grid) &&
                     p.tiles_of_round * 4 >= p.tiles_of_group;
  TVM_FFI_ICHECK(dealt || decode::deal(p, kColumns, split, blocks, kSharedOfBlock, &grid))
      << p.tokens << " tokens of depth " << p.depth << " do not fit into " << split << " blocks";
  switch (mode) {
    case decode::kStore:
      return launch_as<kColumns, decode::kStore>(p, split, grid, stream);
    case decode::kAdd:
      return launch_as<kColumns, decode::kAdd>(p, split, grid, stream);
    case decode::kGate:
      return launch_as<kColumns, decode::kGate>(p, split, grid, stream);
    default:
      return launch_as<kColumns, decode::kHeads>(p, split, grid, stream);
  }
}

void launch(decode::Product& p, int mode, int split, int blocks, DLDevice device) {
  ffi::CUDADeviceGuard guard(device.device_id);
  const auto stream =
      static_cast<cudaStream_t>(TVMFFIEnvGetStream(device.device_type, device.device_id));
  if (p.tokens <= 8) return launch_for<8>(p, mode, split, blocks, stream);
  if (p.tokens <= 16) return launch_for<16>(p, mode, split, blocks, stream);
  TVM_FFI_ICHECK(p.tokens <= 32) << "at most 32 tokens, not " << p.tokens;
  launch_for<32>(p, mode, split, blocks, stream);
}

const bf16* values(const TensorView& t) {
  TVM_FFI_ICHECK(t.dtype().code == kDLBfloat && t.dtype().bits == 16) << "bfloat16 is expected";
  TVM_FFI_ICHECK(t.stride(t.ndim() - 1) == 1) << "the last dimension is to be contiguous";
  return static_cast<const bf16*>(t.data_ptr());
}

const int* integers(const TensorView& t) {
  TVM_FFI_ICHECK(t.dtype().code == kDLInt && t.dtype().bits == 32) << "int32 is expected";
  return static_cast<const int*>(t.data_ptr());
}

decode::Product product(const TensorView& weight, const TensorView& input,
                        const Optional<TensorView>& bias, const Optional<TensorView>& norm,
                        double epsilon, bool from_one, const TensorView& output) {
  decode::Product p = {};
  p.weight = values(weight);
  p.input = values(input);
  p.input_stride = input.stride(0);
  p.tokens = static_cast<int>(input.size(0));
  p.depth = static_cast<int>(input.size(1));
  p.bias = bias.has_value() ? values(bias.value()) : nullptr;
  p.norm_weight = norm.has_value() ? values(norm.value()) : nullptr;
  p.epsilon = static_cast<float>(epsilon);
  p.from_one = from_one;
  p.output = const_cast<bf16*>(values(output));
  p.output_stride = output.stride(0);
  TVM_FFI_ICHECK(weight.size(1) == p.depth && weight.stride(0) == p.depth)
      << "a weight [out, " << p.depth << "] in one piece is expected";
  TVM_FFI_ICHECK(p.depth % decode::kUnit == 0 && weight.size(0) % 16 == 0)
      << "sizes in units of 64 and 16 are expected";
  TVM_FFI_ICHECK(p.input_stride % 8 == 0) << "lines of input are to begin at 16 bytes";
  TVM_FFI_ICHECK(output.size(0) == p.tokens) << "output of " << p.tokens << " tokens is expected";
  p.tiles = static_cast<int>(weight.size(0) / 16);
  return p;
}

void bring(decode::Product& p, int place, const TensorView& next, int64_t bytes) {
  const int64_t there = next.size(0) * next.stride(0) * 2;
  p.next[place] = static_cast<const char*>(next.data_ptr());
  p.next_bytes[place] = bytes < there ? bytes : there;
}

// output = (norm of input) x weight + bias
void store(TensorView weight, TensorView input, Optional<TensorView> bias,
           Optional<TensorView> norm, double epsilon, bool from_one, TensorView output,
           int64_t split, int64_t blocks) {
  auto p = product(weight, input, bias, norm, epsilon, from_one, output);
  TVM_FFI_ICHECK(output.size(1) == weight.size(0)) << "output is of another width";
  launch(p, decode::kStore, split, blocks, input.device());
}

// residual += input x weight + bias
void add(TensorView weight, TensorView input, Optional<TensorView> bias, TensorView residual,
         int64_t split, int64_t blocks) {
  auto p = product(weight, input, bias, {}, 0, false, residual);
  TVM_FFI_ICHECK(residual.size(1) == weight.size(0)) << "residual is of another width";
  launch(p, decode::kAdd, split, blocks, input.device());
}

// output = activation(left half of product) * right half, of the norm of input
void gate(TensorView weight, TensorView input, Optional<TensorView> norm, double epsilon,
          bool from_one, bool gelu, TensorView output, int64_t split, int64_t blocks) {
  auto p = product(weight, input, {}, norm, epsilon, from_one, output);
  TVM_FFI_ICHECK(output.size(1) * 2 == weight.size(0)) << "output is of another width";
  p.gelu = gelu;
  launch(p, decode::kGate, split, blocks, input.device());
}

// queries = rotated heads of the norm of input; keys and values to their places in pages
void heads(TensorView weight, TensorView input, Optional<TensorView> bias,
           Optional<TensorView> norm, double epsilon, bool from_one, TensorView queries,
           TensorView angles, TensorView keys, TensorView kept_values, TensorView page_start,
           TensorView page_indices, TensorView positions, TensorView next,
           int64_t next_bytes, TensorView after_next, int64_t after_next_bytes, int64_t split,
           int64_t blocks) {
  auto p = product(weight, input, bias, norm, epsilon, from_one, queries);
  p.head_dim = static_cast<int>(keys.size(3));
  p.kv_heads = static_cast<int>(keys.size(2));
  p.page_size = static_cast<int>(keys.size(1));
  p.heads = static_cast<int>(queries.size(1)) / p.head_dim;
  TVM_FFI_ICHECK(p.head_dim % 16 == 0 &&
                 weight.size(0) == (p.heads + 2 * p.kv_heads) * p.head_dim)
      << "a weight of all heads is expected";
  TVM_FFI_ICHECK(angles.dtype().code == kDLFloat && angles.dtype().bits == 32 &&
                 angles.size(0) == p.tokens && angles.size(1) == p.head_dim &&
                 angles.stride(0) == p.head_dim)
      << "angles [tokens, head_dim] in float32 are expected";
  for (const auto& kept : {keys, kept_values})
    TVM_FFI_ICHECK(kept.stride(3) == 1 && kept.stride(2) == p.head_dim &&
                   kept.stride(1) == p.kv_heads * p.head_dim &&
                   kept.stride(0) == p.page_size * p.kv_heads * p.head_dim)
        << "pages in one piece are expected";
  p.fp8 = keys.dtype().bits == 8;
  p.angles = static_cast<const float*>(angles.data_ptr());
  p.keys = keys.data_ptr();
  p.values = kept_values.data_ptr();
  p.page_start = integers(page_start);
  p.page_indices = integers(page_indices);
  p.positions = integers(positions);
  bring(p, 0, next, next_bytes);
  bring(p, 1, after_next, after_next_bytes);
  launch(p, decode::kHeads, split, blocks, input.device());
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(store, store);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(add, add);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(gate, gate);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(heads, heads);
