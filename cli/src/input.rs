//! What commands work on: a model file and tokens.

use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use kquant_moe::gguf::Gguf;
use kquant_moe::model::gpu::weight_reads;
use kquant_moe::model::{Backend, Config, Context, ContextOptions, LoadOptions, MemoryPlan, Model, Tensors};
use kquant_moe::{Error, Result};

use super::backend::{Choice, Kv};
use super::output::Progress;
use super::tokenizer::Tokenizer;

/// The built-in model.
static DEFAULT_MODEL: &[u8] = include_bytes!("../model/tiny-qwen3moe-q4_k_m.gguf");

/// Larger files are mapped instead of read.
const MAP_BYTES: u64 = 64 << 20;

/// Text that a command starts from when none is given: some Rust, long enough to fill more than one chunk of attention.
pub const DEFAULT_TEXT: &str = "\
use std::collections::HashMap;

/// Counts how often each word occurs.
pub fn count_words(text: &str) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for word in text.split_whitespace() {
        *counts.entry(word.to_string()).or_insert(0) += 1;
    }
    counts
}
";

/// An open model file whose shape is known to be sound.
pub struct Source {
    /// The file.
    pub gguf: Arc<Gguf>,
    /// Its hyperparameters.
    pub config: Config,
    /// Its tensors.
    pub tensors: Tensors,
}

impl Source {
    /// Opens a file, or the built-in model, and checks everything that does not need the weights.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let gguf = Arc::new(match path {
            None => Gguf::from_static("built-in tiny-qwen3moe", DEFAULT_MODEL)?,
            Some(path) if std::fs::metadata(path).is_ok_and(|file| file.len() > MAP_BYTES) => {
                // SAFETY: the help text asks the user not to change model files while the program runs.
                unsafe { Gguf::map(path)? }
            }
            Some(path) => Gguf::read(path)?,
        });
        let config = Config::from_gguf(&gguf)?;
        let tensors = Tensors::find(&gguf, &config)?;
        Ok(Self { gguf, config, tensors })
    }

    /// The file's name, for reports.
    pub fn name(&self) -> String {
        self.gguf.path().display().to_string()
    }

    /// Loads the weights into a backend's memory, after checking that they and a context with `options` fit.
    pub fn load<B: Backend>(&self, backend: B, options: &ContextOptions) -> Result<Model<B>> {
        MemoryPlan::on(&backend, &self.config, &self.tensors, options)?.check(&backend)?;
        let progress = Progress::new("loading", self.gguf.file_len());
        Model::load(self.gguf.clone(), backend, LoadOptions::default(), &mut |done, _| progress.set(done))
    }

    /// [`Self::load`], with a context.
    pub fn load_with_context<B: Backend>(&self, backend: B, options: ContextOptions) -> Result<(Model<B>, Context<B>)> {
        let model = self.load(backend, &options)?;
        let context = model.context(options)?;
        Ok((model, context))
    }

    /// Bytes of weights that one decoded token reads.
    pub fn bytes_per_token(&self) -> u64 {
        // Who reads what does not change the sum.
        weight_reads(&self.config, &self.tensors, false).values().sum()
    }

    /// Checks tokens before anything large is loaded, with the errors that the model would give.
    pub fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let vocab = self.config.vocab;
        if tokens.is_empty() {
            return Err(Error::Invalid("the prompt is empty: at least one token is needed".into()));
        }
        match tokens.iter().position(|&token| token as usize >= vocab) {
            Some(position) => Err(Error::TokenOutOfRange { token: tokens[position], position, vocab }),
            None => Ok(()),
        }
    }

    /// The capacity of a context for `needed` positions, where `asked` is what the user wants.
    pub fn capacity(&self, needed: usize, asked: Option<usize>) -> Result<usize> {
        let most = self.config.context_length;
        let capacity = asked.unwrap_or(needed.min(most));
        if needed > capacity && capacity > 0 {
            return Err(Error::ContextOverflow { used: 0, wanted: needed, capacity });
        }
        Ok(capacity)
    }
}

/// `--tokens 1,2,3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenList(pub Vec<u32>);

impl FromStr for TokenList {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        if text.trim().is_empty() {
            return Ok(Self(Vec::new()));
        }
        text.split(',').map(|token| token.trim().parse()).collect::<Result<_, _>>().map(Self)
    }
}

/// What is computed, of commands that write values to files: a model's values for given tokens.
#[derive(clap::Args)]
pub struct Sequence {
    /// GGUF file
    pub model: PathBuf,
    /// Token ids, separated by commas
    #[arg(long, value_name = "IDS")]
    tokens: TokenList,
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    pub backend: Choice,
    /// Element type of the KV cache
    #[arg(long, value_enum, default_value_t)]
    pub kv: Kv,
}

impl Sequence {
    /// Opens the model and checks that it has the tokens.
    pub fn open(&self) -> Result<Source> {
        let source = Source::open(Some(&self.model))?;
        source.check_tokens(self.tokens())?;
        Ok(source)
    }

    /// At least one, once the model is open.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens.0
    }

    /// A context with room for the tokens and no more.
    pub fn options(&self, source: &Source, trace: bool) -> Result<ContextOptions> {
        let capacity = source.capacity(self.tokens().len(), None)?;
        Ok(ContextOptions::default().capacity(capacity).cache(self.kv.cache_type()).trace(trace))
    }
}

/// A prompt as text or as tokens.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Prompt {
    /// Text, split by the model's own tokenizer
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Token ids, separated by commas
    #[arg(long, value_name = "IDS", conflicts_with = "prompt")]
    tokens: Option<TokenList>,
}

/// A prompt that a model can start from.
pub struct Start {
    /// At least one token, all in the vocabulary.
    pub tokens: Vec<u32>,
    /// What turns tokens into text; none when the file has none that this program knows.
    pub tokenizer: Option<Tokenizer>,
}

impl Prompt {
    /// The tokens. Without a prompt those of `default_text`, or a few ids when the file has no tokenizer.
    pub fn resolve(&self, source: &Source, default_text: &str) -> Result<Start> {
        let tokenizer = Tokenizer::from_gguf(&source.gguf, source.config.vocab);
        let (tokens, tokenizer) = match (&self.tokens, &self.prompt) {
            (Some(TokenList(tokens)), _) => (tokens.clone(), tokenizer.unwrap_or_default()),
            (None, Some(text)) => {
                let tokenizer = tokenizer?.ok_or_else(|| {
                    Error::Model(format!("{} has no tokenizer: give the prompt as --tokens", source.name()))
                })?;
                (tokenizer.encode(text)?, Some(tokenizer))
            }
            (None, None) => match tokenizer? {
                Some(tokenizer) => (tokenizer.encode(default_text)?, Some(tokenizer)),
                None => ((1..=8).map(|token| token % source.config.vocab as u32).collect(), None),
            },
        };
        source.check_tokens(&tokens)?;
        Ok(Start { tokens, tokenizer })
    }
}

/// The model file of commands that have the built-in model as their default.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct OptionalModel {
    /// GGUF file; the built-in model when there is none
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
}

impl OptionalModel {
    /// Opens it.
    pub fn open(&self) -> Result<Source> {
        Source::open(self.model.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities_are_what_is_asked_for_or_needed() {
        let source = Source::open(None).unwrap();
        let most = source.config.context_length;
        for (needed, asked, expected) in [
            (5, None, Some(5)),
            (most, None, Some(most)),
            (most + 1, None, None),
            (5, Some(5), Some(5)),
            (5, Some(100), Some(100)),
            (6, Some(5), None),
            // What no context can have is for the context to refuse.
            (5, Some(0), Some(0)),
            (5, Some(most + 1), Some(most + 1)),
        ] {
            match source.capacity(needed, asked) {
                Ok(capacity) => assert_eq!(Some(capacity), expected, "{needed}, {asked:?}"),
                Err(Error::ContextOverflow { used, wanted, capacity }) => {
                    assert_eq!((used, wanted, capacity), (0, needed, asked.unwrap_or(most)));
                    assert_eq!(expected, None, "{needed}, {asked:?}");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn tokens_are_those_of_the_vocabulary() {
        let source = Source::open(None).unwrap();
        assert!(source.check_tokens(&[0, 2047]).is_ok());
        assert!(matches!(source.check_tokens(&[]), Err(Error::Invalid(_))));
        let error = source.check_tokens(&[1, 2047, 2048, 9999]).unwrap_err();
        assert!(matches!(error, Error::TokenOutOfRange { token: 2048, position: 2, vocab: 2048 }), "{error}");
        let list = |text: &str| text.parse::<TokenList>().ok().map(|list| list.0);
        assert_eq!(list(" 1, 2 ,3"), Some(vec![1, 2, 3]));
        assert_eq!((list("  "), list("4294967295")), (Some(vec![]), Some(vec![u32::MAX])));
        for wrong in ["1,", ",1", "1 2", "-1", "4294967296", "x"] {
            assert_eq!(list(wrong), None, "{wrong}");
        }
    }
}
