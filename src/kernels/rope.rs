//! Per-head RMSNorm of q and k, RoPE, and the write of k and v into the cache.

use super::*;

/// The cache that [`Rope`] writes.
pub struct CacheMut<'a> {
    caches: [SliceMut<'a, u8>; 2],
    kind: TensorType,
    shape: [usize; 2],
}

impl<'a> CacheMut<'a> {
    /// The caches of k and of v, each pages of `[64, kv_heads, head_dim]` elements in F32 or F16, as bytes.
    pub fn new(caches: [SliceMut<'a, u8>; 2], kind: TensorType, shape: [usize; 2]) -> Self {
        Self { caches, kind, shape }
    }
}

/// Operands of `rope`. The cache's elements are f32 or f16, as `cache_kind` says.
#[non_exhaustive]
pub struct Rope<'a> {
    /// The tokens, and where they are.
    pub batch: Batch<'a>,
    /// `[tokens, heads, head_dim]`.
    pub q: Slice<'a, f32>,
    /// `[tokens, heads, head_dim]`: q after RMSNorm and RoPE.
    pub q_out: SliceMut<'a, f32>,
    /// `[tokens, kv_heads, head_dim]`.
    pub k: Slice<'a, f32>,
    /// `[tokens, kv_heads, head_dim]`.
    pub v: Slice<'a, f32>,
    /// `[head_dim]`; without it q is not normalised.
    pub q_weight: Option<Slice<'a, f32>>,
    /// `[head_dim]`; without it k is not normalised.
    pub k_weight: Option<Slice<'a, f32>>,
    /// `[capacity, head_dim / 2, 2]`: cosine and sine.
    pub table: Slice<'a, f32>,
    /// Optional output `[tokens, heads, head_dim]`: q after RMSNorm.
    pub q_normed: Option<SliceMut<'a, f32>>,
    /// Optional output `[tokens, kv_heads, head_dim]`: k after RMSNorm.
    pub k_normed: Option<SliceMut<'a, f32>>,
    /// Optional output `[tokens, kv_heads, head_dim]`: k after RoPE, before it is rounded to the cache's type.
    pub k_out: Option<SliceMut<'a, f32>>,
    /// `[pool_pages, 64, kv_heads, head_dim]`, as bytes.
    pub k_cache: SliceMut<'a, u8>,
    /// `[pool_pages, 64, kv_heads, head_dim]`, as bytes.
    pub v_cache: SliceMut<'a, u8>,
    /// F32 or F16.
    pub cache_kind: TensorType,
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Dimensions of a head: a multiple of 8, at most 256.
    pub head_dim: usize,
    /// Added to the mean square.
    pub eps: f32,
}

impl<'a> Rope<'a> {
    /// Of q, k and v. Neither q nor k is normalised until its weight is given.
    pub fn new(
        [q, k, v]: [Slice<'a, f32>; 3],
        q_out: SliceMut<'a, f32>,
        table: Slice<'a, f32>,
        batch: Batch<'a>,
        cache: CacheMut<'a>,
        heads: usize,
        eps: f32,
    ) -> Self {
        let CacheMut { caches: [k_cache, v_cache], kind: cache_kind, shape: [kv_heads, head_dim] } = cache;
        Self {
            batch,
            q,
            q_out,
            k,
            v,
            q_weight: None,
            k_weight: None,
            table,
            q_normed: None,
            k_normed: None,
            k_out: None,
            k_cache,
            v_cache,
            cache_kind,
            heads,
            kv_heads,
            head_dim,
            eps,
        }
    }

    optional_operands! {
        /// Normalises q.
        q_weight: Slice<'a, f32>;
        /// Normalises k.
        k_weight: Slice<'a, f32>;
        /// Gives q after RMSNorm.
        q_normed: SliceMut<'a, f32>;
        /// Gives k after RMSNorm.
        k_normed: SliceMut<'a, f32>;
        /// Gives k after RoPE, before it is rounded to the cache's type.
        k_out: SliceMut<'a, f32>;
    }
}

impl Rope<'_> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch<D: Device>(self, device: &D) -> Result<()> {
        launch!(device, rope, self.args(device)?)
    }

    /// The checked arguments.
    pub(super) fn args<D: Device>(self, device: &D) -> Result<sys::kqm_rope_args> {
        const NAME: &str = "rope";
        let Batch { tokens, capacity, pool_pages, .. } = self.batch;
        let q_shape = [tokens, self.heads, self.head_dim];
        let kv_shape = [tokens, self.kv_heads, self.head_dim];
        let cache_shape = [pool_pages, Batch::PAGE, self.kv_heads, self.head_dim, self.cache_kind.block_bytes()];
        let batch = self.batch.args(device, NAME)?;
        at_least(device, NAME, "q", self.q.place(), &q_shape)?;
        at_least(device, NAME, "q_out", self.q_out.place(), &q_shape)?;
        at_least(device, NAME, "k", self.k.place(), &kv_shape)?;
        at_least(device, NAME, "v", self.v.place(), &kv_shape)?;
        at_least(device, NAME, "table", self.table.place(), &[capacity, self.head_dim])?;
        at_least(device, NAME, "k_cache", self.k_cache.place(), &cache_shape)?;
        at_least(device, NAME, "v_cache", self.v_cache.place(), &cache_shape)?;
        if let Some(weight) = &self.q_weight {
            at_least(device, NAME, "q_weight", weight.place(), &[self.head_dim])?;
        }
        if let Some(weight) = &self.k_weight {
            at_least(device, NAME, "k_weight", weight.place(), &[self.head_dim])?;
        }
        if let Some(out) = &self.q_normed {
            at_least(device, NAME, "q_normed", out.place(), &q_shape)?;
        }
        if let Some(out) = &self.k_normed {
            at_least(device, NAME, "k_normed", out.place(), &kv_shape)?;
        }
        if let Some(out) = &self.k_out {
            at_least(device, NAME, "k_out", out.place(), &kv_shape)?;
        }
        Ok(sys::kqm_rope_args {
            batch,
            q: self.q.as_ptr(),
            k: self.k.as_ptr(),
            v: self.v.as_ptr(),
            q_weight: self.q_weight.map_or(std::ptr::null(), |w| w.as_ptr()),
            k_weight: self.k_weight.map_or(std::ptr::null(), |w| w.as_ptr()),
            table: self.table.as_ptr(),
            q_out: self.q_out.as_ptr(),
            q_normed: optional(self.q_normed),
            k_normed: optional(self.k_normed),
            k_out: optional(self.k_out),
            k_cache: self.k_cache.as_ptr().cast(),
            v_cache: self.v_cache.as_ptr().cast(),
            cache_type: self.cache_kind as u32,
            heads: count(NAME, "heads", self.heads)?,
            kv_heads: count(NAME, "kv_heads", self.kv_heads)?,
            head_dim: count(NAME, "head_dim", self.head_dim)?,
            eps: self.eps,
        })
    }
}
