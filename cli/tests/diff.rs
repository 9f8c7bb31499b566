//! `diff`: from two traces to the stage where they part, and from there to the tensor.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use kquant_moe::gguf::GgmlType;
use serde_json::Value as Json;
use tempfile::TempDir;

/// A trace of the tiny model in a new directory.
fn trace(dir: &TempDir, name: &str, more: &[&str]) -> PathBuf {
    let out = path(dir, name);
    succeeds(&[&["trace", TINY, "--tokens", "766,306,598", "--backend", "cpu", "--out", &out], more].concat());
    out.into()
}

/// Exit code and output of `diff`.
fn diff(a: &Path, b: &Path, more: &[&str]) -> (i32, String) {
    let output = run(&[&["diff", a.to_str().unwrap(), b.to_str().unwrap()], more].concat());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// Overwrites the values of a file, from one index on.
fn poke(file: &Path, index: usize, values: &[f32]) {
    let mut bytes = fs::read(file).unwrap();
    let data = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    for (value, place) in values.iter().zip(bytes[data + 4 * index..].chunks_mut(4)) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    fs::write(file, bytes).unwrap();
}

#[test]
fn diff_names_the_stage_where_traces_part() {
    let dir = TempDir::new().unwrap();
    let (a, b) = (trace(&dir, "a", &[]), trace(&dir, "b", &[]));
    let (code, text) = diff(&a, &b, &[]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(text, "91 stages compared, all bits are equal\n");

    // One value of one stage is a little off, another stage is far off, a third has a NaN, a fourth is gone.
    let (_, v) = npy::<f32>(b.join("layer01.v.npy"));
    poke(&b.join("layer01.v.npy"), 5, &[v[5].next_up()]);
    poke(&b.join("layer02.attn_norm.npy"), 0, &[1e6]);
    poke(&b.join("layer02.q.npy"), 7, &[f32::NAN]);
    fs::remove_file(b.join("layer01.k.npy")).unwrap();
    let (code, text) = diff(&a, &b, &[]);
    assert_eq!(code, 1, "{text}");
    let verdict = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().nth(1);
    assert_eq!(verdict("layer01.v "), Some("Match"));
    assert_eq!(verdict("layer01.k "), Some("Missing"));
    assert_eq!(verdict("layer02.attn_norm"), Some("Diverge"));
    assert_eq!(verdict("layer02.q "), Some("NanB"));
    let last = text.lines().last().unwrap();
    assert!(last.contains("the first that diverges is layer02.attn_norm (Diverge)"), "{last}");
    assert!(last.contains("agrees is layer01.ffn_residual (Equal)"), "{last}");
    assert!(last.ends_with("; the first whose bits differ is layer01.v (Match)"), "{last}");
    let (code, json) = diff(&a, &b, &["--json"]);
    let report: Json = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &report["first_divergence"]), (1, &Json::from("layer02.attn_norm")));
    assert_eq!(report["first_difference"], "layer01.v");
    let row = report["stages"].as_array().unwrap().iter().find(|row| row["name"] == "layer01.v").unwrap();
    assert_eq!((&row["max_ulps"], &row["first_bad"]), (&Json::from(1), &Json::from(5)));

    // The first trace is the one with the NaN when they are given the other way round.
    assert!(diff(&b, &a, &[]).1.contains("NanA"));
    // What the manifests say of the traces is compared: of the same model, which tokens and which of them.
    let note = |other: &Path| {
        let output = run(&["diff", a.to_str().unwrap(), other.to_str().unwrap()]);
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(note(&b), "");
    assert_eq!(note(&trace(&dir, "positions", &["--positions", "last"])), "note: the manifests differ in positions\n");
    let tokens = path(&dir, "tokens");
    succeeds(&["trace", TINY, "--tokens", "766,306,599", "--backend", "cpu", "--out", &tokens]);
    assert_eq!(note(Path::new(&tokens)), "note: the manifests differ in tokens\n");
    // A stricter bound.
    fs::remove_file(b.join("layer02.attn_norm.npy")).unwrap();
    fs::remove_file(b.join("layer02.q.npy")).unwrap();
    let (code, text) = diff(&a, &b, &[]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.ends_with(
            "88 stages compared, all agree (3 in one trace only); the first whose bits differ is layer01.v (Match)\n"
        ),
        "{text}"
    );
    // Bounds that a stage passes, and that it does not.
    assert_eq!(diff(&a, &b, &["--min-cosine", "0.999"]).0, 0);
    assert_eq!(diff(&a, &b, &["--min-cosine", "1.001"]).0, 1);
    assert_eq!(diff(&a, &b, &["--min-cosine", "1.001", "--json"]).0, 1);
    let (_, q) = npy::<f32>(b.join("layer03.q.npy"));
    poke(&b.join("layer03.q.npy"), 0, &q.iter().map(|x| x * 0.5).collect::<Vec<_>>());
    assert_eq!(["0.49", "0.51", "0.99"].map(|bound| diff(&a, &b, &["--min-cosine", bound]).0), [0, 1, 1]);
    poke(&b.join("layer03.q.npy"), 0, &q);
    let (code, text) = diff(&a, &b, &["--exact"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("the first that diverges is layer01.v (Diverge)"), "{text}");
}

/// From a file with one wrong block, or with a wrong type, to its name.
#[test]
fn trace_and_diff_lead_to_the_tensor_that_is_wrong() {
    let dir = TempDir::new().unwrap();
    let good = trace(&dir, "good", &[]);
    // Q4_K in layer 1 and Q6_K in layer 3; the factor of the first block of row 9, of the expert that the first token
    // prefers.
    for (layer, part, stage, before, bytes, factor) in [
        (1, "ffn_gate_exps", "moe_expert_gate", "moe_router_indices", 144, 0),
        (3, "ffn_down_exps", "moe_expert_out", "moe_expert_swiglu", 210, 208),
        (0, "attn_output", "attn_proj", "attn_out", 144, 0),
    ] {
        let expert = match part {
            "attn_output" => 0,
            _ => npy::<u32>(good.join(format!("layer{layer:02}.moe_router_indices.npy"))).1[0] as usize,
        };
        let name = format!("blk.{layer}.{part}.weight");
        for (lowest_bit, more) in [(false, &[][..]), (true, &["--exact"][..])] {
            let spoil = |part: &mut Part| {
                if part.name == name {
                    let row = expert * part.dims[1] as usize + 9;
                    let at = row * (part.dims[0] as usize / 256) * bytes + factor;
                    // The lowest bit of a factor, or its exponent: 2^4 times as much.
                    if lowest_bit { part.data[at] ^= 1 } else { part.data[at + 1] += 4 << 2 }
                }
                true
            };
            let out = path(&dir, &format!("{part}-{lowest_bit}"));
            let model = changed(&dir, spoil, &[]);
            succeeds(&["trace", &model, "--tokens", "766,306,598", "--backend", "cpu", "--out", &out]);
            let output = run(&[&["diff", good.to_str().unwrap(), &out], more].concat());
            assert_eq!(output.status.code(), Some(1), "{name}");
            assert_eq!(String::from_utf8(output.stderr).unwrap(), "note: the manifests differ in model_sha256\n");
            let text = String::from_utf8(output.stdout).unwrap();
            let expected = format!(
                "the first that diverges is layer{layer:02}.{stage} (Diverge); \
                 the last stage before it that agrees is layer{layer:02}.{before} (Equal)\n"
            );
            assert!(text.ends_with(&expected), "{text}");
        }
    }
    let name = "blk.2.ffn_up_exps.weight";
    let mislabel = |part: &mut Part| {
        if part.name == name {
            part.kind = GgmlType::from_number(14).unwrap();
            part.data.resize(part.data.len() / 144 * 210, 0);
        }
        true
    };
    let out = path(&dir, "mislabelled");
    fails_with(&["trace", &changed(&dir, mislabel, &[]), "--tokens", "1", "--out", &out], &[name, "not finite"]);
}

#[test]
fn diff_reads_what_other_programs_write() {
    let dir = TempDir::new().unwrap();
    let a = trace(&dir, "a", &["--stages", "embedding,moe_router_indices", "--layers", "0"]);
    let b = dir.path().join("b");
    fs::create_dir(&b).unwrap();
    let write = |name: &str, descr: &str, shape: &str, data: &[u8]| {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let len = (header.len() as u16).to_le_bytes();
        fs::write(b.join(name), [b"\x93NUMPY\x01\x00", &len[..], header.as_bytes(), data].concat()).unwrap();
    };
    let (_, embedding) = npy::<f32>(a.join("embedding.npy"));
    let doubles: Vec<u8> = embedding.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect();
    let halves: Vec<u8> = embedding.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect();
    let (_, indices) = npy::<u32>(a.join("layer00.moe_router_indices.npy"));
    let signed: Vec<u8> = indices.iter().flat_map(|&value| (value as i32).to_le_bytes()).collect();
    write("layer00.moe_router_indices.npy", "<i4", "(12,)", &signed);
    write("embedding.npy", "<f8", "(3, 256)", &doubles);
    write("notes.npy", "<f4", "(1,)", &[0; 4]);
    let (code, text) = diff(&a, &b, &[]);
    assert_eq!((code, text.as_str()), (0, "2 stages compared, all bits are equal\n"));
    write("embedding.npy", "<f2", "(768,)", &halves);
    let (code, text) = diff(&a, &b, &[]);
    assert_eq!((code, text.matches(" Match ").count()), (0, 1), "{text}");
    write("embedding.npy", "<f4", "(0,)", &[]);
    assert_eq!(diff(&a, &b, &[]).0, 1);

    let [a, b] = [a, b.clone()].map(|dir| dir.to_str().unwrap().to_owned());
    write("embedding.npy", "<i8", "(1,)", &[0; 8]);
    fails_with(&["diff", &a, &b], &["embedding.npy", "<i8"]);
    write("embedding.npy", "<f4", "(99,)", &[0; 8]);
    fails_with(&["diff", &a, &b], &["embedding.npy", "[99]"]);
    let empty = path(&dir, "empty");
    fails_with(&["diff", &a, &empty], &["empty", "No such file"]);
    fs::create_dir(&empty).unwrap();
    fails_with(&["diff", &a, &empty], &["no stage in common"]);
}
