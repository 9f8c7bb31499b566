//! The tokens after which a text is over.

use crate::gguf::{Gguf, Value};
use crate::{Error, Result};

/// Keys with one token, or several, that end a text or a turn.
const KEYS: [&str; 4] = ["eos_token_id", "eos_token_ids", "eot_token_id", "eom_token_id"];

/// Tokens that end a text or a turn in every vocabulary that has them. Files name only one of those that a model writes.
const NAMES: [&str; 11] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|EOT|>",
    "<end_of_turn>",
    "<eos>",
    "</s>",
];

/// `tokenizer.ggml.token_type` of tokens that are text like any other.
const NORMAL: i32 = 1;

/// The ids of all tokens at which generation stops, ascending: those that the file says, and control tokens known by name.
///
/// # Errors
/// [`Error::Gguf`] for keys of another type; [`Error::Model`] for a token that is not in the vocabulary of `vocab` tokens.
pub fn end_tokens(gguf: &Gguf, vocab: usize) -> Result<Vec<u32>> {
    let mut ends = Vec::new();
    let mut add = |key: &str, id: i64| match u32::try_from(id) {
        Ok(end) if (end as usize) < vocab => {
            ends.push(end);
            Ok(())
        }
        _ => Err(Error::Model(format!("{key}: token {id} is not in the vocabulary of {vocab}"))),
    };
    for name in KEYS {
        let key = format!("tokenizer.ggml.{name}");
        let ids = match gguf.metadata(&key) {
            Some(Value::Array(_)) => gguf.require::<Vec<i64>>(&key)?,
            _ => gguf.get::<i64>(&key)?.into_iter().collect(),
        };
        ids.into_iter().try_for_each(|id| add(&key, id))?;
    }
    let key = "tokenizer.ggml.tokens";
    if let Some(types) = gguf.get::<Vec<i32>>("tokenizer.ggml.token_type")? {
        for (id, (token, kind)) in (0..).zip(gguf.get::<Vec<&str>>(key)?.unwrap_or_default().into_iter().zip(types)) {
            if kind != NORMAL && NAMES.contains(&token) {
                add(key, id)?;
            }
        }
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Header;

    const CONTROL: i32 = 3;
    const USER_DEFINED: i32 = 4;

    fn ends(vocab: usize, set: impl Fn(&mut Header)) -> Result<Vec<u32>> {
        let mut header = Header::new("file");
        set(&mut header);
        let gguf = Gguf::from_vec("file", header.begin(Vec::new()).unwrap().finish().unwrap()).unwrap();
        end_tokens(&gguf, vocab)
    }

    fn words(header: &mut Header, words: &[(&str, i32)]) {
        let (tokens, types): (Vec<&str>, Vec<i32>) = words.iter().copied().unzip();
        header.set("tokenizer.ggml.tokens", &tokens).unwrap();
        header.set("tokenizer.ggml.token_type", &types).unwrap();
    }

    #[test]
    fn every_key_names_ends() {
        assert_eq!(ends(9, |_| {}).unwrap(), []);
        for name in ["eos_token_id", "eot_token_id", "eom_token_id", "eos_token_ids"] {
            let key = format!("tokenizer.ggml.{name}");
            let of = |id: i64| ends(9, |header| header.set(&key, &id).unwrap());
            assert_eq!((of(0).unwrap(), of(8).unwrap()), (vec![0], vec![8]), "{name}");
            for outside in [-1, 9, 1 << 32] {
                let error = of(outside).unwrap_err().to_string();
                assert!(error.contains(&key) && error.contains(&format!("token {outside} is not")), "{error}");
            }
            assert_eq!(ends(9, |header| header.set(&key, &[7_u32, 3, 7]).unwrap()).unwrap(), [3, 7], "{name}");
            assert!(matches!(ends(9, |header| header.set(&key, &[7_u32, 9]).unwrap()), Err(Error::Model(_))));
            assert!(matches!(ends(9, |header| header.set(&key, "7").unwrap()), Err(Error::Gguf { .. })));
        }
        let all = ends(9, |header| {
            for (name, id) in [("eos_token_id", 5_u32), ("eot_token_id", 1), ("eom_token_id", 5)] {
                header.set(&format!("tokenizer.ggml.{name}"), &id).unwrap();
            }
        });
        assert_eq!(all.unwrap(), [1, 5]);
    }

    #[test]
    fn ends_are_known_by_name_unless_they_are_text() {
        for name in NAMES {
            for (kind, expected) in [(CONTROL, vec![1]), (USER_DEFINED, vec![1]), (NORMAL, vec![])] {
                let found = ends(3, |header| words(header, &[("a", NORMAL), (name, kind), ("<|x|>", CONTROL)]));
                assert_eq!(found.unwrap(), expected, "{name}, {kind}");
            }
        }
        let qwen = |header: &mut Header| {
            words(header, &[("<|endoftext|>", CONTROL), ("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL)]);
            header.set("tokenizer.ggml.eos_token_id", &2_u32).unwrap();
        };
        assert_eq!(ends(3, qwen).unwrap(), [0, 2]);
        assert!(ends(2, qwen).is_err());
        // Without types nothing says what is text.
        assert_eq!(ends(3, |header| header.set("tokenizer.ggml.tokens", &["</s>"]).unwrap()).unwrap(), []);
        let without_tokens = |header: &mut Header| header.set("tokenizer.ggml.token_type", &[CONTROL]).unwrap();
        assert_eq!(ends(3, without_tokens).unwrap(), []);
    }
}
