//! The tokenizer in a GGUF file: byte-level BPE with Qwen2's rules for splitting text.

use kquant_moe::gguf::{Gguf, Quoted};
use kquant_moe::{Error, Result};
use regex::Regex;
use tokenizers::decoders::byte_level::ByteLevel as Bytes;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::tokenizer::pattern::Pattern;
use tokenizers::{AddedToken, Offsets, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior, TokenizerImpl};

/// How Qwen2 splits text before BPE: contractions, words with the one sign in front of them, single digits, runs of
/// signs, line breaks, other white space. Of white space in front of something else the last character belongs to what follows,
/// which [`Qwen2`] sees to: with `\s+(?!\S)` in the expression itself a matcher goes back through the whole run, and gives up when
/// it is long.
const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";

/// `tokenizer.ggml.token_type` of tokens that steer the model and stand for no text.
const CONTROL: i32 = 3;
/// `tokenizer.ggml.token_type` of tokens that are split off before BPE, but are text.
const USER_DEFINED: i32 = 4;

/// Splits text as Qwen2 does, and writes its bytes as characters.
struct Qwen2 {
    split: Regex,
    bytes: ByteLevel,
}

impl Qwen2 {
    fn new() -> Result<Self> {
        let split = Regex::new(QWEN2_SPLIT).map_err(|error| Error::Model(format!("tokenizer: {error}")))?;
        Ok(Self { split, bytes: ByteLevel::new(false, false, false) })
    }
}

impl Pattern for &Qwen2 {
    fn find_matches(&self, text: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        let mut found = Vec::new();
        let mut start = 0;
        while let Some(piece) = self.split.find_at(text, start) {
            let mut end = piece.end();
            // Only the last alternative ends in white space other than a line break.
            let last =
                piece.as_str().chars().next_back().filter(|last| last.is_whitespace() && !"\r\n".contains(*last));
            if let Some(last) = last
                && end < text.len()
                && piece.len() > last.len_utf8()
            {
                end -= last.len_utf8();
            }
            found.push(((piece.start(), end), true));
            start = end;
        }
        Ok(found)
    }
}

impl PreTokenizer for Qwen2 {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        text.split(|_, piece| piece.split(self, SplitDelimiterBehavior::Isolated))?;
        self.bytes.pre_tokenize(text)
    }
}

/// Text to tokens and back.
pub struct Tokenizer {
    encoder: TokenizerImpl<BPE, NFC, Qwen2, Bytes, Bytes>,
    /// What each token stands for.
    tokens: Vec<Token>,
    /// Put in front of every prompt.
    begin: Option<u32>,
}

/// What a token stands for.
struct Token {
    bytes: Vec<u8>,
    /// Steers the model: the bytes are a name, not text.
    control: bool,
}

impl Tokenizer {
    /// Builds the tokenizer from a file's vocabulary, which is at most the model's `vocab` tokens, and merges; `None` when
    /// the file has none.
    ///
    /// # Errors
    /// [`Error::Gguf`] for keys of the wrong type, [`Error::Model`] for another kind of tokenizer, or a vocabulary that
    /// cannot be one.
    pub fn from_gguf(gguf: &Gguf, vocab: usize) -> Result<Option<Self>> {
        let model = gguf.get::<&str>("tokenizer.ggml.model")?;
        let Some(model) = model.filter(|&model| model != "none" && model != "no_vocab") else { return Ok(None) };
        let pre = gguf.get::<&str>("tokenizer.ggml.pre")?.unwrap_or("none");
        if (model, pre) != ("gpt2", "qwen2") {
            let message = format!(
                "tokenizer: {} with pre-tokenizer {} is not supported (supported: \"gpt2\" with \"qwen2\")",
                Quoted(model),
                Quoted(pre)
            );
            return Err(Error::Model(message));
        }
        let tokens = gguf.strings("tokenizer.ggml.tokens")?;
        if tokens.len() > vocab {
            let message = format!("tokenizer: {} tokens, but the model has a vocabulary of {vocab}", tokens.len());
            return Err(Error::Model(message));
        }
        let types = gguf.get::<Vec<i32>>("tokenizer.ggml.token_type")?.unwrap_or_default();
        let kind = |id: usize| types.get(id).copied().unwrap_or(1);
        let ids = || (0_u32..).zip(&tokens).map(|(id, &token)| (id, id as usize, token));

        let words: Vocab = ids().map(|(id, _, token)| (token.to_owned(), id)).collect();
        // Without one of them, text with that byte in it would silently lose it.
        if let Some(byte) =
            (0..=255).find(|&byte| !words.contains_key(byte_char(byte).encode_utf8(&mut [0; 4]) as &str))
        {
            return Err(Error::Model(format!("tokenizer: no token stands for the byte {byte:#04x}")));
        }
        let merges = gguf.strings("tokenizer.ggml.merges")?.into_iter().map(|merge| {
            let parts = merge.split_once(' ').filter(|(_, right)| !right.contains(' '));
            let (left, right) =
                parts.ok_or_else(|| Error::Model(format!("tokenizer: {} does not merge two tokens", Quoted(merge))))?;
            Ok((left.to_owned(), right.to_owned()))
        });
        let merges = merges.collect::<Result<Vec<_>>>()?;
        let bpe = BPE::builder().vocab_and_merges(words, merges).build();
        let mut encoder = TokenizerImpl::new(bpe.map_err(failed)?);
        encoder.with_pre_tokenizer(Some(Qwen2::new()?));
        encoder.with_normalizer(Some(NFC));
        let added = |wanted: i32| {
            let chosen = ids().filter(move |&(_, index, token)| kind(index) == wanted && !token.is_empty());
            chosen
                .map(move |(_, _, token)| AddedToken::from(token, wanted == CONTROL).normalized(false))
                .collect::<Vec<_>>()
        };
        encoder.add_special_tokens(&added(CONTROL));
        encoder.add_tokens(&added(USER_DEFINED));

        let from_chars = |token: &str| token.chars().map(char_byte).collect::<Option<Vec<u8>>>();
        let tokens = ids().map(|(_, index, token)| match kind(index) {
            CONTROL => Token { bytes: token.into(), control: true },
            USER_DEFINED => Token { bytes: token.into(), control: false },
            _ => Token { bytes: from_chars(token).unwrap_or_else(|| token.into()), control: false },
        });
        let begins = gguf.get::<bool>("tokenizer.ggml.add_bos_token")?.unwrap_or(false);
        let begin = if begins { Some(gguf.u32("tokenizer.ggml.bos_token_id")?) } else { None };
        if let Some(begin) = begin.filter(|&begin| begin as usize >= vocab) {
            let message = format!("tokenizer.ggml.bos_token_id: token {begin} is not in the vocabulary of {vocab}");
            return Err(Error::Model(message));
        }
        Ok(Some(Self { tokens: tokens.collect(), encoder, begin }))
    }

    /// The tokens of a prompt.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.begin.into_iter().chain(self.encode_part(text)?).collect())
    }

    /// The tokens of a text, without what every prompt begins with.
    pub fn encode_part(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encoder.encode_fast(text, false).map_err(failed)?.get_ids().to_vec())
    }

    /// The bytes that a token stands for in a text: none for control tokens and for ids that the vocabulary does not have.
    fn bytes(&self, token: u32) -> &[u8] {
        self.tokens.get(token as usize).filter(|token| !token.control).map_or(&[], |token| &token.bytes)
    }

    /// The same, with the names of control tokens.
    pub fn spelled(&self, token: u32) -> &[u8] {
        self.tokens.get(token as usize).map_or(&[], |token| &token.bytes)
    }
}

fn failed(error: tokenizers::Error) -> Error {
    Error::Model(format!("tokenizer: {error}"))
}

/// Bytes that byte-level BPE writes as the character of the same number; the others come from 256 on, in order.
const fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The character that stands for a byte in the vocabulary.
fn byte_char(byte: u8) -> char {
    if is_printable(byte) {
        return byte.into();
    }
    let number = (0..byte).filter(|&other| !is_printable(other)).count();
    char::from_u32(256 + number as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that a character of the vocabulary stands for.
fn char_byte(char: char) -> Option<u8> {
    match u32::from(char) {
        number @ 0..256 => Some(number as u8).filter(|&byte| is_printable(byte)),
        number => (0..=255).filter(|&byte| !is_printable(byte)).nth(number as usize - 256),
    }
}

/// Turns tokens into text as they come. Characters whose bytes are spread over several tokens are held back until they
/// are whole; bytes that cannot become a character give U+FFFD.
#[derive(Default)]
pub struct Decoder {
    held: Vec<u8>,
}

impl Decoder {
    /// The text that one more token completes.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> String {
        self.bytes(tokenizer.bytes(token))
    }

    /// The text that more bytes complete.
    pub fn bytes(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.held.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text += valid;
                    rest = &[];
                }
                Err(error) => {
                    let (valid, broken) = rest.split_at(error.valid_up_to());
                    text += &String::from_utf8_lossy(valid);
                    rest = broken;
                    if let Some(len) = error.error_len() {
                        text.push(char::REPLACEMENT_CHARACTER);
                        rest = &broken[len..];
                        continue;
                    }
                }
            }
            break;
        }
        self.held = rest.to_vec();
        text
    }

    /// What is left at the end.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.held).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kquant_moe::gguf::Header;

    impl Tokenizer {
        /// The text of tokens.
        fn decode(&self, tokens: &[u32]) -> String {
            let mut decoder = Decoder::default();
            let mut text: String = tokens.iter().map(|&token| decoder.push(self, token)).collect();
            text += &decoder.finish();
            text
        }
    }

    fn tiny() -> Tokenizer {
        let bytes = include_bytes!("../model/tiny-qwen3moe-q4_k_m.gguf");
        let gguf = Gguf::from_static("tiny", bytes).unwrap();
        Tokenizer::from_gguf(&gguf, 2048).unwrap().unwrap()
    }

    #[test]
    fn reference_prompts_encode_and_decode() {
        let tokenizer = tiny();
        let prompts = include_str!("../../tests/data/reference/prompts.json");
        let prompts: serde_json::Value = serde_json::from_str(prompts).unwrap();
        let ids = |value: &serde_json::Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
        for (name, prompt) in prompts.as_object().unwrap() {
            let text = prompt["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), ids(&prompt["tokens"]), "{name}");
            assert_eq!(tokenizer.decode(&ids(&prompt["tokens"])), text, "{name}");
            assert_eq!(tokenizer.decode(&ids(&prompt["greedy_24"])), prompt["greedy_text"].as_str().unwrap(), "{name}");
        }
    }

    /// Runs of equal ids.
    fn runs(ids: &[u32]) -> Vec<(u32, usize)> {
        ids.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect()
    }

    /// What Hugging Face's tokenizer gives for the vocabulary and merges of the test model: `tokenizers` 0.22.1 for Python, with
    /// the expression of Qwen2 as it is published.
    #[test]
    fn very_long_runs_of_white_space_have_the_published_tokens() {
        let tokenizer = tiny();
        let encoded = |text: String| runs(&tokenizer.encode(&text).unwrap());
        let of = |unit: &str, count: usize| unit.repeat(count);
        assert_eq!(encoded(of(" ", 1_200_000)), [(996, 75_000)]);
        assert_eq!(encoded(of(" ", 1_200_000) + "fn x"), [(996, 74_998), (1658, 1), (312, 1), (552, 1)]);
        let expected = [(64, 1), (996, 93_750), (220, 1), (198, 1), (220, 1), (309, 1)];
        assert_eq!(encoded(format!("a{}\n  b", of(" ", 1_500_001))), expected);
        assert_eq!(encoded(of("\n", 1_100_000) + "x"), [(1633, 550_000), (87, 1)]);
        assert_eq!(encoded(of("\t", 1_000_003) + "z"), [(1222, 500_001), (197, 1), (89, 1)]);
        let mixed = tokenizer.encode(&(of(" \n", 600_000) + "q")).unwrap();
        assert!(mixed.chunks(2).take(600_000).all(|pair| pair == [220, 198]) && mixed[1_200_000..] == [80]);
        let mut wide = encoded(of("x", 10) + &of("\u{3000}", 1_001) + "y");
        assert_eq!(wide[..3], [(1299, 5), (159, 1), (222, 2)]);
        assert_eq!(wide.pop(), Some((88, 1)));
        assert_eq!(wide.len(), 1 + 2 * 1_001);
    }

    /// From the same tokenizer.
    #[test]
    fn text_is_split_where_it_is_published_to_be() {
        let tokenizer = tiny();
        for (text, expected) in [
            ("it'S 'ſ x'ſ y", &[285, 6, 50, 862, 129, 123, 552, 6, 129, 123, 549][..]),
            ("I'LL we'Re 'd", &[40, 6, 43, 43, 797, 6, 1113, 862, 67]),
            (
                "x\u{85}\u{85}y \u{200b} z\u{a0}\u{a0}w",
                &[87, 126, 227, 126, 227, 88, 220, 158, 222, 233, 638, 126, 254, 126, 254, 86],
            ),
            (
                "  \u{2003}\u{2003}\r\n\r\n  a1²½Ⅷ \u{345}x e\u{301} अनुच्छेद ①",
                &[
                    256, 158, 222, 225, 158, 222, 225, 201, 198, 201, 198, 220, 275, 16, 126, 110, 126, 121, 158, 227,
                    100, 220, 137, 227, 87, 220, 127, 102, 220, 156, 97, 227, 156, 97, 101, 156, 98, 223, 156, 97, 248,
                    156, 98, 235, 156, 97, 249, 156, 98, 229, 156, 97, 99, 220, 158, 239, 254,
                ],
            ),
        ] {
            assert_eq!(tokenizer.encode(text).unwrap(), expected, "{text}");
        }
    }

    /// Pieces follow each other, whatever the text.
    #[test]
    fn pieces_are_all_of_the_text() {
        let qwen2 = Qwen2::new().unwrap();
        let pieces = |text: &str| -> Vec<String> {
            let found = (&qwen2).find_matches(text).unwrap();
            assert!(found.iter().all(|piece| piece.1));
            found.iter().map(|&((start, end), _)| text[start..end].to_owned()).collect()
        };
        for (text, expected) in [
            ("", &[][..]),
            (
                "fn  main() {\n\n   x12 'tis}\n  ",
                &["fn", " ", " main", "()", " {\n\n", "  ", " x", "1", "2", " '", "tis", "}\n", "  "],
            ),
            ("a   b", &["a", "  ", " b"]),
            ("a \t1", &["a", " ", "\t", "1"]),
            ("  \n  \n b", &["  \n  \n", " b"]),
            ("\u{3000}\u{3000}.", &["\u{3000}", "\u{3000}", "."]),
        ] {
            assert_eq!(pieces(text), expected, "{text:?}");
        }
    }

    #[test]
    fn any_text_comes_back() {
        let tokenizer = tiny();
        for text in
            ["", " ", "\n\n  \t x", "it's 1234 Größe → 你好 🦀🦀\u{1f468}\u{200d}\u{1f469}", "\0\u{7f}\u{ad}\u{a0}"]
        {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()), text);
        }
    }

    #[test]
    fn control_tokens_are_recognised_and_give_no_text() {
        let tokenizer = tiny();
        let end = 2046;
        let ids = tokenizer.encode("a<|endoftext|>b").unwrap();
        assert_eq!(ids.len(), 3);
        assert_eq!(ids[1], end);
        assert_eq!(tokenizer.decode(&ids), "ab");
        assert_eq!((tokenizer.decode(&[u32::MAX]), tokenizer.spelled(u32::MAX)), (String::new(), &b""[..]));
        let spelled = ids.iter().flat_map(|&id| tokenizer.spelled(id).to_vec()).collect::<Vec<_>>();
        assert_eq!(spelled, b"a<|endoftext|>b");
    }

    #[test]
    fn byte_characters_round_trip() {
        for byte in 0..=255 {
            assert_eq!(char_byte(byte_char(byte)), Some(byte));
        }
        assert_eq!((byte_char(b' '), byte_char(b'\n'), byte_char(b'a')), ('Ġ', 'Ċ', 'a'));
        assert_eq!((char_byte(' '), char_byte('你'), char_byte('\u{144}')), (None, None, None));
    }

    #[test]
    fn characters_are_never_printed_in_parts() {
        let crab = "🦀".as_bytes();
        let mut decoder = Decoder::default();
        assert_eq!(decoder.bytes(&crab[..1]), "");
        assert_eq!(decoder.bytes(&crab[1..3]), "");
        assert_eq!(decoder.bytes(&[crab[3], b'!', 0xe2]), "🦀!");
        assert_eq!(decoder.bytes(b"a"), "\u{fffd}a");
        assert_eq!(decoder.bytes(&[0xff, 0xfe, b'b', 0xc3]), "\u{fffd}\u{fffd}b");
        assert_eq!(decoder.finish(), "\u{fffd}");
    }

    /// Writes a key's value anew.
    type Write<'a> = &'a dyn Fn(&mut Header, &str);

    /// The metadata of the test model with some of it replaced, or left out.
    fn changed(replaced: &[(&str, Option<Write<'_>>)]) -> Gguf {
        let bytes = include_bytes!("../model/tiny-qwen3moe-q4_k_m.gguf");
        let tiny = Gguf::from_static("tiny", bytes).unwrap();
        let mut header = Header::new("changed");
        for (key, value) in tiny.entries() {
            match replaced.iter().find(|(name, _)| *name == key) {
                None => header.set_value(key, value).unwrap(),
                Some((_, Some(set))) => set(&mut header, key),
                Some((_, None)) => {}
            }
        }
        for (key, set) in replaced {
            if let (None, Some(set)) = (tiny.metadata(key), set) {
                set(&mut header, key);
            }
        }
        Gguf::from_vec("changed", header.begin(Vec::new()).unwrap().finish().unwrap()).unwrap()
    }

    /// The vocabulary of the test model.
    fn words() -> Vec<String> {
        changed(&[]).strings("tokenizer.ggml.tokens").unwrap().into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn a_sequence_may_end_in_half_a_character() {
        let tokenizer = tiny();
        let words = words();
        let id = |byte: u8| words.iter().position(|word| *word == byte_char(byte).to_string()).unwrap() as u32;
        let crab = "🦀".as_bytes().iter().map(|&byte| id(byte)).collect::<Vec<_>>();
        assert_eq!(tokenizer.decode(&crab), "🦀");
        for len in 1..4 {
            assert_eq!(tokenizer.decode(&crab[..len]), "\u{fffd}", "{len} of 4 bytes");
            let text = [&[id(b'a')], &crab[..len], &[id(b'b')], &crab[..len]].concat();
            assert_eq!(tokenizer.decode(&text), "a\u{fffd}b\u{fffd}", "{len} of 4 bytes");
        }
        let mut decoder = Decoder::default();
        assert_eq!(crab.iter().map(|&token| decoder.push(&tokenizer, token)).collect::<Vec<_>>(), ["", "", "", "🦀"]);
        assert_eq!(decoder.finish(), "");
    }

    #[test]
    fn prompts_begin_as_the_file_says() {
        let plain = tiny().encode("fn main").unwrap();
        let begins = |value: bool| move |header: &mut Header, key: &str| header.set(key, &value).unwrap();
        let id = |header: &mut Header, key: &str| header.set(key, &7_u32).unwrap();
        let (add, token) = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id");
        let encoded = |gguf: Gguf| Tokenizer::from_gguf(&gguf, 2048).map(|t| t.unwrap().encode("fn main").unwrap());
        assert_eq!(encoded(changed(&[(add, Some(&begins(false))), (token, Some(&id))])).unwrap(), plain);
        let begun = encoded(changed(&[(add, Some(&begins(true))), (token, Some(&id))])).unwrap();
        assert_eq!(begun, [&[7], &plain[..]].concat());
        assert_eq!(encoded(changed(&[(add, None)])).unwrap(), plain);
        assert!(encoded(changed(&[(add, Some(&begins(true))), (token, None)])).is_err());
        let outside = |header: &mut Header, key: &str| header.set(key, &2048_u32).unwrap();
        assert!(encoded(changed(&[(add, Some(&begins(true))), (token, Some(&outside))])).is_err());
    }

    #[test]
    fn kinds_of_tokens_decide_what_they_stand_for() {
        let mut types = vec![1_i32; 2048];
        let words = words();
        // A token that is text as it stands, although it is spelled like bytes, and one that steers.
        let (text, steers) = (2040, 2041);
        (types[text], types[steers]) = (USER_DEFINED, CONTROL);
        let mut tokens = words.clone();
        tokens[text] = "Ġ<é>".into();
        tokens[steers] = "<|steer|>".into();
        let gguf = changed(&[
            ("tokenizer.ggml.token_type", Some(&|header, key| header.set(key, &types).unwrap())),
            ("tokenizer.ggml.tokens", Some(&|header, key| header.set(key, &tokens).unwrap())),
            ("tokenizer.ggml.merges", Some(&|header, key| header.set(key, &Vec::<String>::new()).unwrap())),
        ]);
        let tokenizer = Tokenizer::from_gguf(&gguf, 2048).unwrap().unwrap();
        let ids = tokenizer.encode("aĠ<é>b<|steer|>").unwrap();
        assert_eq!(ids.len(), 4);
        assert_eq!((ids[1], ids[3]), (text as u32, steers as u32));
        assert_eq!(tokenizer.decode(&ids), "aĠ<é>b");
        // Without types all tokens are text in bytes.
        let untyped = changed(&[("tokenizer.ggml.token_type", None)]);
        let tokenizer = Tokenizer::from_gguf(&untyped, 2048).unwrap().unwrap();
        assert_eq!(tokenizer.decode(&[2046]), words[2046]);
    }

    #[test]
    fn vocabularies_that_cannot_be_one_are_refused() {
        let set = |value: &'static str| move |header: &mut Header, key: &str| header.set(key, value).unwrap();
        let kind = "tokenizer.ggml.model";
        for none in ["none", "no_vocab"] {
            assert!(Tokenizer::from_gguf(&changed(&[(kind, Some(&set(none)))]), 2048).unwrap().is_none());
        }
        assert!(Tokenizer::from_gguf(&changed(&[(kind, None)]), 2048).unwrap().is_none());
        let refused = |gguf: Gguf, vocab| matches!(Tokenizer::from_gguf(&gguf, vocab), Err(Error::Model(_)));
        assert!(refused(changed(&[(kind, Some(&set("llama")))]), 2048));
        assert!(refused(changed(&[("tokenizer.ggml.pre", Some(&set("default")))]), 2048));
        assert!(refused(changed(&[("tokenizer.ggml.pre", None)]), 2048));
        assert!(!refused(changed(&[]), 2048) && !refused(changed(&[]), 2049) && refused(changed(&[]), 2047));
        // Every byte must have its token.
        for byte in [0, b'a', 0xff] {
            let tokens: Vec<String> = words()
                .into_iter()
                .map(|word| if word == byte_char(byte).to_string() { "gone".into() } else { word })
                .collect();
            let none = |header: &mut Header, key: &str| header.set(key, &Vec::<String>::new()).unwrap();
            let gguf = changed(&[
                ("tokenizer.ggml.tokens", Some(&|header, key| header.set(key, &tokens).unwrap())),
                ("tokenizer.ggml.merges", Some(&none)),
            ]);
            assert!(refused(gguf, 2048), "{byte}");
        }
        for merge in ["ab", "a b c", ""] {
            let merges = |header: &mut Header, key: &str| header.set(key, &vec![merge]).unwrap();
            assert!(refused(changed(&[("tokenizer.ggml.merges", Some(&merges))]), 2048), "{merge:?}");
        }
    }
}
