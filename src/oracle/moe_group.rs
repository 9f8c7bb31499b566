//! The (token, expert) pairs of a batch, grouped by expert.

use crate::sys;

/// Pairs grouped by expert. Pair `p` is `token * top_k + rank`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// `[pairs]`: pair numbers, ascending by (expert, pair).
    pub order: Vec<u32>,
    /// Work items: expert, first position in `order`, number of pairs (1 to `KQM_ITEM_PAIRS`). First those of more than half of
    /// `KQM_ITEM_PAIRS`, then the others, each ascending.
    pub items: Vec<[u32; 3]>,
}

/// Groups the pairs of `indices`, `[tokens, top_k]`. Those that are not below `experts` all count as `experts`.
pub fn moe_group(indices: &[u32], experts: usize) -> Groups {
    let mut groups = Groups::default();
    let experts = experts as u32;
    for expert in 0..=experts {
        let first = groups.order.len();
        groups.order.extend((0..indices.len() as u32).filter(|&pair| indices[pair as usize].min(experts) == expert));
        let end = groups.order.len();
        let step = sys::KQM_ITEM_PAIRS as usize;
        let item = |from: usize| [expert, from as u32, step.min(end - from) as u32];
        groups.items.extend((first..end).step_by(step).map(item));
    }
    groups.items.sort_by_key(|item| item[2] <= sys::KQM_ITEM_PAIRS / 2);
    groups
}
