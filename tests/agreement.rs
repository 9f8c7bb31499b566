//! What holds of every value of the test model's forward, and its agreement with Hugging Face transformers. That other
//! backends give the same bits is tested in `reference.rs`.

mod common;

use common::Recorded;
use kquant_moe::model::Logits;
use kquant_moe::model::cpu::Cpu;
use kquant_moe::trace::Stage;

#[test]
fn values_are_finite_and_the_weights_of_experts_sum_to_one() {
    let model = common::model(Cpu::new());
    let top_k = model.config().top_k;
    let mut context = model.context(common::options().trace(true)).unwrap();
    for prompt in common::prompts() {
        context.reset();
        let (_, records) = common::recorded(&model, &mut context, &prompt.tokens);
        for Recorded { layer, stage, bits, .. } in records {
            let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            match stage {
                Stage::MoeRouterIndices => continue,
                // Minus infinity where masked, and nowhere else.
                Stage::AttnScores => {
                    let (seen, heads) = (prompt.tokens.len(), model.config().heads);
                    let masked = |index: usize| index % seen > index / (heads * seen);
                    let right = |(index, &value): (usize, &f32)| {
                        if masked(index) { value == f32::NEG_INFINITY } else { value.is_finite() }
                    };
                    assert!(values.iter().enumerate().all(right), "{stage} of layer {layer:?}");
                    continue;
                }
                Stage::MoeRouter => {
                    for weights in values.chunks(top_k) {
                        let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
                        assert!((sum - 1.0).abs() <= 1e-6, "layer {layer:?}: {weights:?} sum to {sum}");
                    }
                }
                _ => {}
            }
            assert!(values.iter().all(|value| value.is_finite()), "{stage} of layer {layer:?}");
        }
    }
}

/// Transformers in f32 on the dequantized weights: further from the f64 forward than this crate is.
#[test]
fn hugging_face_gives_the_same_tokens() {
    let model = common::model(Cpu::new());
    let vocab = model.config().vocab;
    let largest = |row: &[f32]| (0..vocab).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a))).unwrap();
    for prompt in common::prompts() {
        let theirs = common::hugging_face(&prompt.name);
        let mut context = model.context(common::options()).unwrap();
        let ours = context.forward(&model, &prompt.tokens, Logits::All).unwrap();
        let distance = common::relative_l2(&ours, &theirs);
        let truth = common::relative_l2(&theirs, &prompt.logits);
        println!("{}: relative L2 {distance:.3e}; theirs to the f64 forward {truth:.3e}", prompt.name);
        assert!(distance <= 1e-6, "{}: relative L2 {distance:e}", prompt.name);
        assert!(common::relative_l2(&ours, &prompt.logits) < truth, "{}: closer than ours", prompt.name);
        for (token, (ours, theirs)) in ours.chunks(vocab).zip(theirs.chunks(vocab)).enumerate() {
            assert_eq!(largest(ours), largest(theirs), "{}: most probable token at {token}", prompt.name);
        }
    }
}
