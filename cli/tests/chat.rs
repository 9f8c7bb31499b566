//! Talks: the file's own template, one question or many.

mod common;

use common::*;
use kquant_moe::gguf::Value;
use tempfile::TempDir;

/// Writes what was said as comments, and begins the answer with a function.
const TEMPLATE: &str = "\
{%- for message in messages %}
    {{- '// ' + message.role + ': ' + message.content.strip() + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'fn main() {\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '    // At once.\\n' }}
    {%- endif %}
{%- endif %}
";

fn model(dir: &TempDir) -> String {
    changed(dir, keep, &[("tokenizer.chat_template", Some(Value::String(TEMPLATE)))])
}

/// What the model continues a text with.
fn continued(model: &str, text: &str, n: &str) -> String {
    let args = ["run", model, "-n", n, "-q"];
    noted(&args, run_with(&args, text.as_bytes())).0
}

#[test]
fn one_question_gets_one_answer() {
    let dir = TempDir::new().unwrap();
    let model = model(&dir);
    let question = "// user: How?\nfn main() {\n";
    let expected = continued(&model, question, "16");
    for args in
        [vec![&model, "--chat", "-p", "How?", "-n", "16"], vec!["run", &model, "--chat", "-p", "  How?\n", "-n", "16"]]
    {
        let (text, notes) = generates(&args);
        assert_eq!(text, expected, "{args:?}");
        assert!(notes.len() == 1 && notes[0].starts_with("[cpu: 16 tokens at "), "{notes:?}");
        assert_eq!(succeeds(&[&args[..], &["-q"]].concat()), expected);
    }
    let args = [&model, "--chat", "-n", "16", "-q"];
    assert_eq!(noted(&args, run_with(&args, b"How?")).0, expected);
    // All of what is piped is the question.
    let args = [&model, "--chat", "-n", "8", "-q"];
    let lines = continued(&model, "// user: a\nb\nfn main() {\n", "8");
    assert_eq!(noted(&args, run_with(&args, b"a\nb\n")).0, lines);
    let system = continued(&model, "// system: Be brief.\n// user: How?\nfn main() {\n", "8");
    assert_eq!(succeeds(&[&model, "--chat", "--system", "Be brief.", "-p", "How?", "-n", "8", "-q"]), system);
    let thoughtless = continued(&model, &format!("{question}    // At once.\n"), "8");
    assert_eq!(succeeds(&[&model, "--chat", "--no-think", "-p", "How?", "-n", "8", "-q"]), thoughtless);
    // Sampling is that of any text.
    let args = ["run", &model, "-n", "8", "-q", "--temp", "1.2", "--seed", "3"];
    let sampled = noted(&args, run_with(&args, question.as_bytes())).0;
    assert_eq!(succeeds(&[&model, "--chat", "-p", "How?", "-n", "8", "-q", "--temp", "1.2", "--seed", "3"]), sampled);
}

/// Every answer is that to the whole talk, whatever of it was computed before.
#[test]
fn a_talk_goes_on_line_by_line() {
    let dir = TempDir::new().unwrap();
    let model = model(&dir);
    let first = continued(&model, "// user: One\nfn main() {\n", "12");
    let talk = format!("// user: One\n// assistant: {}\n// user: Two\nfn main() {{\n", first.trim());
    let second = continued(&model, &talk, "12");
    let args = [&model, "--chat", "--interactive", "-n", "12"];
    let (text, notes) = noted(&args, run_with(&args, b"One\n\n  \r\nTwo\r\n"));
    assert_eq!(text, format!("{first}{second}"));
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].contains(" after 0 that were there") && !notes[1].contains(" after 0 "), "{notes:?}");
    // The first question as an argument, and the last line without its end.
    let args = [&model, "--chat", "-i", "-p", "One", "-n", "12", "-q"];
    assert_eq!(noted(&args, run_with(&args, b"Two")), (text, vec![]));
}

#[test]
fn what_cannot_be_talked_to_is_named() {
    let dir = TempDir::new().unwrap();
    fails_with(&["--chat", "-p", "How?"], &["no chat template", "--chat"]);
    let broken = changed(&dir, keep, &[("tokenizer.chat_template", Some(Value::String("{% for %}")))]);
    fails_with(&[&broken, "--chat", "-p", "How?"], &["chat template"]);
    let refuses = Value::String("{{ raise_exception('Only in verse.') }}");
    let refuses = changed(&dir, keep, &[("tokenizer.chat_template", Some(refuses))]);
    fails_with(&[&refuses, "--chat", "-p", "How?"], &["chat template", "Only in verse."]);
    let model = model(&dir);
    fails_with(&[&model, "--chat"], &["no question", "-p"]);
    fails_with(&[&model, "--chat", "-p", "How?", "--context", "4", "-q"], &["4 positions", "--context"]);
    fails_with(&[&model, "--chat", "-p", "How?", "--context", "30", "-n", "100", "-q"], &["-n 100", "30 positions"]);
    // Without -n an answer is as long as fits.
    let text = succeeds(&[&model, "--chat", "-p", "How?", "--context", "30", "-q"]);
    assert!(!text.trim().is_empty(), "{text}");
    let output = run(&[&model, "--chat", "--tokens", "1,2"]);
    assert_eq!(output.status.code(), Some(2));
}
