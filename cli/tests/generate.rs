//! Text in, text out: prompts, what follows them, and where it ends.

mod common;

use common::*;
use kquant_moe::gguf::{Gguf, Header, Value};
use tempfile::TempDir;

#[test]
fn alone_it_writes_rust_and_says_how_fast() {
    let (text, notes) = generates(&[]);
    let expected = prompts()["main"]["greedy_text"].as_str().unwrap().to_owned();
    assert!(text.starts_with(&format!("fn main() {{\n{expected}")), "{text}");
    let [speed, parity] = &notes[..] else { panic!("{notes:?}") };
    assert!(speed.starts_with("cpu (") && speed.contains("tokens/s"), "{speed}");
    assert!(parity.starts_with("parity: CPU only, no CUDA: "), "{parity}");
    assert_eq!(generates(&["run"]).0, text);
    // Without the notes there is the text alone, and nothing else.
    assert!(text.ends_with(&succeeds(&["-q"])));
}

#[test]
fn greedy_text_is_the_reference() {
    for (name, prompt) in prompts() {
        let expected = format!("{}\n", prompt["greedy_text"].as_str().unwrap());
        let text = prompt["text"].as_str().unwrap();
        let ids = joined(&prompt["tokens"], ",");
        for start in [["--prompt", text], ["--tokens", ids.as_str()]] {
            let args = [&["run", TINY, "-n", "24", "-q"], start.as_slice()].concat();
            assert_eq!(succeeds(&args), expected, "{name}");
        }
        assert_eq!(succeeds(&["run", "--prompt", text, "-n", "24", "-q", "--backend", "cpu"]), expected, "{name}");
    }
}

#[test]
fn text_ends_with_the_end_token() {
    let dir = TempDir::new().unwrap();
    let main = &prompts()["main"];
    let end = main["greedy_24"][7].as_u64().unwrap() as u32;
    let model = changed(&dir, keep, &[("tokenizer.ggml.eos_token_id", Some(Value::U32(end)))]);
    let text = succeeds(&["run", &model, "--prompt", "fn main() {\n", "-q"]);
    assert_eq!(text, "    let mut c = Create\n");
}

/// Bytes that become no character, or not yet: at the end of a prompt, at the end of what is generated, and in between.
#[test]
fn text_may_end_in_half_a_character() {
    let dir = TempDir::new().unwrap();
    let tiny = Gguf::read(TINY).unwrap();
    let mut words: Vec<String> =
        tiny.strings("tokenizer.ggml.tokens").unwrap().into_iter().map(str::to_owned).collect();
    // In a byte-level vocabulary these two stand for the bytes of "é".
    let halves = ["Ã", "©"].map(|half| words.iter().position(|word| word == half).unwrap());
    let prompt = "766,306,598,284,280";
    let greedy = [258, 316, 493];
    let (text, notes) = generates(&["run", TINY, "--tokens", &format!("1,{}", halves[0]), "-n", "0"]);
    assert_eq!(text, "\"\u{fffd}\n");
    assert!(notes[0].contains("-n 0"), "{notes:?}");
    assert_eq!(succeeds(&["run", TINY, "--tokens", &halves[0].to_string(), "-n", "0", "-q"]), "\n");

    // The model's first two tokens are the two halves, and the third is another first half.
    words.swap(halves[0], greedy[0]);
    words.swap(halves[1], greedy[1]);
    let third = words[greedy[2]].clone();
    let mut header = Header::new("words");
    header.set("words", &words).unwrap();
    let list = Gguf::from_vec("words", header.begin(Vec::new()).unwrap().finish().unwrap()).unwrap();
    let model = changed(&dir, keep, &[("tokenizer.ggml.tokens", list.metadata("words"))]);
    let run = |more: &[&str]| succeeds(&[&["run", &model, "--tokens", prompt], more].concat());
    assert_eq!(run(&["-n", "1", "-q"]), "\u{fffd}\n");
    assert_eq!(run(&["-n", "2", "-q"]), "é\n");
    assert_eq!(run(&["-n", "3", "-q"]), format!("é{}\n", third.replace('Ġ', " ").replace('Ċ', "\n")));
    // What the prompt begins, the first token ends.
    let begun = format!("{prompt},{}", greedy[0]);
    let (text, _) = generates(&["run", &model, "--tokens", &begun, "-n", "1"]);
    assert!(text.contains("é\n") && !text.contains('\u{fffd}'), "{text}");
    assert_eq!(succeeds(&["run", &model, "--tokens", &begun, "-n", "1", "-q"]), "\u{fffd}\n");
}

#[test]
fn without_a_tokenizer_there_are_ids() {
    let dir = TempDir::new().unwrap();
    let model = changed(&dir, keep, &[("tokenizer.", None)]);
    let main = &prompts()["main"];
    let ids = joined(&main["tokens"], ",");
    let expected = format!("{}\n", joined(&main["greedy_24"], " "));
    assert_eq!(succeeds(&["run", &model, "--tokens", &ids, "-n", "24", "--quiet"]), expected);
    let (both, _) = generates(&["run", &model, "--tokens", &ids, "-n", "24"]);
    assert_eq!(both, format!("{} {expected}", joined(&main["tokens"], " ")));
    fails_with(&["run", &model, "--prompt", "x"], &["changed.gguf", "no tokenizer", "--tokens"]);
    assert!(generates(&["run", &model, "-n", "2"]).0.starts_with("1 2 3 4 5 6 7 8 "));
}

#[test]
fn bad_prompts_are_named() {
    fails_with(&["run", "--prompt", ""], &["empty"]);
    fails_with(&["run", "--tokens", ""], &["empty"]);
    fails_with(&["run", "--tokens", "1,2048"], &["2048", "position 1"]);
    fails_with(&["verify", "--tokens", "4294967295"], &["4294967295"]);
    fails_with(&["run", "--context", "8", "-n", "9"], &["-n 9", "context overflow", "13", "8"]);
    // The last token needs no position.
    assert!(generates(&["run", "--context", "13", "-n", "9"]).1[0].contains("over 9 tokens"));
    fails_with(&["run", "-n", "5000"], &["-n 5000", "context overflow", "4096"]);
    fails_with(&["run", "-n", &usize::MAX.to_string()], &["-n 18446744073709551615", "context overflow"]);
    fails_with(&["run", "--context", "5000"], &["4096", "5000"]);
    fails_with(&["run", "--context", "0"], &["found 0"]);
    fails_with(&["info", "--context", "5000"], &["4096", "5000"]);
    let dir = TempDir::new().unwrap();
    let out = path(&dir, "none/l.npy");
    fails_with(&["logits", TINY, "--tokens", "9999", "--out", &out], &["9999"]);
    fails_with(&["logits", TINY, "--tokens", "", "--out", &out], &["empty"]);
    fails_with(&["logits", TINY, "--tokens", "1", "--out", &out], &["none/l.npy"]);
    fails_with(&["trace", TINY, "--tokens", "9999", "--out", &out], &["9999"]);
}

/// Prompts come as an argument, from a file, or from standard input, and are the same text.
#[test]
fn prompts_come_in_every_way() {
    let dir = TempDir::new().unwrap();
    let main = &prompts()["main"];
    let text = main["text"].as_str().unwrap();
    let expected = format!("{}\n", main["greedy_text"].as_str().unwrap());
    let file = path(&dir, "prompt.txt");
    std::fs::write(&file, text).unwrap();
    for args in [
        vec!["run", "-p", text],
        vec!["run", "--prompt-file", &file],
        vec!["-p", text],
        vec![TINY, "-p", text],
        vec!["-m", TINY, "-p", text],
        vec!["run", "-m", TINY, "-p", text],
        vec!["--model", TINY, "--prompt-file", &file],
    ] {
        assert_eq!(succeeds(&[&args[..], &["-n", "24", "-q"]].concat()), expected, "{args:?}");
    }
    for args in [vec!["run"], vec![], vec![TINY], vec!["run", "--prompt-file", "-"]] {
        let args = [&args[..], &["-n", "24", "-q"]].concat();
        assert_eq!(noted(&args, run_with(&args, text.as_bytes())), (expected.clone(), vec![]), "{args:?}");
    }
    // What is given explicitly goes before what is piped.
    let args = ["run", "-p", text, "-n", "24", "-q"];
    assert_eq!(noted(&args, run_with(&args, b"something else")).0, expected);
    // An empty pipe is none.
    let args = ["run", "-n", "24", "-q"];
    assert_eq!(noted(&args, run_with(&args, b"")).0, succeeds(&args));

    fails_with(&["run", "--prompt-file", &path(&dir, "none.txt")], &["none.txt"]);
    std::fs::write(&file, b"abc\xff").unwrap();
    fails_with(&["run", "--prompt-file", &file], &["prompt.txt", "UTF-8", "byte 3"]);
    let output = run_with(&["run"], b"\xff");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("standard input"));
    std::fs::write(&file, "").unwrap();
    fails_with(&["run", "--prompt-file", &file], &["empty"]);
}

/// Text that is longer than an argument may be, in several batches.
#[test]
fn a_long_prompt_is_read_and_continued() {
    let text = "    let x = 1;\n".repeat(110);
    let args = ["run", "-n", "3"];
    let (out, notes) = noted(&args, run_with(&args, text.as_bytes()));
    assert!(out.starts_with(&text) && out.len() > text.len(), "{} bytes", out.len());
    let ids = succeeds(&["tokenize", "-p", &text]);
    let count = ids.split(',').count();
    assert!(count > 512 && notes[0].contains(&format!("prompt of {count} ")), "{count}, {notes:?}");
    // However the prompt gets there, and however it is cut.
    let (same, _) = generates(&["run", "-n", "3", "--tokens", ids.trim_end()]);
    assert_eq!(same, out);
    // 128 KiB and more, which no argument holds. The context has room for less.
    let output = run_with(&["run"], "x ".repeat(100_000).as_bytes());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("context overflow"), "{error}");
}

/// Generation ends at any of the tokens that end a text, whatever the file's own key says.
#[test]
fn every_end_token_ends_the_text() {
    let dir = TempDir::new().unwrap();
    let main = &prompts()["main"];
    let ids = joined(&main["tokens"], ",");
    let greedy: Vec<u32> = serde_json::from_value(main["greedy_24"].clone()).unwrap();
    // The first one at which this is the first time that it comes.
    let place = (5..24).find(|&at| !greedy[..at].contains(&greedy[at])).unwrap();
    let end = greedy[place];
    let args = |model: &str| succeeds(&["run", model, "--tokens", &ids, "-n", "24", "-q"]);
    let whole = args(TINY);
    let list = |values: &[u32]| {
        let mut header = Header::new("list");
        header.set("list", &values.to_vec()).unwrap();
        Gguf::from_vec("list", header.begin(Vec::new()).unwrap().finish().unwrap()).unwrap()
    };
    let ends = list(&[2046, end]);
    let short = args(&changed(&dir, keep, &[("tokenizer.ggml.eos_token_id", Some(Value::U32(end)))]));
    assert!(whole.starts_with(short.trim_end()) && short.len() < whole.len(), "{short:?} {whole:?}");
    for (key, value) in [
        ("tokenizer.ggml.eot_token_id", Value::U32(end)),
        ("tokenizer.ggml.eos_token_ids", ends.metadata("list").unwrap()),
    ] {
        assert_eq!(args(&changed(&dir, keep, &[(key, Some(value))])), short, "{key}");
    }
    // A control token that is known by its name, while the file names another one.
    let tiny = Gguf::read(TINY).unwrap();
    let mut words = tiny.strings("tokenizer.ggml.tokens").unwrap();
    let mut types = tiny.i32s("tokenizer.ggml.token_type").unwrap();
    words.swap(end as usize, 2047);
    types.swap(end as usize, 2047);
    assert_eq!((words[end as usize], types[end as usize]), ("<|im_end|>", 3));
    let mut header = Header::new("names");
    header.set("words", &words).unwrap();
    header.set("types", &types).unwrap();
    let names = Gguf::from_vec("names", header.begin(Vec::new()).unwrap().finish().unwrap()).unwrap();
    let metadata = [
        ("tokenizer.ggml.tokens", names.metadata("words")),
        ("tokenizer.ggml.token_type", names.metadata("types")),
        ("tokenizer.ggml.eos_token_id", Some(Value::U32(2046))),
    ];
    let named = args(&changed(&dir, keep, &metadata));
    assert!(named.len() <= short.len() + 16 && named.len() < whole.len(), "{named:?}");
    // Also where only ids are written.
    let pre = [
        ("tokenizer.ggml.pre", Some(Value::String("llama-bpe"))),
        ("tokenizer.ggml.eos_token_id", Some(Value::U32(end))),
    ];
    let shown: Vec<String> = greedy[..place].iter().map(u32::to_string).collect();
    assert_eq!(args(&changed(&dir, keep, &pre)), shown.join(" ") + "\n");
    for (key, id) in [("eos_token_id", 2048_u32), ("eot_token_id", 9999)] {
        let key = format!("tokenizer.ggml.{key}");
        let model = changed(&dir, keep, &[(&key, Some(Value::U32(id)))]);
        fails_with(&["run", &model], &[&key, &id.to_string(), "2048"]);
    }
}

/// The largest keys that there are do not fit into half precision: nothing follows from what is not finite.
#[test]
fn values_that_are_not_finite_end_every_command() {
    let dir = TempDir::new().unwrap();
    let large = |part: &mut Part| {
        if part.name == "blk.0.attn_k_norm.weight" {
            for value in part.data.as_chunks_mut().0 {
                *value = (f32::from_le_bytes(*value) * 1e5).to_le_bytes();
            }
        }
        true
    };
    let model = changed(&dir, large, &[]);
    let out = path(&dir, "l.npy");
    let routers = path(&dir, "r.npy");
    let place = ["position 0", "layer00.attn_scores"];
    for args in [
        vec!["run", &model, "--kv", "f16", "-q"],
        vec!["run", &model, "--kv", "f16", "-q", "--temp", "1"],
        vec!["logits", &model, "--kv", "f16", "--tokens", "1,2,3", "--out", &out],
        vec!["logits", &model, "--kv", "f16", "--tokens", "1,2,3", "--out", &out, "--routers", &routers],
    ] {
        fails_with(&args, &place);
    }
    assert!(!std::path::Path::new(&out).exists() && !std::path::Path::new(&routers).exists());
    fails_with(
        &["bench", &model, "--kv", "f16", "--tokens", "2", "--runs", "1", "--prefill", "0"],
        &["position 0", "not finite"],
    );
    fails_with(&["bench", &model, "--kv", "f16", "--tokens", "2", "--runs", "1", "--prefill", "5"], &["not finite"]);
    // In single precision they are finite, and it is the model's business what they mean.
    generates(&["run", &model, "-n", "3"]);
}

#[test]
fn sampling_depends_on_its_options_and_the_seed() {
    let text = |more: &[&str]| succeeds(&[&["run", "-p", "fn main() {\n", "-n", "24", "-q"], more].concat());
    let greedy = text(&[]);
    assert_eq!(text(&["--temp", "0", "--seed", "7", "--top-k", "50"]), greedy);
    // With one token left there is no choice.
    for one in [["--top-k", "1"], ["--top-p", "0"], ["--min-p", "1"]] {
        assert_eq!(text(&one), greedy, "{one:?}");
    }
    let drawn: Vec<String> = ["1", "2", "3"].iter().map(|seed| text(&["--temp", "1.5", "--seed", seed])).collect();
    assert!(drawn[0] != drawn[1] && drawn[1] != drawn[2] && drawn[0] != drawn[2], "{drawn:?}");
    assert_eq!(text(&["--temp", "1.5", "--seed", "2"]), drawn[1]);
    assert_eq!(text(&["--temp", "1"]), text(&["--seed", "0"]));
    for wrong in [["--temp", "-1"], ["--top-p", "1.5"], ["--min-p", "-0.5"], ["--temp", "nan"]] {
        let option = format!("{}={}", wrong[0], wrong[1]);
        fails_with(&["run", "-q", &option], &[wrong[0], "expected"]);
    }
}

#[test]
fn tokens_and_text_go_both_ways() {
    let dir = TempDir::new().unwrap();
    for (name, prompt) in prompts() {
        let text = prompt["text"].as_str().unwrap();
        let ids = joined(&prompt["tokens"], ",");
        assert_eq!(succeeds(&["tokenize", "-p", text]), format!("{ids}\n"), "{name}");
        assert_eq!(succeeds(&["detokenize", TINY, "--tokens", &ids]), text, "{name}");
        let args = ["tokenize", "-m", TINY];
        assert_eq!(noted(&args, run_with(&args, text.as_bytes())), (format!("{ids}\n"), vec![]), "{name}");
        let args = ["detokenize"];
        assert_eq!(
            noted(&args, run_with(&args, ids.replace(',', " \n").as_bytes())),
            (text.to_owned(), vec![]),
            "{name}"
        );
    }
    assert_eq!(succeeds(&["detokenize", "--tokens", "64,2046,64"]), "a<|endoftext|>a");
    assert_eq!(succeeds(&["tokenize", "-p", "a<|endoftext|>a"]), "64,2046,64\n");
    assert_eq!(succeeds(&["tokenize"]), "\n");
    let json: serde_json::Value = serde_json::from_str(&succeeds(&["tokenize", "-p", "a b", "--json"])).unwrap();
    let texts: String = json.as_array().unwrap().iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert_eq!((texts.as_str(), &json[0]["id"]), ("a b", &serde_json::Value::from(64)));
    let output = run_with(&["detokenize"], b"1 x");
    assert!(String::from_utf8(output.stderr).unwrap().contains("\"x\" is no token id"));
    // The vocabulary alone is enough.
    let bare = changed(&dir, |_| false, &[("general.architecture", Some(Value::String("llama")))]);
    assert_eq!(succeeds(&["tokenize", &bare, "-p", "a"]), "64\n");
    let none = changed(&dir, keep, &[("tokenizer.", None)]);
    fails_with(&["tokenize", &none, "-p", "a"], &["no tokenizer"]);
    // A run of blanks that is longer than a matcher likes to look back.
    let args = ["tokenize"];
    let (ids, _) = noted(&args, run_with(&args, format!("{}fn x", " ".repeat(1_200_000)).as_bytes()));
    let ids: Vec<&str> = ids.trim_end().split(',').collect();
    assert!(ids[..74_998].iter().all(|&id| id == "996"));
    assert_eq!(ids[74_998..], ["1658", "312", "552"]);
}
