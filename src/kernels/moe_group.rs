//! (token, expert) pairs grouped by expert.

use super::*;

/// Most work items that a batch of `tokens` tokens can give.
///
/// # Errors
/// [`Error::Invalid`] for counts that are too large, [`Error::Kernel`] where the device has no such function.
pub fn max_items<D: Device>(device: &D, tokens: usize, experts: usize, top_k: usize) -> Result<usize> {
    const NAME: &str = "moe_group";
    let tokens = count(NAME, "tokens", tokens)?;
    let (experts, top_k) = (count(NAME, "experts", experts)?, count(NAME, "top_k", top_k)?);
    let most = device.kernels().moe_max_items.ok_or(Error::Kernel {
        kernel: NAME,
        status: sys::KQM_NULL_POINTER,
        message: "the table has no moe_max_items".into(),
    })?;
    // SAFETY: a function of three numbers.
    Ok(unsafe { most(tokens, experts, top_k) } as usize)
}

/// Room for the results of [`MoeGroup`], and what is in it.
#[derive(Debug)]
pub struct Groups<D: Device> {
    order: Buffer<D, u32>,
    items: Buffer<D, u32>,
    count: Buffer<D, u32>,
    /// The batch that was grouped last.
    batch: Option<Batch>,
}

/// The counts that a grouping was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Batch {
    tokens: usize,
    experts: usize,
    top_k: usize,
}

impl<D: Device> Groups<D> {
    /// Room for batches of up to `tokens` tokens, each with `top_k` of `experts` experts.
    ///
    /// # Errors
    /// [`Error::Invalid`] for counts that are too large, or the device's when there is no memory.
    pub fn new(device: &D, tokens: usize, experts: usize, top_k: usize) -> Result<Self> {
        let [pairs, items] = Self::counts(device, tokens, experts, top_k)?;
        Ok(Self {
            order: Buffer::zeroed(device, pairs)?,
            items: Buffer::zeroed(device, 3 * items)?,
            count: Buffer::zeroed(device, 1)?,
            batch: None,
        })
    }

    /// The same in memory that somebody else manages, of [`Groups::elements`] words. Nothing is allocated.
    ///
    /// # Errors
    /// Those of [`Groups::elements`].
    ///
    /// # Safety
    /// That of [`Buffer::from_raw`].
    pub unsafe fn from_raw(device: &D, address: u64, tokens: usize, experts: usize, top_k: usize) -> Result<Self> {
        let [pairs, items] = Self::counts(device, tokens, experts, top_k)?;
        // SAFETY: the caller's promise, of one part each.
        let part = |from: usize, len| unsafe { Buffer::from_raw(device, address + 4 * from as u64, len) };
        Ok(Self {
            order: part(0, pairs),
            items: part(pairs, 3 * items),
            count: part(pairs + 3 * items, 1),
            batch: None,
        })
    }

    /// Words of memory that [`Groups::from_raw`] needs for batches of up to `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Invalid`] for counts that are too large.
    pub fn elements(device: &D, tokens: usize, experts: usize, top_k: usize) -> Result<usize> {
        let [pairs, items] = Self::counts(device, tokens, experts, top_k)?;
        Ok(pairs + 3 * items + 1)
    }

    /// Most pairs and work items of a batch.
    fn counts(device: &D, tokens: usize, experts: usize, top_k: usize) -> Result<[usize; 2]> {
        let items = max_items(device, tokens, experts, top_k)?;
        match tokens.checked_mul(top_k).and_then(|pairs| u32::try_from(pairs).ok()) {
            Some(pairs) => Ok([pairs as usize, items]),
            None => Err(Error::Invalid(format!("moe_group: {top_k} experts of {tokens} tokens are too many pairs"))),
        }
    }

    /// Pair numbers in ascending (expert, pair) order.
    pub fn order(&self) -> &Buffer<D, u32> {
        &self.order
    }

    /// Work items `[expert, first position in order, pairs]`.
    pub fn items(&self) -> &Buffer<D, u32> {
        &self.items
    }

    /// Work items in use.
    pub fn count(&self) -> &Buffer<D, u32> {
        &self.count
    }

    fn as_sys(&self) -> sys::kqm_groups {
        sys::kqm_groups {
            order: self.order.slice().as_ptr().cast_mut(),
            items: self.items.slice().as_ptr().cast_mut(),
            count: self.count.slice().as_ptr().cast_mut(),
        }
    }

    /// The operand as launchers take it, which must hold the grouping of such a batch. A single token needs none.
    pub(super) fn args(
        groups: Option<&Self>,
        device: &D,
        kernel: &'static str,
        [tokens, experts, top_k]: [usize; 3],
    ) -> Result<sys::kqm_groups> {
        if let Some(groups) = groups {
            at_least(device, kernel, "groups", groups.order.place(), &[0])?;
        }
        let (batch, expected) = (groups.and_then(|groups| groups.batch), Batch { tokens, experts, top_k });
        if tokens == 1 || batch == Some(expected) {
            return Ok(groups.map_or_else(Default::default, Self::as_sys));
        }
        let found = match batch {
            Some(Batch { tokens, experts, top_k }) => format!("{tokens} tokens with {top_k} of {experts} experts"),
            None => "nothing".into(),
        };
        Err(Error::Invalid(format!(
            "{kernel}: groups hold {found}, expected {tokens} tokens with {top_k} of {experts} experts"
        )))
    }
}

/// Operands of `moe_group`.
#[non_exhaustive]
pub struct MoeGroup<'a, D: Device> {
    /// `[tokens, top_k]`. Those that are not below `experts` are grouped as one expert that does not exist.
    pub indices: Slice<'a, u32>,
    /// Where the groups go.
    pub groups: &'a mut Groups<D>,
    /// Tokens.
    pub tokens: usize,
    /// At most 512.
    pub experts: usize,
    /// At most 32.
    pub top_k: usize,
}

impl<'a, D: Device> MoeGroup<'a, D> {
    /// Of `[tokens, top_k]` indices of `experts` experts.
    pub fn new(
        indices: Slice<'a, u32>,
        groups: &'a mut Groups<D>,
        [tokens, top_k]: [usize; 2],
        experts: usize,
    ) -> Self {
        Self { indices, groups, tokens, experts, top_k }
    }
}

impl<D: Device> MoeGroup<'_, D> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for lengths that do not fit, [`Error::Kernel`] from the launcher.
    pub fn launch(self, device: &D) -> Result<()> {
        const NAME: &str = "moe_group";
        at_least(device, NAME, "indices", self.indices.place(), &[self.tokens, self.top_k])?;
        let items = max_items(device, self.tokens, self.experts, self.top_k)?;
        at_least(device, NAME, "groups.order", self.groups.order.place(), &[self.tokens, self.top_k])?;
        at_least(device, NAME, "groups.items", self.groups.items.place(), &[items, 3])?;
        let batch = Batch { tokens: self.tokens, experts: self.experts, top_k: self.top_k };
        // Whatever becomes of the launch: what was there before is no longer known to be.
        self.groups.batch = None;
        let launched = launch!(
            device,
            moe_group,
            sys::kqm_moe_group_args {
                indices: self.indices.as_ptr(),
                groups: self.groups.as_sys(),
                tokens: count(NAME, "tokens", self.tokens)?,
                experts: count(NAME, "experts", self.experts)?,
                top_k: count(NAME, "top_k", self.top_k)?,
            }
        );
        if launched.is_ok() {
            self.groups.batch = Some(batch);
        }
        launched
    }
}
