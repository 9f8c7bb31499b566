//! How the next token is chosen: the most probable one, or one that is drawn.

use std::ops::ControlFlow;

use kquant_moe::model::{Backend, Context, Model};
use kquant_moe::oracle::sample::Sampling;
use kquant_moe::{Error, Result};

/// Without any of these the most probable token is taken.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sampling (without any of these, the most probable token is taken)")]
pub struct SamplingArgs {
    /// Draw tokens at this temperature; 0 takes the most probable one [default: 1 with another of these]
    #[arg(long, value_name = "T")]
    pub temp: Option<f32>,
    /// Draw from the K most probable tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Draw from the most probable tokens that together have this share of the probability
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Draw from tokens with at least this part of the most probable one's probability
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Selects one of many texts; the same seed gives the same text on every machine [default: 0]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
}

impl SamplingArgs {
    /// How tokens are drawn; none when the most probable one is taken.
    pub fn sampling(&self) -> Result<Option<Sampling>> {
        self.checked().map_err(|fault| Error::Invalid(format!("--temp, --top-p, --min-p: {fault}")))
    }

    /// The same, or what is wrong with the values.
    pub fn checked(&self) -> Result<Option<Sampling>, String> {
        let Self { temp, top_k, top_p, min_p, seed } = *self;
        let any = temp.is_some() || top_k.is_some() || top_p.is_some() || min_p.is_some() || seed.is_some();
        if !any || temp == Some(0.0) {
            return Ok(None);
        }
        let usual = Sampling::default();
        let sampling = Sampling {
            temperature: temp.unwrap_or(usual.temperature),
            top_k: top_k.unwrap_or(usual.top_k),
            top_p: top_p.unwrap_or(usual.top_p),
            min_p: min_p.unwrap_or(usual.min_p),
            seed: seed.unwrap_or(usual.seed),
            ..usual
        };
        match sampling.fault() {
            Some(fault) => Err(fault),
            None => Ok(Some(sampling)),
        }
    }
}

/// Appends a prompt and generates up to `count` tokens in either way.
pub fn generate<B: Backend>(
    model: &Model<B>,
    context: &mut Context<B>,
    prompt: &[u32],
    count: usize,
    sampling: Option<&Sampling>,
    each: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<u32>> {
    match sampling {
        None => context.generate(model, prompt, count, each),
        Some(sampling) => context.generate_sampled(model, prompt, count, sampling, each),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_option_turns_sampling_on_and_a_temperature_of_0_off() {
        let usual = Sampling::default();
        let none = SamplingArgs::default();
        for (args, expected) in [
            (none.clone(), None),
            (SamplingArgs { temp: Some(0.0), top_k: Some(5), seed: Some(1), ..none.clone() }, None),
            (SamplingArgs { temp: Some(0.5), ..none.clone() }, Some(Sampling { temperature: 0.5, ..usual })),
            (SamplingArgs { top_k: Some(5), ..none.clone() }, Some(Sampling { top_k: 5, ..usual })),
            (SamplingArgs { top_p: Some(0.5), ..none.clone() }, Some(Sampling { top_p: 0.5, ..usual })),
            (SamplingArgs { min_p: Some(0.5), ..none.clone() }, Some(Sampling { min_p: 0.5, ..usual })),
            (SamplingArgs { seed: Some(5), ..none.clone() }, Some(Sampling { seed: 5, ..usual })),
        ] {
            assert_eq!(args.sampling().unwrap(), expected, "{args:?}");
        }
        assert!(SamplingArgs { temp: Some(-1.0), ..none }.sampling().is_err());
    }
}
