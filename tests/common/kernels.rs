//! What the tests of the kernels share: devices to run on, operands to run with, and comparisons to the bit.
#![allow(dead_code, unused_imports, unused_macros)]

mod compare;
mod data;
mod devices;
mod emulated;
pub mod heads;
pub mod matvec;
mod memory;
pub mod moe;
pub mod norm;
mod paged;
pub mod pins;
mod table;

pub use compare::{
    assert_bits, assert_blocks, assert_invalid, assert_nan, assert_same, assert_status, assert_stored_nan, difference,
    ok,
};
pub use data::{
    Activations, CHOSEN, HALF_NANS, NANS, Random, Weights, fixed_blocks, floats_as, halves_as, has_non_finite, mixes,
    one_a_block,
};
pub use devices::{cuda_device, emulated_device};
pub use emulated::EmulatedDevice;
pub use memory::{Output, input};
pub use paged::Paged;

use kquant_moe::blocks::TensorType;

/// How large the shapes may be: small for the emulation, full for a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Small,
    Full,
}

impl Size {
    /// The small shapes, and on a GPU the large ones too.
    pub fn shapes<T: Clone>(self, small: &[T], large: &[T]) -> Vec<T> {
        let mut shapes = small.to_vec();
        if self == Self::Full {
            shapes.extend_from_slice(large);
        }
        shapes
    }

    /// The types of matrices for case number `turn`: all of them on a GPU; on the emulation two that most files have, and of the others one of
    /// each `step`, so that all of them come within as many cases.
    pub fn kinds(self, turn: usize, step: usize) -> Vec<TensorType> {
        let all = TensorType::MATRICES.iter().copied().enumerate();
        let usual = [TensorType::Q4K, TensorType::Q6K];
        let comes =
            |(i, kind): &(usize, TensorType)| self == Self::Full || usual.contains(kind) || i % step == turn % step;
        all.filter(comes).map(|(_, kind)| kind).collect()
    }
}

/// For each generic `fn check<D: Device>(device: &D, size: Size)`, a test on the emulation and one on the GPU.
macro_rules! on_devices {
    ($($check:ident),* $(,)?) => { $(
        mod $check {
            #[test]
            fn emulated() {
                if let Some(device) = crate::common::emulated_device() {
                    super::$check(&device, crate::common::Size::Small);
                }
            }

            #[test]
            fn cuda() {
                if let Some(device) = crate::common::cuda_device() {
                    super::$check(&device, crate::common::Size::Full);
                }
            }
        }
    )* };
}
pub(crate) use on_devices;

/// The status of a launcher that gets no arguments at all.
macro_rules! status_without_arguments {
    ($device:expr, $kernel:ident) => {{
        let launcher = $device.kernels().$kernel.unwrap();
        // SAFETY: launchers check for a null pointer.
        unsafe { launcher(std::ptr::null(), $device.stream()) }
    }};
}
pub(crate) use status_without_arguments;
