//! The time of each kernel of a decode step and of a prefill on a GPU.
//!
//! A step is recorded again with the launches of one kernel only, over the weights of all layers, and replayed. What comes
//! between the kernels of a whole step is then not in it, and launches of one kernel overlap where they depend on nothing.

use kquant_moe::device::{CudaDevice, Device as _, Probe};
use kquant_moe::model::gpu::{Gpu, weight_reads};
use kquant_moe::model::{Context, Model};
use kquant_moe::{Error, Result};
use serde_json::{Value, json};

use super::bench::median;
use super::input::Source;

/// Steps in a recording, and replays of it in a row, at most: the time that the device takes to start counts little among so
/// many.
const STEPS: usize = 8;
const REPLAYS: usize = 8;
/// Kernels that read less than this in a step say nothing about bandwidth.
const MUCH: u64 = 1 << 20;

/// The backend that is measured.
pub type Probed = Gpu<Probe<CudaDevice>>;

/// The kernels of a decode step.
pub struct Kernels {
    /// Where the measured step begins.
    pub position: usize,
    /// In the order of the step.
    pub rows: Vec<Row>,
    /// Launches of the whole step.
    pub launches: usize,
    /// Seconds of the whole step, replayed from the same position on: each one a graph, as tokens are decoded.
    pub replayed: f64,
    /// The same steps in one graph, without the time between graphs.
    pub joined: f64,
}

/// The launches of one kernel in a decode step.
pub struct Row {
    /// Its name.
    pub kernel: &'static str,
    /// Launches.
    pub launches: usize,
    /// Bytes of weights, and of the cache for attention, that they read.
    pub bytes: u64,
    /// Seconds of all of them.
    pub seconds: f64,
}

impl Kernels {
    /// Measures at the context's position, behind which there must be one more. The context must have decoded tokens.
    /// `cache_bytes`: those that the step reads. Every figure is the median of `runs` after one that does not count.
    pub fn measure(
        source: &Source,
        model: &Model<Probed>,
        context: &mut Context<Probed>,
        cache_bytes: u64,
        runs: usize,
    ) -> Result<Self> {
        let probe = model.backend().device();
        let position = context.position();
        probe.only(None);
        probe.take_counts();
        let (launches, replayed) = time(model, context, [1, STEPS], runs)?;
        let kernels = probe.take_counts();
        let (_, joined) = time(model, context, [STEPS, 1], runs)?;
        let mut reads = weight_reads(&source.config, &source.tensors, probe.slow_fp64());
        *reads.entry("attention").or_default() += cache_bytes;
        let mut rows = Vec::new();
        for (kernel, _) in kernels {
            probe.only(Some(kernel));
            let measured = time(model, context, [STEPS, REPLAYS], runs);
            probe.only(None);
            let (launches, seconds) = measured?;
            rows.push(Row { kernel, launches, bytes: reads.get(kernel).copied().unwrap_or(0), seconds });
        }
        Ok(Self { position, rows, launches, replayed, joined })
    }

    /// Seconds of all kernels.
    fn sum(&self) -> f64 {
        self.rows.iter().map(|row| row.seconds).sum()
    }

    /// A table. `step`: seconds of a decoded token by the device's clock; `copy`: bytes per second of a copy.
    pub fn table(&self, step: f64, copy: f64) -> String {
        let mut text =
            format!("{:<16}{:>8}{:>10}{:>10}{:>9}{:>9}\n", "kernel", "launches", "us", "MB", "GB/s", "of copy");
        let line = |name: &str, launches: Option<usize>, seconds: f64, rest: String| {
            let launches = launches.map_or(String::new(), |count| count.to_string());
            let text = format!("{name:<16}{launches:>8}{:>10.1}{rest}", seconds * 1e6);
            text.trim_end().to_owned() + "\n"
        };
        for Row { kernel, launches, bytes, seconds } in &self.rows {
            let rest = rate(*bytes, *seconds).map_or(String::new(), |rate| {
                format!("{:>10.1}{:>9.0}{:>8.1}%", *bytes as f64 / 1e6, rate / 1e9, 100.0 * rate / copy)
            });
            text += &line(kernel, Some(*launches), *seconds, rest);
        }
        let sum = self.sum();
        let launches = self.rows.iter().map(|row| row.launches).sum();
        text += &line("sum of kernels", Some(launches), sum, String::new());
        text += &line("step", Some(self.launches), step, String::new());
        text += &line("difference", None, step - sum, String::new());
        let Self { position, replayed, joined, .. } = self;
        let (replayed, joined) = (replayed * 1e6, joined * 1e6);
        text += &format!(
            "Kernels replayed alone, at position {position}. Whole steps replayed from there on: {replayed:.1} us each, in one \
             graph {joined:.1} us.\n"
        );
        text
    }

    /// The same for programs.
    pub fn json(&self, step: f64, copy: f64) -> Value {
        let rows = self.rows.iter().map(|Row { kernel, launches, bytes, seconds }| {
            let rate = rate(*bytes, *seconds);
            json!({
                "kernel": kernel,
                "launches": launches,
                "us": seconds * 1e6,
                "bytes": bytes,
                "bytes_per_second": rate,
                "share_of_copy_bandwidth": rate.map(|rate| rate / copy),
            })
        });
        json!({
            "position": self.position,
            "kernels": rows.collect::<Vec<_>>(),
            "launches": self.launches,
            "sum_us": self.sum() * 1e6,
            "step_us": step * 1e6,
            "difference_us": (step - self.sum()) * 1e6,
            "replayed_step_us": self.replayed * 1e6,
            "joined_step_us": self.joined * 1e6,
        })
    }
}

/// Bytes per second, where there are enough of them.
fn rate(bytes: u64, seconds: f64) -> Option<f64> {
    (bytes >= MUCH).then(|| bytes as f64 / seconds)
}

/// The kernels of a prefill, with the seconds of each one alone: a prompt is computed again with the launches of one kernel only, on what
/// the others left in its operands. What a prompt takes without any launch is not in them. `prompt` computes the prompt, and says how long it
/// took; the figures are medians of `runs` after one that does not count.
pub fn measure_prefill(
    probe: &Probe<CudaDevice>,
    runs: usize,
    mut prompt: impl FnMut() -> Result<f64>,
) -> Result<Vec<Row>> {
    /// No kernel has this name.
    const NONE: &str = "none";
    let mut seconds_of = |kernel| -> Result<f64> {
        probe.only(kernel);
        let times = (0..=runs).map(|_| prompt()).collect::<Result<Vec<_>>>();
        probe.only(None);
        Ok(median(&times?[1..]))
    };
    probe.take_counts();
    seconds_of(None)?;
    let kernels = probe.take_counts();
    let without = seconds_of(Some(NONE))?;
    let rows = kernels.into_iter().map(|(kernel, launches)| {
        let seconds = (seconds_of(Some(kernel))? - without).max(0.0);
        Ok(Row { kernel, launches: launches / (runs + 1), bytes: 0, seconds })
    });
    rows.collect()
}

/// A table of [`measure_prefill`], in which `seconds` are those of the whole prompt.
pub fn prefill_table(rows: &[Row], seconds: f64) -> String {
    let mut text = format!("{:<16}{:>8}{:>10}{:>9}\n", "kernel", "launches", "us", "share");
    for Row { kernel, launches, seconds: alone, .. } in rows {
        text += &format!("{kernel:<16}{launches:>8}{:>10.1}{:>8.1}%\n", alone * 1e6, 100.0 * alone / seconds);
    }
    text + &format!("{:<16}{:>8}{:>10.1}\n", "prefill", "", seconds * 1e6)
}

/// The same for programs.
pub fn prefill_json(rows: &[Row]) -> Value {
    rows.iter()
        .map(|Row { kernel, launches, seconds, .. }| json!({ "kernel": kernel, "launches": launches, "us": seconds * 1e6 }))
        .collect()
}

/// Launches and seconds of a step, as the probe lets it be recorded, with at most so many in a recording and replays of it.
fn time(
    model: &Model<Probed>,
    context: &mut Context<Probed>,
    [steps, replays]: [usize; 2],
    runs: usize,
) -> Result<(usize, f64)> {
    // A step may advance the position.
    let room = context.capacity() - context.position();
    let steps = steps.min(room);
    let replays = replays.min(room / steps);
    let recorded = context.record_steps(model, steps)?;
    let mut recorded = recorded.ok_or_else(|| Error::Cuda("the decode step was not recorded".into()))?;
    let launches = recorded.graph().launches()? / steps;
    let mut times = Vec::new();
    for run in 0..=runs {
        let mut marks = Vec::new();
        recorded.replay(replays, |backend| {
            marks.push(backend.device().device().mark()?);
            Ok(())
        })?;
        if let ([start, end], true) = (&marks[..], run > 0) {
            times.push(end.seconds_since(start)? / (steps * replays) as f64);
        }
    }
    Ok((launches, median(&times)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels() -> Kernels {
        let row = |kernel, launches, bytes, us: f64| Row { kernel, launches, bytes, seconds: us / 1e6 };
        let rows = vec![row("embedding", 1, 1152, 2.0), row("qkv", 48, 300_000_000, 200.0), row("argmax", 1, 0, 4.0)];
        Kernels { position: 64, rows, launches: 50, replayed: 231e-6, joined: 228e-6 }
    }

    #[test]
    fn the_table_has_bandwidth_where_there_is_some() {
        let expected = "\
kernel          launches        us        MB     GB/s  of copy
embedding              1       2.0
qkv                   48     200.0     300.0     1500    37.5%
argmax                 1       4.0
sum of kernels        50     206.0
step                  50     250.0
difference                    44.0
Kernels replayed alone, at position 64. Whole steps replayed from there on: 231.0 us each, in one graph 228.0 us.
";
        assert_eq!(kernels().table(250e-6, 4e12), expected);
    }

    #[test]
    fn a_prefill_has_its_kernels_with_their_shares() {
        let row = |kernel, launches, us: f64| Row { kernel, launches, bytes: 0, seconds: us / 1e6 };
        let rows = [row("moe_swiglu", 48, 600.0), row("qkv", 48, 250.0)];
        let expected = "\
kernel          launches        us    share
moe_swiglu            48     600.0    60.0%
qkv                   48     250.0    25.0%
prefill                     1000.0
";
        assert_eq!(prefill_table(&rows, 1e-3), expected);
        assert_eq!(prefill_json(&rows)[1], json!({ "kernel": "qkv", "launches": 48, "us": 250.0 }));
    }

    #[test]
    fn the_json_has_the_same_figures() {
        let json = kernels().json(250e-6, 4e12);
        let close = |value: &Value, expected: f64| (value.as_f64().unwrap() - expected).abs() < 1e-6 * expected;
        assert!(json["kernels"][0]["bytes_per_second"].is_null() && json["kernels"][0]["bytes"] == 1152);
        assert!(close(&json["kernels"][1]["share_of_copy_bandwidth"], 0.375));
        assert!(close(&json["sum_us"], 206.0) && close(&json["difference_us"], 44.0));
        assert!(close(&json["replayed_step_us"], 231.0) && close(&json["joined_step_us"], 228.0));
        assert_eq!(json["launches"], 50);
    }
}
