//! What the build has of CUDA kernels, decided when it was built.

use std::fmt;

/// How the CUDA kernels of a build were compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CudaBuild {
    /// The release of `nvcc`, such as `13.0`.
    pub nvcc: &'static str,
    /// Compute capabilities that there is machine code for, such as 89 for 8.9, in ascending order.
    pub targets: &'static [u32],
    /// The compute capability that there is PTX for, from which the driver compiles for this and every later one.
    pub ptx: u32,
}

impl CudaBuild {
    /// Whether a card of this compute capability runs the kernels: machine code runs on cards of the same major number whose minor
    /// one is not smaller, PTX on every card that is not older.
    #[must_use]
    pub fn has_code_for(&self, (major, minor): (u32, u32)) -> bool {
        let card = 10 * major + minor;
        self.ptx <= card || self.targets.iter().any(|&target| target / 10 == major && target <= card)
    }
}

impl fmt::Display for CudaBuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CUDA {}", self.nvcc)?;
        for (index, target) in self.targets.iter().enumerate() {
            write!(f, "{}sm_{target}", if index == 0 { ", " } else { " " })?;
        }
        write!(f, ", compute_{}", self.ptx)
    }
}

include!(concat!(env!("OUT_DIR"), "/cuda_build.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_found_for_the_cards_that_run_it() {
        let build = CudaBuild { nvcc: "13.0", targets: &[89, 120], ptx: 89 };
        assert_eq!(build.to_string(), "CUDA 13.0, sm_89 sm_120, compute_89");
        for (card, expected) in [((8, 0), false), ((8, 6), false), ((8, 9), true), ((9, 0), true), ((12, 1), true)] {
            assert_eq!(build.has_code_for(card), expected, "{card:?}");
        }
        // Machine code runs on later cards of its major number, and not on those of the next.
        let build = CudaBuild { targets: &[80], ptx: 120, ..build };
        for (card, expected) in [((7, 5), false), ((8, 0), true), ((8, 9), true), ((9, 0), false), ((12, 0), true)] {
            assert_eq!(build.has_code_for(card), expected, "{card:?}");
        }
    }
}
