//! Many prompts at once: `generate`, and what else computes through a pool of sequences.

mod common;

use common::*;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

/// Prompts of many lengths, some of which begin with the same pages, drawn and not.
fn requests() -> Vec<Json> {
    let long = "    let x = 1;\n".repeat(20);
    vec![
        json!({"id": "main", "prompt": "fn main() {\n", "n": 24}),
        json!({"id": 7, "prompt": "pub struct ", "n": 9, "temp": 1.2, "seed": 3}),
        json!({"id": -7, "prompt": "pub struct ", "n": 9, "temp": 1.2, "seed": 4}),
        json!({"id": "tokens", "tokens": [766, 306, 598, 284, 280], "n": 1}),
        json!({"id": "none", "prompt": "x", "n": 0}),
        json!({"id": "long a", "prompt": format!("{long}a"), "n": 5}),
        json!({"id": "long b", "prompt": format!("{long}b"), "n": 12, "top_k": 5, "top_p": 0.9, "min_p": 0.01}),
        json!({"id": "again", "prompt": format!("{long}a"), "n": 5}),
        json!({"id": "usual", "prompt": "use "}),
    ]
}

fn lines(requests: &[Json]) -> Vec<u8> {
    requests.iter().map(|request| format!("{request}\n")).collect::<String>().into_bytes()
}

/// The lines of what comes out, by their ids, and the last line of the notes.
#[track_caller]
fn answers(args: &[&str], input: &[u8], code: i32) -> (Vec<Json>, String) {
    let output = run_with(&[&["generate", "--backend", "cpu"], args].concat(), input);
    let notes = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {notes}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<Json> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.sort_by_key(|line| line["id"].to_string());
    (lines, notes.lines().last().unwrap_or_default().to_owned())
}

#[test]
fn what_is_generated_depends_on_the_line_alone() {
    let dir = TempDir::new().unwrap();
    let requests = requests();
    let input = lines(&requests);
    let (expected, notes) = answers(&["--parallel", "1"], &input, 0);
    assert_eq!(expected.len(), requests.len());
    assert!(notes.starts_with("cpu (") && notes.contains("for 9 prompts") && notes.contains("tokens/s"), "{notes}");
    // Two of the long ones begin as the first one does: 100 tokens and more, of which full pages are shared.
    let shared =
        |notes: &str| notes.split("of which ").nth(1).unwrap().split(' ').next().unwrap().parse::<usize>().unwrap();
    assert!(shared(&notes) >= 2 * 64, "{notes}");
    for parallel in ["3", "16"] {
        let (found, notes) = answers(&["--parallel", parallel], &input, 0);
        assert_eq!(found, expected, "{parallel}");
        assert!(shared(&notes) >= 2 * 64, "{notes}");
    }
    let reversed: Vec<Json> = requests.iter().rev().cloned().collect();
    let file = path(&dir, "reversed.jsonl");
    std::fs::write(&file, lines(&reversed)).unwrap();
    assert_eq!(answers(&["--parallel", "3", "-q", &file], b"", 0), (expected.clone(), String::new()));
    // A pool that is full most of the time: no two of the long ones fit.
    let longest = expected.iter().filter(|line| line["id"].to_string().contains("long")).count();
    assert_eq!(longest, 2);
    assert_eq!(answers(&["--parallel", "16", "--pages", "4", "-"], &lines(&reversed), 0).0, expected);

    // What `run` gives, one at a time.
    let text = |id: &str| expected.iter().find(|line| line["id"] == id).unwrap()["text"].as_str().unwrap().to_owned();
    let main = &prompts()["main"];
    let found = expected.iter().find(|line| line["id"] == "main").unwrap();
    assert_eq!(
        (&found["text"], &found["tokens"], &found["finish"]),
        (&main["greedy_text"], &main["greedy_24"], &json!("length"))
    );
    assert_eq!(found.as_object().unwrap().keys().collect::<Vec<_>>(), ["id", "text", "tokens", "finish"]);
    assert_eq!(text("usual") + "\n", succeeds(&["run", "-q", "-p", "use "]));
    let seven = expected.iter().find(|line| line["id"] == 7).unwrap();
    let drawn = succeeds(&["run", "-q", "-p", "pub struct ", "-n", "9", "--temp", "1.2", "--seed", "3"]);
    assert_eq!(seven["text"].as_str().unwrap().to_owned() + "\n", drawn);
    assert_ne!(expected.iter().find(|line| line["id"] == -7).unwrap()["text"], seven["text"]);
    let prompt = requests[6]["prompt"].as_str().unwrap();
    let drawn = ["run", "-q", "-n", "12", "--top-k", "5", "--top-p", "0.9", "--min-p", "0.01", "-p", prompt];
    assert_eq!(text("long b") + "\n", succeeds(&drawn));
    assert_eq!(text("again"), text("long a"));
    assert_eq!(expected.iter().find(|line| line["id"] == "none").unwrap()["tokens"], json!([]));
}

#[test]
fn a_text_stops_at_an_end_token() {
    let dir = TempDir::new().unwrap();
    let main = &prompts()["main"];
    let end = main["greedy_24"][7].as_u64().unwrap() as u32;
    let value = Some(kquant_moe::gguf::Value::U32(end));
    let model = changed(&dir, keep, &[("tokenizer.ggml.eos_token_id", value)]);
    let input =
        lines(&[json!({"id": 1, "prompt": "fn main() {\n"}), json!({"id": 2, "prompt": "fn main() {\n", "n": 7})]);
    let (found, _) = answers(&["-m", &model], &input, 0);
    let greedy = &main["greedy_24"].as_array().unwrap()[..7];
    for (line, finish) in found.iter().zip(["stop", "length"]) {
        assert_eq!((&line["text"], &line["finish"]), (&json!("    let mut c = Create"), &json!(finish)));
        assert_eq!(line["tokens"].as_array().unwrap(), greedy);
    }
}

#[test]
fn a_bad_line_is_an_error_of_its_own() {
    let good = json!({"id": "good", "prompt": "fn main() {\n", "n": 3});
    let (expected, _) = answers(&[], &lines(std::slice::from_ref(&good)), 0);
    let input = format!(
        "not json\n\n{{\"id\": 5, \"prompt\": \"x\", \"colour\": 1}}\n{good}\n  \n{{\"id\": \"big\", \"prompt\": \"x\", \"n\": 99999}}\n\
         {{\"id\": 6, \"tokens\": [1, 9999]}}\n{{\"prompt\": \"x\"}}\n{{\"id\": \"wide\", \"prompt\": \"x\", \"n\": 130}}"
    );
    let (found, notes) = answers(&["--pages", "2"], input.as_bytes(), 1);
    assert!(notes.ends_with(", 6 lines failed"), "{notes}");
    let good: Vec<&Json> = found.iter().filter(|line| line.get("error").is_none()).collect();
    assert_eq!(good, expected.iter().collect::<Vec<_>>());
    let mut bad: Vec<&Json> = found.iter().filter(|line| line.get("error").is_some()).collect();
    bad.sort_by_key(|line| line["line"].as_u64());
    for (line, (number, id, part)) in bad.iter().zip([
        (1, Json::Null, "expected"),
        (3, json!(5), "unknown field `colour`"),
        (6, json!("big"), "context overflow"),
        (7, json!(6), "token 9999 at position 1"),
        (8, Json::Null, "missing field `id`"),
        (9, json!("wide"), "3 pages of 64 positions are needed, and the pool has 2"),
    ]) {
        assert_eq!((&line["line"], &line["id"]), (&json!(number), &id), "{line}");
        assert!(line["error"].as_str().unwrap().contains(part), "{line}");
    }
    assert_eq!(bad.len(), 6);
    // Nothing to do is done, and nothing but bad lines is a failure.
    assert_eq!(answers(&[], b"\n \n", 0), (vec![], String::new()));
    assert_eq!(answers(&[], b"{}", 1).0.len(), 1);
    fails_with(&["generate", TINY], &["tiny-qwen3moe", "-m"]);
    fails_with(&["generate", "/none.jsonl"], &["/none.jsonl"]);
    for wrong in [["--parallel", "0"], ["--pages", "0"]] {
        assert_eq!(run(&["generate", wrong[0], wrong[1]]).status.code(), Some(2), "{wrong:?}");
    }
}

/// Keys that are almost too large for half precision: of some tokens they are.
#[test]
fn values_that_are_not_finite_end_their_line_alone() {
    let dir = TempDir::new().unwrap();
    let keys = |part: &mut Part| {
        if part.name == "blk.0.attn_k_norm.weight" {
            for value in part.data.as_chunks_mut().0 {
                *value = (f32::from_le_bytes(*value) * 7000.0).to_le_bytes();
            }
        }
        true
    };
    let model = changed(&dir, keys, &[]);
    let prompts = [
        (json!([10]), Some(0)),
        (json!([1, 2, 3]), Some(3)),
        (json!([20]), None),
        (json!([4, 5]), Some(12)),
        (json!([30]), None),
    ];
    let requests: Vec<Json> =
        (0..).zip(&prompts).map(|(id, (tokens, _))| json!({"id": id, "tokens": tokens, "n": 20})).collect();
    let found = ["1", "2", "16"].map(|parallel| {
        let args = ["-m", &model, "--kv", "f16", "--parallel", parallel];
        let (found, notes) = answers(&args, &lines(&requests), 1);
        assert!(notes.ends_with(", 3 lines failed"), "{notes}");
        found
    });
    assert!(found[0] == found[1] && found[1] == found[2], "{found:?}");
    for (line, (_, position)) in found[0].iter().zip(&prompts) {
        match position {
            Some(position) => {
                let error = format!("no token follows position {position}: the values there are not finite");
                assert_eq!(line["error"], error, "{line}");
            }
            None => assert_eq!(line["tokens"].as_array().unwrap().len(), 20, "{line}"),
        }
    }
    // The same place as with a sequence alone, and with the stage.
    let args = ["run", &model, "--kv", "f16", "-q", "-n", "20", "--tokens", "4,5"];
    for more in [&[][..], &["--speculate", "3"]] {
        let output = run(&[&args[..], more].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && error.contains("position 12 "), "{error}");
        assert!(error.contains("layer00.attn_scores"), "{error}");
    }
}

#[test]
fn drafts_change_no_text() {
    // Text that repeats itself, and text that does not.
    let repeated = "    let x = 1;\n".repeat(6);
    for prompt in ["fn main() {\n", repeated.as_str()] {
        for sampling in [&[][..], &["--temp", "0.7", "--seed", "5"]] {
            let args = [&["run", "-p", prompt, "-n", "40"], sampling].concat();
            let (plain, _) = generates(&args);
            for most in ["1", "6"] {
                let (text, notes) = generates(&[&args[..], &["--speculate", most]].concat());
                assert_eq!(text, plain, "{most}: {args:?}");
                let words: Vec<&str> = notes[0].split(' ').collect();
                let of = words.iter().position(|&word| word == "drafted").unwrap();
                let [right, all] = [of - 3, of - 1].map(|at| words[at].parse::<usize>().unwrap());
                assert!(right <= all, "{notes:?}");
                if prompt == repeated && sampling.is_empty() {
                    assert!(right > 5, "{notes:?}");
                }
            }
        }
    }
    let args = ["run", "-n", "1", "-q", "--speculate", "4"];
    assert_eq!(succeeds(&args), succeeds(&args[..4]));
    for wrong in [&["run", "--speculate", "0"][..], &["run", "--speculate", "2", "--chat"]] {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn bench_measures_sequences_together() {
    let small = ["bench", "--sequences", "3", "--tokens", "2", "--runs", "3", "--depth", "5", "--prefill", "0"];
    let text = succeeds(&small);
    assert!(text.contains("of 3 sequences together") && text.contains("2 steps at depth 5"), "{text}");
    let starts: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(starts, ["decode", "step"], "{text}");
    let report: Json = serde_json::from_str(&succeeds(&[&small[..], &["--json"]].concat())).unwrap();
    let decode = &report["decode"];
    assert_eq!((&decode["sequences"], &decode["depth"], &decode["tokens"]), (&json!(3), &json!(5), &json!(2)));
    let mut runs: Vec<f64> = decode["runs"].as_array().unwrap().iter().map(|run| run.as_f64().unwrap()).collect();
    runs.sort_by(f64::total_cmp);
    let rate = decode["tokens_per_second"].as_f64().unwrap();
    assert!(runs.len() == 3 && (rate / runs[1] - 1.0).abs() < 1e-9, "{report}");
    // Each step gives a token to each sequence.
    let step = decode["milliseconds_per_step"].as_f64().unwrap();
    assert!((rate * step / 3e3 - 1.0).abs() < 1e-9, "{report}");
    for key in ["prefill", "memory"] {
        assert!(report.as_object().unwrap().contains_key(key) && report[key].is_null(), "{key}: {report}");
    }
    let text = succeeds(&["bench", "--sequences", "2", "--tokens", "1", "--runs", "1", "--prefill", "4"]);
    assert!(text.contains("of 2 sequences") && text.contains("prefill") && text.contains("4 tokens\n"), "{text}");
    fails_with(&["bench", "--sequences", "2", "--depth", "99999"], &["context overflow", "4096"]);
    assert_eq!(run(&["bench", "--sequences", "0"]).status.code(), Some(2));
}
