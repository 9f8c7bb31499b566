//! What the build has of CUDA kernels, decided when it was built.

use std::fmt;

/// How the CUDA kernels of a build were compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CudaBuild {
    /// The release of `nvcc`, such as `13.0`.
    pub nvcc: &'static str,
    /// What there is machine code for, in ascending order.
    pub targets: &'static [Target],
    /// The compute capability that there is PTX for, from which the driver compiles for this and every later one.
    pub ptx: u32,
}

/// What machine code is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Target {
    /// A compute capability, such as 89 for 8.9.
    pub capability: u32,
    /// Whether the code has what only cards of this very capability have, such as sm_90a's products of warpgroups.
    pub specific: bool,
}

impl Target {
    /// Whether a card of this compute capability runs the code: one of the same major number whose minor one is not smaller, or of this
    /// capability alone.
    fn runs_on(self, major: u32, card: u32) -> bool {
        self.capability == card || !self.specific && self.capability / 10 == major && self.capability <= card
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}", self.capability, if self.specific { "a" } else { "" })
    }
}

impl CudaBuild {
    /// Whether a card of this compute capability runs the kernels: there is machine code for it, or PTX, which runs on every card that
    /// is not older.
    #[must_use]
    pub fn has_code_for(&self, (major, minor): (u32, u32)) -> bool {
        let card = 10 * major + minor;
        self.ptx <= card || self.targets.iter().any(|target| target.runs_on(major, card))
    }
}

impl fmt::Display for CudaBuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CUDA {}", self.nvcc)?;
        for (index, target) in self.targets.iter().enumerate() {
            write!(f, "{}{target}", if index == 0 { ", " } else { " " })?;
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
        const fn any(capability: u32) -> Target {
            Target { capability, specific: false }
        }
        const USUAL: &[Target] = &[any(89), any(120)];
        const OLDEST: &[Target] = &[any(80)];
        const SPECIFIC: &[Target] = &[Target { capability: 100, specific: true }];
        let build = CudaBuild { nvcc: "13.0", targets: USUAL, ptx: 89 };
        assert_eq!(build.to_string(), "CUDA 13.0, sm_89 sm_120, compute_89");
        for (card, expected) in [((8, 0), false), ((8, 6), false), ((8, 9), true), ((9, 0), true), ((12, 1), true)] {
            assert_eq!(build.has_code_for(card), expected, "{card:?}");
        }
        // Machine code runs on later cards of its major number, and not on those of the next.
        let build = CudaBuild { targets: OLDEST, ptx: 120, ..build };
        for (card, expected) in [((7, 5), false), ((8, 0), true), ((8, 9), true), ((9, 0), false), ((12, 0), true)] {
            assert_eq!(build.has_code_for(card), expected, "{card:?}");
        }
        // What only cards of one capability have runs on no other.
        let build = CudaBuild { targets: SPECIFIC, ..build };
        assert_eq!(build.to_string(), "CUDA 13.0, sm_100a, compute_120");
        for (card, expected) in [((9, 0), false), ((10, 0), true), ((10, 1), false), ((10, 3), false)] {
            assert_eq!(build.has_code_for(card), expected, "{card:?}");
        }
    }
}
