// The table of block types: every kernel's launches, checks and sizes follow from it. A type is a file in types/ and its place in
// KqmBlockTypes.
#pragma once

#include "check.cuh"
#include "types/iq1_m.cuh"
#include "types/iq1_s.cuh"
#include "types/iq2_s.cuh"
#include "types/iq2_xs.cuh"
#include "types/iq2_xxs.cuh"
#include "types/iq3_s.cuh"
#include "types/iq3_xxs.cuh"
#include "types/iq4_nl.cuh"
#include "types/iq4_xs.cuh"
#include "types/mxfp4.cuh"
#include "types/q2_k.cuh"
#include "types/q3_k.cuh"
#include "types/q4_0.cuh"
#include "types/q4_1.cuh"
#include "types/q4_k.cuh"
#include "types/q5_0.cuh"
#include "types/q5_1.cuh"
#include "types/q5_k.cuh"
#include "types/q6_k.cuh"
#include "types/q8_0.cuh"
#include "types/tq1_0.cuh"
#include "types/tq2_0.cuh"

// What stands for a type in the argument of a function.
template <class Of>
struct KqmType {
  typedef Of Tile;
};
template <class Type>
using KqmTileOf = typename Type::Tile;

template <class... Tiles>
struct KqmTypeTable {
  static const int count = sizeof...(Tiles);

  template <class Tile>
  static constexpr bool is_here = (std::is_same_v<Tile, Tiles> || ...);

  // Whether a type is in the table.
  static bool has(uint32_t type) { return ((type == Tiles::type) || ...); }

  // Bytes of a tile of a type in the table.
  static int tile_bytes(uint32_t type) {
    int bytes = 0;
    (void)((type == Tiles::type && (bytes = Tiles::bytes, true)) || ...);
    return bytes;
  }

  // What launch(KqmType<Tile>) returns for the type with this number.
  template <class Launch>
  static kqm_status launch(uint32_t type, Launch launch) {
    kqm_status status = KQM_UNSUPPORTED_TYPE;
    (void)((type == Tiles::type && (status = launch(KqmType<Tiles>()), true)) || ...);
    return status;
  }

  // Calls act(KqmType<Tile>) in a kernel that works on any type of the table. Its launcher has refused all others (`has`), so that there is
  // no question about the last one.
  template <class Act>
  __device__ __forceinline__ static void choose(uint32_t type, Act act) {
    choose_of<Act, Tiles...>(type, act);
  }

 private:
  template <class Act, class First, class... Others>
  __device__ __forceinline__ static void choose_of(uint32_t type, Act act) {
    if (sizeof...(Others) == 0 || type == First::type)
      act(KqmType<First>());
    else if constexpr (sizeof...(Others) > 0)
      choose_of<Act, Others...>(type, act);
  }
};

typedef KqmTypeTable<KqmTileQ4K, KqmTileQ5K, KqmTileQ6K, KqmTileQ8_0, KqmTileQ2K, KqmTileQ3K, KqmTileIQ4XS,
                     KqmTileIQ4NL, KqmTileMXFP4, KqmTileQ4_0, KqmTileQ4_1, KqmTileQ5_0, KqmTileQ5_1, KqmTileIQ3S,
                     KqmTileIQ3XXS, KqmTileIQ2S, KqmTileIQ2XS, KqmTileIQ2XXS, KqmTileIQ1M, KqmTileIQ1S, KqmTileTQ2_0,
                     KqmTileTQ1_0>
    KqmBlockTypes;

// Types between which kernels for several matrices choose inside. All types in one kernel would be too much of a kernel; these are those
// that files have side by side in a layer, and what most files have is a table of its own.
typedef KqmTypeTable<KqmTileQ4K, KqmTileQ5K, KqmTileQ6K> KqmUsualTypes;
typedef KqmTypeTable<KqmTileQ4K, KqmTileQ5K, KqmTileQ6K, KqmTileQ2K, KqmTileQ3K, KqmTileIQ4XS> KqmMixedTypes;

// Types of which warpgroups multiply many tokens (common/warpgroups.cuh): those of which files have most of their weights.
typedef KqmTypeTable<KqmTileQ4K, KqmTileQ5K, KqmTileQ6K, KqmTileIQ4XS> KqmWarpgroupTypes;

// The smallest of these tables that has a type, or one of that type alone.
template <class Tile>
using KqmTableWith =
    std::conditional_t<KqmUsualTypes::is_here<Tile>, KqmUsualTypes,
                       std::conditional_t<KqmMixedTypes::is_here<Tile>, KqmMixedTypes, KqmTypeTable<Tile>>>;

// Of experts every launcher has a number of its own to demand.
inline kqm_status kqm_check_matrix(const kqm_matrix &w) {
  KQM_REQUIRE(w.tiles != nullptr, KQM_NULL_POINTER);
  KQM_REQUIRE(KqmBlockTypes::has(w.type), KQM_UNSUPPORTED_TYPE);
  KQM_REQUIRE(w.rows > 0 && w.rows <= kqm_max_rows && w.cols > 0 && w.cols % KQM_BLOCK == 0 && w.cols <= kqm_max_cols,
              KQM_BAD_SHAPE);
  KQM_REQUIRE(kqm_aligned(w.tiles, 16), KQM_MISALIGNED);
  return KQM_OK;
}
