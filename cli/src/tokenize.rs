//! `tokenize` and `detokenize`: from text to token ids and back.

use kquant_moe::{Error, Result};
use serde_json::json;

use super::Outcome;
use super::input::{ModelArgs, Piped, Prompt, TokenList, read_stdin};
use super::output::Out;
use super::tokenizer::{Decoder, Tokenizer};

/// Writes the token ids of a text, separated by commas, as `--tokens` takes them. The text is that of -p, of a file, or standard
/// input.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompt: Prompt,
    /// Write JSON: each id, and what it stands for
    #[arg(long)]
    json: bool,
}

/// Writes the text of token ids, control tokens by their names. The ids are those of --tokens, or of standard input, separated by
/// commas or white space. Adds no line break.
#[derive(clap::Args)]
pub struct DetokenizeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Token ids, separated by commas
    #[arg(long, value_name = "IDS")]
    tokens: Option<TokenList>,
}

/// The file's tokenizer. The rest of the file need not be a model.
fn tokenizer(model: &ModelArgs) -> Result<Tokenizer> {
    let gguf = model.gguf()?;
    let vocab = gguf.tensor("token_embd.weight").and_then(|table| table.shape().first().copied());
    Tokenizer::from_gguf(&gguf, vocab.map_or(usize::MAX, |rows| rows as usize))?
        .ok_or_else(|| Error::Model(format!("{} has no tokenizer", gguf.path().display())))
}

/// Runs `tokenize`.
pub fn tokenize(args: &Args, out: &mut Out) -> Result<Outcome> {
    let tokenizer = tokenizer(&args.model)?;
    let ids = match &args.prompt.tokens {
        Some(TokenList(ids)) => ids.clone(),
        None => tokenizer.encode(&args.prompt.text(Piped::Prompt)?.unwrap_or_default())?,
    };
    if args.json {
        let tokens = ids.iter().map(|&id| json!({ "id": id, "text": String::from_utf8_lossy(tokenizer.spelled(id)) }));
        out.json(&tokens.collect())?;
    } else {
        out.line(ids.iter().map(u32::to_string).collect::<Vec<_>>().join(","))?;
    }
    Ok(Outcome::Ok)
}

/// Runs `detokenize`.
pub fn detokenize(args: &DetokenizeArgs, out: &mut Out) -> Result<Outcome> {
    let tokenizer = tokenizer(&args.model)?;
    let TokenList(ids) = match &args.tokens {
        Some(ids) => ids.clone(),
        None => {
            let text = read_stdin()?;
            let ids = text.split(|char: char| char == ',' || char.is_whitespace()).filter(|id| !id.is_empty());
            let ids = ids.map(|id| id.parse().map_err(|_| Error::Invalid(format!("{id:?} is no token id"))));
            TokenList(ids.collect::<Result<_>>()?)
        }
    };
    let mut decoder = Decoder::default();
    for id in ids {
        out.text(decoder.bytes(tokenizer.spelled(id)))?;
    }
    out.text(decoder.finish())?;
    Ok(Outcome::Ok)
}
