//! The trained test model against the f64 forward of its dequantized weights.

mod common;

use kquant_moe::Error;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::model::{ContextOptions, Logits};
use kquant_moe::trace::NoTrace;

#[test]
fn cpu_matches_the_reference() {
    common::matches_the_reference(Cpu::new());
}

#[test]
fn cpu_generates_the_reference() {
    common::generates_the_reference(Cpu::new());
}

#[test]
fn cpu_does_not_depend_on_batches() {
    common::does_not_depend_on_batches(Cpu::new());
}

#[test]
fn cpu_traces_without_effect() {
    common::traces_without_effect(Cpu::new());
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let model = common::model(Cpu::new());
    let mut context = model.context(ContextOptions { capacity: 8, ..common::options() }).unwrap();
    context.forward(&model, &[1, 2, 3], Logits::None).unwrap();
    let error = context.forward(&model, &[1, 2048], Logits::Last).unwrap_err();
    assert!(matches!(error, Error::TokenOutOfRange { token: 2048, position: 1, vocab: 2048 }), "{error}");
    let error = context.forward(&model, &[1; 6], Logits::Last).unwrap_err();
    assert!(matches!(error, Error::ContextOverflow { used: 3, wanted: 6, capacity: 8 }), "{error}");
    let error = context.forward(&model, &[], Logits::Last).unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    assert_eq!(context.position(), 3);
    assert_eq!(context.trace(&model, &[1; 5], Logits::Last, &mut NoTrace).unwrap().len(), 2048);
    assert_eq!(context.position(), 8);
    for options in [
        ContextOptions { capacity: 0, ..common::options() },
        ContextOptions { capacity: 1 << 30, ..common::options() },
        ContextOptions { max_batch: 0, ..common::options() },
    ] {
        assert!(matches!(model.context(options), Err(Error::Invalid(_))));
    }
}
