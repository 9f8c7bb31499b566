//! `diff`: two traces, stage by stage.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kquant_moe::diff::{Comparison, Point, Report, Summary};
use kquant_moe::{Error, Result};
use serde_json::{Value, json};

use super::Outcome;
use super::npy;
use super::output::{self, Out, io_error};

/// Compares the values in two directories: those that `trace` wrote, or `.npy` files (f16, f32, f64, i32, u32) of another
/// program with the same names. Fails when a stage that both have diverges.
#[derive(clap::Args)]
pub struct Args {
    /// Directory of the first trace
    a: PathBuf,
    /// Directory of the second trace
    b: PathBuf,
    /// Stages with a smaller cosine diverge
    #[arg(long, value_name = "COSINE", default_value_t = 0.99)]
    min_cosine: f64,
    /// Stages diverge unless all their bits are equal
    #[arg(long, conflicts_with = "min_cosine")]
    exact: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn diff(args: &Args, out: &mut Out) -> Result<Outcome> {
    let (a, b) = (stages(&args.a)?, stages(&args.b)?);
    let mut points: Vec<Point> = a.keys().chain(b.keys()).copied().collect();
    points.sort_unstable();
    points.dedup();
    let min_cosine = if args.exact { f64::INFINITY } else { args.min_cosine };
    // One stage at a time: traces can be larger than memory.
    let rows = points.into_iter().map(|point| {
        let read = |files: &BTreeMap<Point, PathBuf>| files.get(&point).map(|path| npy::read(path)).transpose();
        Ok((point, Comparison::new(read(&a)?.as_ref(), read(&b)?.as_ref(), min_cosine)))
    });
    let report = Report::new(rows.collect::<Result<_>>()?);
    if report.compared() == 0 {
        let message = format!("{} and {} have no stage in common", args.a.display(), args.b.display());
        return Err(Error::Invalid(message));
    }
    for difference in manifest_differences(&args.a, &args.b) {
        output::report("note", &difference);
    }
    if args.json {
        out.json(&json_report(&report))?;
    } else {
        // Of traces that are equal there is nothing to say of each stage.
        if report.compared() < report.rows.len() || report.first_difference().is_some() {
            table(&report.rows, out)?;
        }
        out.line(conclusion(&report))?;
    }
    Ok(if report.first_divergence().is_some() { Outcome::Failed } else { Outcome::Ok })
}

/// The files of a directory whose names are those of stages.
fn stages(dir: &Path) -> Result<BTreeMap<Point, PathBuf>> {
    let entries = fs::read_dir(dir).map_err(|source| io_error(dir, source))?;
    let mut found = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(|source| io_error(dir, source))?.path();
        let stem = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".npy"));
        if let Some(point) = stem.and_then(|stem| stem.parse().ok()) {
            found.insert(point, path);
        }
    }
    Ok(found)
}

/// What the manifests say that makes a comparison pointless. Other programs need not write one.
fn manifest_differences(a: &Path, b: &Path) -> Vec<String> {
    let read =
        |dir: &Path| -> Option<Value> { serde_json::from_slice(&fs::read(dir.join("manifest.json")).ok()?).ok() };
    let (Some(a), Some(b)) = (read(a), read(b)) else { return Vec::new() };
    let differ = |key: &&str| a.get(key).zip(b.get(key)).is_some_and(|(a, b)| a != b);
    let keys = ["model_sha256", "tokens", "positions"].into_iter().filter(differ);
    keys.map(|key| format!("the manifests differ in {key}")).collect()
}

/// Writes a table of stages.
pub fn table(rows: &[(Point, Comparison)], out: &mut Out) -> Result<()> {
    out.line(format_args!(
        "{:<28} {:<8} {:>11} {:>10} {:>11}  {:<9} {:<20} {:<20}",
        "stage", "verdict", "cosine", "rel. L2", "max ulps", "first bad", "A: min max", "B: min max"
    ))?;
    for (point, row) in rows {
        let number = |value: Option<f64>, digits: usize| value.map_or("-".into(), |value| format!("{value:.digits$}"));
        let small = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2e}"));
        let index = |value: Option<usize>| value.map_or("-".into(), |value| value.to_string());
        out.line(
            format!(
                "{:<28} {:<8} {:>11} {:>10} {:>11}  {:<9} {:<20} {:<20}",
                point,
                row.verdict,
                number(row.cosine, 8),
                small(row.relative_l2),
                row.max_ulps.map_or("-".into(), |ulps| ulps.to_string()),
                index(row.first_bad),
                range(row.a.as_ref()),
                range(row.b.as_ref()),
            )
            .trim_end(),
        )?;
    }
    Ok(())
}

/// Smallest and largest value, and what is not finite.
fn range(side: Option<&(Vec<usize>, Summary)>) -> String {
    let Some((_, Summary { nan, inf, range, .. })) = side else { return "-".into() };
    let mut text = range.map_or("none".into(), |(min, max)| format!("{min:.3e} {max:.3e}"));
    for (count, name) in [(nan, "NaN"), (inf, "Inf")] {
        if *count > 0 {
            text += &format!(" {count} {name}");
        }
    }
    text
}

/// What the table comes to.
pub fn conclusion(report: &Report) -> String {
    let missing = report.rows.len() - report.compared();
    let missing = if missing > 0 { format!(" ({missing} in one trace only)") } else { String::new() };
    let count = report.compared();
    let agreed = report.last_agreement().map_or("nothing before it agrees".into(), |(point, row)| {
        format!("the last stage before it that agrees is {point} ({})", row.verdict)
    });
    let diverges = report.first_divergence();
    let inexact = report.first_difference().filter(|first| Some(*first) != diverges);
    let inexact = inexact
        .map_or(String::new(), |(point, row)| format!("; the first whose bits differ is {point} ({})", row.verdict));
    match diverges {
        None if missing.is_empty() && inexact.is_empty() => format!("{count} stages compared, all bits are equal"),
        None => format!("{count} stages compared, all agree{missing}{inexact}"),
        Some((point, row)) => {
            let verdict = row.verdict;
            format!(
                "{count} stages compared{missing}: the first that diverges is {point} ({verdict}); {agreed}{inexact}"
            )
        }
    }
}

/// The report as JSON.
pub fn json_report(report: &Report) -> Value {
    let side = |side: &Option<(Vec<usize>, Summary)>| {
        side.as_ref().map(|(shape, summary)| {
            json!({
                "shape": shape,
                "nan": summary.nan,
                "inf": summary.inf,
                "min": summary.range.map(|range| range.0),
                "max": summary.range.map(|range| range.1),
            })
        })
    };
    let rows = report.rows.iter().map(|(point, row)| {
        json!({
            "name": point.to_string(),
            "stage": point.stage.name(),
            "layer": point.layer,
            "verdict": row.verdict.to_string(),
            "differing": row.differing,
            "first_bad": row.first_bad,
            "cosine": row.cosine,
            "relative_l2": row.relative_l2,
            "max_ulps": row.max_ulps,
            "a": side(&row.a),
            "b": side(&row.b),
        })
    });
    let diverges = report.first_divergence();
    json!({
        "stages": rows.collect::<Vec<_>>(),
        "compared": report.compared(),
        "diverges": diverges.is_some(),
        "first_divergence": diverges.map(|(point, _)| point.to_string()),
        "first_difference": report.first_difference().map(|(point, _)| point.to_string()),
        "last_agreement": report.last_agreement().map(|(point, _)| point.to_string()),
    })
}
