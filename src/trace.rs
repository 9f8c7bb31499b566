//! Intermediate values of a forward: their names, and the sink that receives them.
//!
//! The forward is generic over a [`Sink`]. With [`NoTrace`] nothing of it is compiled in.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

macro_rules! stages {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A point of the forward whose values can be recorded, in forward order. Shapes are row-major.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Stage {
            $($(#[$doc])* $variant,)*
        }

        impl Stage {
            /// Every stage, in forward order.
            pub const ALL: &'static [Stage] = &[$(Stage::$variant,)*];

            /// The stable name, as in file names and on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Stage::$variant => $name,)*
                }
            }
        }
    };
}

stages! {
    /// Rows of the embedding table, `[tokens, hidden]`.
    Embedding = "embedding",
    /// Input of attention after RMSNorm, `[tokens, hidden]`.
    AttnNorm = "attn_norm",
    /// Query projection, `[tokens, heads, head_dim]`.
    Q = "q",
    /// Key projection, `[tokens, kv_heads, head_dim]`.
    K = "k",
    /// Value projection, `[tokens, kv_heads, head_dim]`.
    V = "v",
    /// Queries after their RMSNorm, `[tokens, heads, head_dim]`.
    QNorm = "q_norm",
    /// Keys after their RMSNorm, `[tokens, kv_heads, head_dim]`.
    KNorm = "k_norm",
    /// Queries after RoPE, `[tokens, heads, head_dim]`.
    QRope = "q_rope",
    /// Keys after RoPE, before they are rounded to the cache's type, `[tokens, kv_heads, head_dim]`.
    KRope = "k_rope",
    /// Scaled scores, minus infinity where masked, `[tokens, heads, positions]`.
    AttnScores = "attn_scores",
    /// Weighted values, `[tokens, heads, head_dim]`.
    AttnOut = "attn_out",
    /// Output projection of attention, `[tokens, hidden]`.
    AttnProj = "attn_proj",
    /// Residual stream after attention, `[tokens, hidden]`.
    AttnResidual = "attn_residual",
    /// Input of the experts after RMSNorm, `[tokens, hidden]`.
    FfnNorm = "ffn_norm",
    /// Router logits, `[tokens, experts]`.
    MoeRouterLogits = "moe_router_logits",
    /// Weights of the chosen experts, `[tokens, top_k]`.
    MoeRouter = "moe_router",
    /// Indices of the chosen experts, highest weight first, `[tokens, top_k]`, u32.
    MoeRouterIndices = "moe_router_indices",
    /// Gate projections of the chosen experts, `[tokens, top_k, expert_ff]`.
    MoeExpertGate = "moe_expert_gate",
    /// Up projections of the chosen experts, `[tokens, top_k, expert_ff]`.
    MoeExpertUp = "moe_expert_up",
    /// `silu(gate) * up`, `[tokens, top_k, expert_ff]`.
    MoeExpertSwiglu = "moe_expert_swiglu",
    /// Down projections of the chosen experts, `[tokens, top_k, hidden]`.
    MoeExpertOut = "moe_expert_out",
    /// Weighted sum over the chosen experts, `[tokens, hidden]`.
    MoeFfnOut = "moe_ffn_out",
    /// Residual stream after the experts, `[tokens, hidden]`.
    FfnResidual = "ffn_residual",
    /// Final RMSNorm, `[rows, hidden]`: only of the rows whose logits are wanted.
    OutputNorm = "output_norm",
    /// Logits, `[rows, vocab]`: only of the rows that are wanted.
    Logits = "logits",
}

impl Stage {
    /// Whether the stage exists once in each layer (the others exist once in a forward).
    pub const fn in_layer(self) -> bool {
        !matches!(self, Self::Embedding | Self::OutputNorm | Self::Logits)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Stage {
    type Err = Error;

    /// # Errors
    /// [`Error::Invalid`], with the list of known names, for an unknown one.
    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|stage| stage.name() == name).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|stage| stage.name()).collect();
            Error::Invalid(format!("unknown stage {name:?} (known: {})", known.join(", ")))
        })
    }
}

/// Which rows of a forward are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Positions {
    /// Every token of the call.
    #[default]
    All,
    /// The last token of the call.
    Last,
}

/// Values of a record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Data<'a> {
    /// Activations.
    F32(&'a [f32]),
    /// Expert indices.
    U32(&'a [u32]),
}

/// What a sink receives: the rows of one stage in one micro-batch. A call of more tokens than the context's largest
/// batch gives several records of the same stage and layer, at ascending positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record<'a> {
    /// The stage.
    pub stage: Stage,
    /// The layer, for a stage inside of one.
    pub layer: Option<usize>,
    /// Position in the sequence of the first row.
    pub position: usize,
    /// Shape, rows (tokens) first.
    pub shape: &'a [usize],
    /// `shape.iter().product()` values.
    pub data: Data<'a>,
}

/// Receives intermediate values of a forward.
pub trait Sink {
    /// False: nothing of the trace is compiled in.
    const ENABLED: bool;

    /// Whether [`Sink::record`] is to be called for this stage of this layer. `layer` is `None` for stages outside of
    /// the layers. A stage that nobody wants is neither computed nor read.
    fn wants(&self, stage: Stage, layer: Option<usize>) -> bool;

    /// The rows that are wanted.
    fn positions(&self) -> Positions {
        Positions::All
    }

    /// Takes the values of a stage.
    ///
    /// # Errors
    /// An error ends the forward, which returns it.
    fn record(&mut self, record: Record<'_>) -> Result<()>;
}

/// The sink of a forward that is not traced.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTrace;

impl Sink for NoTrace {
    const ENABLED: bool = false;

    fn wants(&self, _: Stage, _: Option<usize>) -> bool {
        false
    }

    fn record(&mut self, _: Record<'_>) -> Result<()> {
        Ok(())
    }
}

/// A choice of stages, layers and positions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The stages; `None`: all of them.
    pub stages: Option<Vec<Stage>>,
    /// The layers; `None`: all of them. Stages outside of the layers are not affected.
    pub layers: Option<Vec<usize>>,
    /// The rows.
    pub positions: Positions,
}

impl Selection {
    /// Whether the stage of the layer is selected.
    pub fn contains(&self, stage: Stage, layer: Option<usize>) -> bool {
        let stage_chosen = self.stages.as_ref().is_none_or(|stages| stages.contains(&stage));
        let layer_chosen = match (&self.layers, layer) {
            (Some(layers), Some(layer)) => layers.contains(&layer),
            _ => true,
        };
        stage_chosen && layer_chosen
    }
}

/// A sink that hands what `selection` contains to a function.
pub struct Select<F> {
    /// What is recorded.
    pub selection: Selection,
    /// Gets the records.
    pub record: F,
}

impl<F: FnMut(Record<'_>) -> Result<()>> Sink for Select<F> {
    const ENABLED: bool = true;

    fn wants(&self, stage: Stage, layer: Option<usize>) -> bool {
        self.selection.contains(stage, layer)
    }

    fn positions(&self) -> Positions {
        self.selection.positions
    }

    fn record(&mut self, record: Record<'_>) -> Result<()> {
        (self.record)(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_list_the_known() {
        for &stage in Stage::ALL {
            assert_eq!(stage.name().parse::<Stage>().unwrap(), stage);
        }
        let error = "ffn_out".parse::<Stage>().unwrap_err().to_string();
        assert!(error.contains("ffn_out") && error.contains("moe_ffn_out") && error.contains("logits"), "{error}");
    }

    #[test]
    fn a_selection_limits_layers_only_inside_of_layers() {
        let selection = Selection { layers: Some(vec![1]), ..Selection::default() };
        assert!(selection.contains(Stage::Embedding, None));
        assert!(selection.contains(Stage::Q, Some(1)));
        assert!(!selection.contains(Stage::Q, Some(0)));
        // A stage and a layer that are both chosen, and all three ways in which they are not.
        let selection = Selection { stages: Some(vec![Stage::Q]), ..selection };
        let contains = [(Stage::Q, 1), (Stage::Q, 0), (Stage::K, 1), (Stage::K, 0)]
            .map(|(stage, layer)| selection.contains(stage, Some(layer)));
        assert_eq!(contains, [true, false, false, false]);
        assert!(!selection.contains(Stage::Embedding, None) && !selection.contains(Stage::Logits, None));
        let all = Selection::default();
        assert!(Stage::ALL.iter().all(|&stage| all.contains(stage, None) && all.contains(stage, Some(7))));
    }

    #[test]
    fn three_stages_are_outside_of_the_layers() {
        let outside: Vec<Stage> = Stage::ALL.iter().copied().filter(|stage| !stage.in_layer()).collect();
        assert_eq!(outside, [Stage::Embedding, Stage::OutputNorm, Stage::Logits]);
        assert_eq!(Stage::ALL.len(), 25);
        assert!(Stage::ALL.is_sorted());
    }

    #[test]
    fn sinks_say_what_they_want() {
        const { assert!(!NoTrace::ENABLED && <Select<fn(Record<'_>) -> Result<()>>>::ENABLED) };
        assert!(Stage::ALL.iter().all(|&stage| !NoTrace.wants(stage, Some(0))));
        assert_eq!(NoTrace.positions(), Positions::All);
        let mut seen = Vec::new();
        let record = |record: Record<'_>| {
            seen.push(record.position);
            if record.position == 2 { Err(Error::Invalid("full".into())) } else { Ok(()) }
        };
        let selection = Selection { positions: Positions::Last, stages: Some(vec![Stage::Q]), layers: None };
        let mut select = Select { selection, record };
        assert!(select.wants(Stage::Q, Some(3)) && !select.wants(Stage::K, Some(3)));
        assert_eq!(select.positions(), Positions::Last);
        let at =
            |position| Record { stage: Stage::Q, layer: Some(3), position, shape: &[1, 1], data: Data::F32(&[1.0]) };
        assert!(select.record(at(1)).is_ok() && select.record(at(2)).is_err());
        assert_eq!(seen, [1, 2]);
    }
}
