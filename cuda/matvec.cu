// matvec: y[t, r] = sum_k W[r, k] x[t, k] (+ residual[t, r]), W of any type of common/types.cuh, x in block fixed point.
//
// Shapes, maths and launch: as q4_k_matvec and q6_k_gemv, which are this kernel's entries for their types; what multiplies with every other
// type is compiled here.
// Bound by: the weights' bytes for few tokens, the tensor cores' setup and the unpacking of weights for many.
#include "common/matvec.cuh"

KQM_ABI_BEGIN

kqm_status kqm_q4_k_matvec(const kqm_matvec_args *args, kqm_stream stream);
kqm_status kqm_q6_k_gemv(const kqm_matvec_args *args, kqm_stream stream);

namespace {

template <class Tile>
struct Entry {
  static kqm_status launch(const kqm_matvec_args *args, kqm_stream stream) {
    return kqm_matvec_of_type<Tile>(args, stream);
  }
};
template <>
struct Entry<KqmTileQ4K> {
  static kqm_status launch(const kqm_matvec_args *args, kqm_stream stream) { return kqm_q4_k_matvec(args, stream); }
};
template <>
struct Entry<KqmTileQ6K> {
  static kqm_status launch(const kqm_matvec_args *args, kqm_stream stream) { return kqm_q6_k_gemv(args, stream); }
};

}  // namespace

kqm_status kqm_matvec(const kqm_matvec_args *args, kqm_stream stream) {
  KQM_REQUIRE(args != nullptr, KQM_NULL_POINTER);
  return KqmBlockTypes::launch(args->w.type,
                               [=](auto type) { return Entry<KqmTileOf<decltype(type)>>::launch(args, stream); });
}

KQM_ABI_END
