//! Causal grouped-query attention over the cache.

use super::*;

/// Operands of `attention`. The cache's elements are f32 or f16, as `cache_kind` says.
#[non_exhaustive]
pub struct Attention<'a> {
    /// The queries, and the cache that they see.
    pub q: Queries<'a>,
    /// F32 or F16.
    pub cache_kind: TensorType,
    /// `[tokens, heads, head_dim]`.
    pub out: Option<SliceMut<'a, f32>>,
    /// `[tokens, heads * head_dim / 256]`, the last block of a token filled up with zeros.
    pub fixed: Option<SliceMut<'a, FixedBlock>>,
    /// Optional output `[tokens, heads, capacity]`: scaled scores, minus infinity where masked.
    pub scores: Option<SliceMut<'a, f32>>,
    /// At least [`Attention::workspace_bytes`].
    pub workspace: SliceMut<'a, u8>,
    /// Query heads: a multiple of `kv_heads`, at most 16 times.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Dimensions of a head: 64, 128, 192 or 256.
    pub head_dim: usize,
    /// Factor of the scores: `1 / sqrt(head_dim)`.
    pub scale: f32,
}

impl<'a> Attention<'a> {
    /// Of queries that see a cache of pages of `[64, kv_heads, head_dim]` elements of a type. It gives what is asked for with
    /// [`Self::out`] and [`Self::fixed`], one of which must be.
    pub fn new(
        q: Queries<'a>,
        workspace: SliceMut<'a, u8>,
        cache_kind: TensorType,
        [kv_heads, head_dim]: [usize; 2],
        heads: usize,
        scale: f32,
    ) -> Self {
        let (out, fixed, scores) = (None, None, None);
        Self { q, cache_kind, out, fixed, scores, workspace, heads, kv_heads, head_dim, scale }
    }

    optional_operands! {
        /// Gives the output as f32.
        out: SliceMut<'a, f32>;
        /// Gives the output as fixed point.
        fixed: SliceMut<'a, FixedBlock>;
        /// Gives the scaled scores.
        scores: SliceMut<'a, f32>;
    }
}

/// The queries of attention, and the cache that they see.
#[allow(clippy::large_enum_variant)] // made and used on the stack of one call
#[non_exhaustive]
pub enum Queries<'a> {
    /// Rotated queries; the cache has the tokens' k and v.
    #[non_exhaustive]
    Rotated {
        /// `[tokens, heads, head_dim]`.
        q: Slice<'a, f32>,
        /// `[pool_pages, 64, kv_heads, head_dim]`, as bytes.
        k_cache: Slice<'a, u8>,
        /// `[pool_pages, 64, kv_heads, head_dim]`, as bytes.
        v_cache: Slice<'a, u8>,
        /// The tokens, and where they are.
        batch: Batch<'a>,
    },
    /// A single token: what [`super::Rope`] does is done in the same launch, and its caches are those that are seen.
    #[non_exhaustive]
    Fused {
        /// The operands, of the same shapes.
        rope: super::Rope<'a>,
        /// The launch right before this one on the queue is [`super::Qkv`], [`super::FloatMatvec`], or a kernel that does not let
        /// its successor start early, and writes neither the batch nor the caches: they are read while it still runs. Where that is
        /// not true, what is read may be old.
        follows_qkv: bool,
    },
}

impl<'a> Queries<'a> {
    /// [`Self::Rotated`], which see the caches of k and v.
    pub fn rotated(q: Slice<'a, f32>, [k_cache, v_cache]: [Slice<'a, u8>; 2], batch: Batch<'a>) -> Self {
        Self::Rotated { q, k_cache, v_cache, batch }
    }

    /// [`Self::Fused`].
    pub fn fused(rope: super::Rope<'a>, follows_qkv: bool) -> Self {
        Self::Fused { rope, follows_qkv }
    }
}

impl Attention<'_> {
    const NAME: &'static str = "attention";

    /// Bytes of workspace for these shapes. What is enough for a capacity is for every reach in it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for counts that are too large.
    pub fn workspace_bytes<D: Device>(
        device: &D,
        capacity: usize,
        tokens: usize,
        heads: usize,
        head_dim: usize,
    ) -> Result<usize> {
        let args = sys::kqm_attention_args {
            batch: sys::kqm_batch {
                capacity: count(Self::NAME, "capacity", capacity)?,
                tokens: count(Self::NAME, "tokens", tokens)?,
                ..Default::default()
            },
            heads: count(Self::NAME, "heads", heads)?,
            head_dim: count(Self::NAME, "head_dim", head_dim)?,
            ..Default::default()
        };
        // SAFETY: the function reads the counts of the structure and nothing else.
        Ok(device.kernels().attention_workspace.map_or(0, |bytes| unsafe { bytes(&args) }) as usize)
    }

    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch<D: Device>(self, device: &D) -> Result<()> {
        let Batch { tokens, capacity, pool_pages, .. } = match &self.q {
            Queries::Rotated { batch, .. } => *batch,
            Queries::Fused { rope, .. } => rope.batch,
        };
        let q_shape = [tokens, self.heads, self.head_dim];
        let cache_shape = [pool_pages, Batch::PAGE, self.kv_heads, self.head_dim, self.cache_kind.block_bytes()];
        let ([k_cache, v_cache], batch, q, rope, follows_qkv) = match self.q {
            Queries::Rotated { q, k_cache, v_cache, batch } => {
                let batch = batch.args(device, Self::NAME)?;
                at_least(device, Self::NAME, "q", q.place(), &q_shape)?;
                at_least(device, Self::NAME, "k_cache", k_cache.place(), &cache_shape)?;
                at_least(device, Self::NAME, "v_cache", v_cache.place(), &cache_shape)?;
                let caches = [k_cache, v_cache].map(|cache| cache.as_ptr().cast());
                (caches, batch, q.as_ptr(), sys::kqm_rope_args::default(), false)
            }
            // The launcher demands that the shapes are the same.
            Queries::Fused { rope, follows_qkv } => {
                let rope = rope.args(device)?;
                let caches = [rope.k_cache.cast_const(), rope.v_cache.cast_const()];
                (caches, rope.batch, std::ptr::null(), rope, follows_qkv)
            }
        };
        if let Some(out) = &self.out {
            at_least(device, Self::NAME, "out", out.place(), &q_shape)?;
        }
        if let Some(fixed) = &self.fixed {
            at_least(
                device,
                Self::NAME,
                "fixed",
                fixed.place(),
                &[tokens, self.heads.saturating_mul(self.head_dim).div_ceil(BLOCK)],
            )?;
        }
        if let Some(scores) = &self.scores {
            at_least(device, Self::NAME, "scores", scores.place(), &[tokens, self.heads, capacity])?;
        }
        // How many bytes are enough is the launcher's to say.
        at_least(device, Self::NAME, "workspace", self.workspace.place(), &[0])?;
        launch!(
            device,
            attention,
            sys::kqm_attention_args {
                batch,
                q,
                rope,
                k_cache,
                v_cache,
                out: optional(self.out),
                fixed: optional(self.fixed),
                scores: optional(self.scores),
                workspace: self.workspace.as_ptr().cast(),
                workspace_bytes: self.workspace.len() as u64,
                cache_type: self.cache_kind as u32,
                heads: count(Self::NAME, "heads", self.heads)?,
                kv_heads: count(Self::NAME, "kv_heads", self.kv_heads)?,
                head_dim: count(Self::NAME, "head_dim", self.head_dim)?,
                scale: self.scale,
                follows_qkv: follows_qkv.into(),
            }
        )
    }
}
