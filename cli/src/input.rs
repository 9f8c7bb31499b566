//! What commands work on: a model file and tokens.

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use kquant_moe::gguf::{Gguf, Override, part_paths};
use kquant_moe::model::gpu::weight_reads;
use kquant_moe::model::{
    Backend, Config, Context, ContextOptions, LoadOptions, Logits, MemoryPlan, Model, Pool, PoolOptions, Tensors,
    end_tokens,
};
use kquant_moe::{Error, Result};
use sha2::{Digest, Sha256};

use super::backend::{Choice, Kv};
use super::output::{Progress, io_error};
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
    /// Whether it is the built-in model, and no file.
    built_in: bool,
}

/// Opens a file, all parts of it, or the built-in model.
fn open_gguf(path: Option<&Path>) -> Result<Gguf> {
    let Some(path) = path else { return Gguf::from_static("built-in tiny-qwen3moe", DEFAULT_MODEL) };
    let parts = part_paths(path).unwrap_or_else(|| vec![path.into()]);
    let bytes: u64 = parts.iter().filter_map(|part| fs::metadata(part).ok()).map(|file| file.len()).sum();
    if bytes > MAP_BYTES {
        // SAFETY: the help text asks the user not to change model files while the program runs.
        unsafe { Gguf::map(path) }
    } else {
        Gguf::read(path)
    }
}

impl Source {
    /// The built-in model.
    #[cfg(test)]
    pub fn built_in() -> Result<Self> {
        ModelArgs::default().open()
    }

    /// The file's name, for reports.
    pub fn name(&self) -> String {
        self.gguf.path().display().to_string()
    }

    /// Loads the weights into a backend's memory, after checking that they and a context with `options` fit.
    pub fn load<B: Backend>(&self, backend: B, options: &ContextOptions) -> Result<Model<B>> {
        MemoryPlan::on(&backend, &self.config, &self.tensors, options)?.check(&backend)?;
        self.load_checked(backend)
    }

    fn load_checked<B: Backend>(&self, backend: B) -> Result<Model<B>> {
        let progress = Progress::bytes("loading", self.gguf.file_len());
        Model::load(self.gguf.clone(), backend, LoadOptions::default(), &mut |done, _| progress.set(done))
    }

    /// [`Self::load`], with a context.
    pub fn load_with_context<B: Backend>(&self, backend: B, options: ContextOptions) -> Result<(Model<B>, Context<B>)> {
        let model = self.load(backend, &options)?;
        let context = model.context(options)?;
        Ok((model, context))
    }

    /// Loads the weights, with a pool, after checking that both fit.
    pub fn load_with_pool<B: Backend>(&self, backend: B, options: PoolOptions) -> Result<(Model<B>, Pool<B>)> {
        MemoryPlan::of_pool(&backend, &self.config, &self.tensors, &options)?.check(&backend)?;
        let model = self.load_checked(backend)?;
        let pool = model.pool(options)?;
        Ok((model, pool))
    }

    /// Appends a prompt but for its last batch, and shows how far it is. Returns that batch.
    pub fn prefill<'a, B: Backend>(
        &self,
        model: &Model<B>,
        context: &mut Context<B>,
        prompt: &'a [u32],
    ) -> Result<&'a [u32]> {
        let mut rest = prompt;
        let progress = Progress::count("prompt", prompt.len());
        while rest.len() > context.max_batch() {
            let (batch, more) = rest.split_at(context.max_batch());
            context.forward(model, batch, Logits::None)?;
            rest = more;
            progress.set((prompt.len() - rest.len()) as u64);
        }
        Ok(rest)
    }

    /// An error about values that are not finite, with the stage and the layer in which they begin, where another context on the
    /// tokens so far shows it.
    pub fn located<B: Backend>(
        &self,
        model: &Model<B>,
        tokens: &[u32],
        options: ContextOptions,
        error: Error,
    ) -> Error {
        let error = match error {
            // A pool cannot trace, and has no other sequences here that a name would tell apart.
            Error::SequenceNotFinite { position, .. } => Error::NotFinite { position, point: None },
            error @ Error::NotFinite { point: None, .. } => error,
            error => return error,
        };
        let options = options.trace(true);
        // Whatever else may fail here, such as too little memory, says less than the error that there is.
        let found = model.context(options).and_then(|mut context| context.forward(model, tokens, Logits::Last));
        match found {
            Err(located @ Error::NotFinite { .. }) => located,
            _ => error,
        }
    }

    /// The tokens at which generation stops.
    pub fn ends(&self) -> Result<Vec<u32>> {
        end_tokens(&self.gguf, self.config.vocab)
    }

    /// The SHA-256 of the file, or of all parts one behind the other.
    pub fn sha256(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        if self.built_in {
            hasher.update(DEFAULT_MODEL);
        } else {
            let progress = Progress::bytes("hashing", self.gguf.file_len());
            let mut done = 0;
            for path in self.gguf.paths() {
                hash(path, &mut hasher, &mut |bytes| {
                    done += bytes;
                    progress.set(done);
                })
                .map_err(|source| io_error(path, source))?;
            }
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
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

fn hash(path: &Path, hasher: &mut Sha256, done: &mut dyn FnMut(u64)) -> io::Result<()> {
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let len = file.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        hasher.update(&buffer[..len]);
        done(len as u64);
    }
}

/// What is computed, of commands that write values to files: a model's values for given tokens.
#[derive(clap::Args)]
pub struct Sequence {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompt: Prompt,
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    pub backend: Choice,
    /// Element type of the KV cache
    #[arg(long, value_enum, default_value_t)]
    pub kv: Kv,
}

impl Sequence {
    /// Opens the model, and gives its tokens: at least one, all of them in the vocabulary.
    pub fn open(&self) -> Result<(Source, Vec<u32>)> {
        let source = self.model.open()?;
        let tokens = self.prompt.resolve(&source, DEFAULT_TEXT, Piped::Ignored)?.tokens;
        Ok((source, tokens))
    }

    /// A context with room for the tokens and no more.
    pub fn options(&self, source: &Source, tokens: &[u32], trace: bool) -> Result<ContextOptions> {
        let capacity = source.capacity(tokens.len(), None)?;
        Ok(ContextOptions::default().capacity(capacity).cache(self.kv.cache_type()).trace(trace))
    }
}

/// What standard input is when it is no terminal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Piped {
    /// The prompt, when no other is given.
    Prompt,
    /// Nothing to this command.
    Ignored,
}

/// A prompt as text or as tokens.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Prompt {
    /// Text, split by the model's own tokenizer
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// File with the text; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// Token ids, separated by commas
    #[arg(long, value_name = "IDS", conflicts_with_all = ["prompt", "prompt_file"])]
    pub tokens: Option<TokenList>,
}

/// A prompt that a model can start from.
pub struct Start {
    /// At least one token, all in the vocabulary.
    pub tokens: Vec<u32>,
    /// What turns tokens into text; none when the file has none that this program knows.
    pub tokenizer: Option<Tokenizer>,
}

impl Prompt {
    /// The text that is given, if any is.
    pub fn text(&self, piped: Piped) -> Result<Option<String>> {
        if let Some(text) = &self.prompt {
            return Ok(Some(text.clone()));
        }
        match &self.prompt_file {
            Some(path) if path.as_os_str() == "-" => read_stdin().map(Some),
            Some(path) => {
                let bytes = fs::read(path).map_err(|source| io_error(path, source))?;
                text_of(bytes, &path.display().to_string()).map(Some)
            }
            None if piped == Piped::Prompt && !io::stdin().is_terminal() => {
                Ok(Some(read_stdin()?).filter(|text| !text.is_empty()))
            }
            None => Ok(None),
        }
    }

    /// The tokens. Without a prompt those of `default_text`, or a few ids when the file has no tokenizer.
    pub fn resolve(&self, source: &Source, default_text: &str, piped: Piped) -> Result<Start> {
        let tokenizer = Tokenizer::from_gguf(&source.gguf, source.config.vocab);
        let (tokens, tokenizer) = match &self.tokens {
            Some(TokenList(tokens)) => (tokens.clone(), tokenizer.unwrap_or_default()),
            None => match (self.text(piped)?, tokenizer?) {
                (Some(text), Some(tokenizer)) => (tokenizer.encode(&text)?, Some(tokenizer)),
                (Some(_), None) => {
                    let name = source.name();
                    return Err(Error::Model(format!("{name} has no tokenizer: give the prompt as --tokens")));
                }
                (None, Some(tokenizer)) => (tokenizer.encode(default_text)?, Some(tokenizer)),
                (None, None) => ((1..=8).map(|token| token % source.config.vocab as u32).collect(), None),
            },
        };
        source.check_tokens(&tokens)?;
        Ok(Start { tokens, tokenizer })
    }
}

/// All of standard input, as text.
pub fn read_stdin() -> Result<String> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).map_err(|source| io_error("standard input", source))?;
    text_of(bytes, "standard input")
}

/// Bytes that must be text.
pub fn text_of(bytes: Vec<u8>, name: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        Error::Invalid(format!("{name}: the text is not UTF-8 from byte {valid} on"))
    })
}

/// The model file, of commands that have the built-in model as their default.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ModelArgs {
    /// GGUF file, of a split one any part; the built-in model when there is none
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub path: Option<PathBuf>,
    #[command(flatten)]
    options: ModelOptions,
}

/// The model file, of commands whose own file stands where others have the model.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ModelOptions {
    /// GGUF file, of a split one any part; the built-in model when there is none
    #[arg(short, long = "model", value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Metadata in place of the file's, such as qwen3moe.expert_used_count=4
    #[arg(long = "override", value_name = "KEY=VALUE")]
    overrides: Vec<Override>,
}

impl From<ModelOptions> for ModelArgs {
    fn from(options: ModelOptions) -> Self {
        Self { path: None, options }
    }
}

impl ModelArgs {
    fn file(&self) -> Option<&Path> {
        self.path.as_deref().or(self.options.model.as_deref())
    }

    /// Opens the file, whatever it is.
    pub fn gguf(&self) -> Result<Arc<Gguf>> {
        open_gguf(self.file())?.with(&self.options.overrides).map(Arc::new)
    }

    /// Opens the file, which must be a model, and checks everything that does not need the weights.
    pub fn open(&self) -> Result<Source> {
        let gguf = self.gguf()?;
        let config = Config::from_gguf(&gguf)?;
        let tensors = Tensors::find(&gguf, &config)?;
        Ok(self.source(gguf, config, tensors))
    }

    /// What was opened, and found to be a model.
    pub fn source(&self, gguf: Arc<Gguf>, config: Config, tensors: Tensors) -> Source {
        Source { gguf, config, tensors, built_in: self.file().is_none() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities_are_what_is_asked_for_or_needed() {
        let source = Source::built_in().unwrap();
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
        let source = Source::built_in().unwrap();
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

    /// The examples of FIPS 180-4, and files that are longer than what is read at a time.
    #[test]
    fn hashes_are_those_of_the_standard() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        for (bytes, expected) in [
            (Vec::new(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (b"abc".to_vec(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (vec![b'a'; 1_000_000], "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
            (vec![0; (2 << 20) + 1], HASH_OF_ZEROS),
        ] {
            fs::write(&file, &bytes).unwrap();
            let (mut hasher, mut total) = (Sha256::new(), 0);
            hash(&file, &mut hasher, &mut |len| total += len).unwrap();
            let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!((found.as_str(), total), (expected, bytes.len() as u64));
        }
    }

    /// 2 MiB of zeros, and one more, as `sha256sum` has it.
    const HASH_OF_ZEROS: &str = "e9a099c75ef837c28bc91683bee127e463fa0ee10c11fd816f8d2d428c0d610e";

    #[test]
    fn texts_are_utf8() {
        assert_eq!(text_of("é".into(), "x").unwrap(), "é");
        let error = text_of(b"ab\xff".to_vec(), "file").unwrap_err().to_string();
        assert_eq!(error, "file: the text is not UTF-8 from byte 2 on");
    }
}
