//! Any bytes are a model or are refused in one line, with no more memory than the plan says; a model that loads computes.
#![no_main]

use std::sync::Arc;

use kquant_moe::gguf::Gguf;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::{Config, ContextOptions, LoadOptions, Logits, MemoryPlan, Model, Tensors};
use kquant_moe::{Error, Result};
use libfuzzer_sys::fuzz_target;

/// Zeros behind the input: tensor data, so that an input is all metadata and descriptions of tensors. Room for those of
/// `seeds/qwen3moe-header` and somewhat larger ones.
const DATA: usize = 512 << 10;
/// A plan of more than this is not carried out.
const MEMORY: u64 = 16 << 20;

fuzz_target!(|bytes: &[u8]| {
    let mut file = bytes.to_vec();
    file.resize(bytes.len() + DATA, 0);
    if let Err(error) = run(file) {
        assert!(!error.to_string().contains(char::is_control), "{error}");
    }
});

fn run(file: Vec<u8>) -> Result<()> {
    let gguf = Arc::new(Gguf::from_vec("fuzz", file)?);
    let config = Config::from_gguf(&gguf)?;
    let tensors = Tensors::find(&gguf, &config)?;
    let options = ContextOptions::default().capacity(config.context_length.min(16)).max_batch(2);
    if MemoryPlan::new(&config, &tensors, &options)?.total() > MEMORY {
        return Ok(());
    }
    // What was found is what loading finds.
    let model = Model::load(gguf, Cpu::new(), LoadOptions::default(), &mut |_, _| {})?;
    let mut context = model.context(options)?;
    // The weights are zeros, except for rows that lie in the input, so the logits are as long as they should be and the
    // rest of the claims is that nothing panics.
    let tokens: Vec<u32> = (0..context.capacity().min(3)).map(|id| (id % config.vocab) as u32).collect();
    let logits = context.forward(&model, &tokens, Logits::All)?;
    assert_eq!(logits.len(), tokens.len() * config.vocab);
    // Rows of weights may lie in the input, and overflow.
    let next = context.next_token(&model, &[0]);
    assert!(matches!(next, Ok(_) | Err(Error::NotFinite { .. })) || context.position() == context.capacity());
    Ok(())
}
