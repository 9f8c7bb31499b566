//! Which matrix of a synthetic model has which type.

use std::str::FromStr;

use crate::blocks::TensorType::{self, IQ4XS, MXFP4, Q2K, Q3K, Q4K, Q5K, Q6K, Q8_0};
use crate::{Error, Result};

/// Types for the matrices of a model: a mix that llama.cpp makes of a model of this kind, or one type for all; and types for single
/// parts.
///
/// As text: names of a mix or of a type, and `PART=TYPE`, with commas between; what comes later counts more. `q5_k_m`, `q8_0`,
/// `attn=q8_0,experts=iq4_xs,down=q6_k,head=q6_k`. Without a name in front the rest is as in Q4_K_M.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix(Vec<Choice>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Named(&'static Named),
    Type(&'static Part, TensorType),
}

/// A mix that has a name.
#[derive(Debug)]
struct Named {
    name: &'static str,
    kind: fn(&Place<'_>) -> TensorType,
}

/// Matrices that have a name together.
#[derive(Debug)]
struct Part {
    name: &'static str,
    /// Their tensors, without `blk.N.` and `.weight`.
    tensors: &'static [&'static str],
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
impl Eq for Named {}
impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
impl Eq for Part {}

/// A matrix in a model.
struct Place<'a> {
    /// Its tensor, without `blk.N.` and `.weight`.
    part: &'a str,
    layer: usize,
    layers: usize,
    /// Its type in Q4_K_M, which is Q6_K for values and down projections of some layers.
    usual: TensorType,
}

impl Place<'_> {
    /// A type for those matrices that Q4_K_M has in Q6_K, and one for the others.
    fn with_more_bits(&self, more: TensorType, usual: TensorType) -> TensorType {
        if self.usual == Q6K { more } else { usual }
    }
}

const NAMED: &[Named] = &[
    Named { name: "q4_k_m", kind: |place| place.usual },
    Named { name: "q5_k_m", kind: |place| place.with_more_bits(Q6K, Q5K) },
    Named {
        name: "q6_k_l",
        kind: |place| match place.part {
            "output" | "token_embd" => Q8_0,
            _ => Q6K,
        },
    },
    Named {
        name: "ud-q4_k_xl",
        kind: |place| match place.part {
            "ffn_down_exps" => place.with_more_bits(Q6K, Q5K),
            "attn_v" | "output" => Q6K,
            "attn_q" | "attn_k" | "token_embd" => Q5K,
            _ => Q4K,
        },
    },
    Named {
        name: "q3_k_m",
        kind: |place| match place.part {
            "output" => Q6K,
            "attn_v" if place.layer < 2 => Q5K,
            "ffn_down_exps" if place.layer < place.layers / 16 => Q5K,
            "attn_v" | "attn_output" | "ffn_down_exps" => Q4K,
            _ => Q3K,
        },
    },
    Named {
        name: "q2_k",
        kind: |place| match place.part {
            "output" => Q6K,
            "attn_v" => Q4K,
            "attn_output" | "ffn_down_exps" => Q3K,
            _ => Q2K,
        },
    },
    Named {
        name: "iq4_xs",
        kind: |place| match place.part {
            "output" => Q6K,
            "attn_v" => Q5K,
            "ffn_down_exps" if place.layer < place.layers / 8 => Q5K,
            _ => IQ4XS,
        },
    },
    Named {
        name: "mxfp4",
        kind: |place| match place.part {
            "ffn_gate_exps" | "ffn_up_exps" | "ffn_down_exps" => MXFP4,
            _ => Q8_0,
        },
    },
];

const ALL: Part = Part {
    name: "all",
    tensors: &[
        "token_embd",
        "output",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate_exps",
        "ffn_up_exps",
        "ffn_down_exps",
    ],
};

const PARTS: &[Part] = &[
    ALL,
    Part { name: "embedding", tensors: &["token_embd"] },
    Part { name: "head", tensors: &["output"] },
    Part { name: "attn", tensors: &["attn_q", "attn_k", "attn_v", "attn_output"] },
    Part { name: "q", tensors: &["attn_q"] },
    Part { name: "k", tensors: &["attn_k"] },
    Part { name: "v", tensors: &["attn_v"] },
    Part { name: "o", tensors: &["attn_output"] },
    Part { name: "experts", tensors: &["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] },
    Part { name: "gate", tensors: &["ffn_gate_exps"] },
    Part { name: "up", tensors: &["ffn_up_exps"] },
    Part { name: "down", tensors: &["ffn_down_exps"] },
];

impl Mix {
    /// The names of mixes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMED.iter().map(|named| named.name)
    }

    /// The names of parts.
    pub fn parts() -> impl Iterator<Item = &'static str> {
        PARTS.iter().map(|part| part.name)
    }

    /// The type of the matrix `tensor`, which is `usual` in Q4_K_M, in a model of so many layers.
    pub fn kind(&self, tensor: &str, usual: TensorType, layers: usize) -> TensorType {
        let name = tensor.strip_suffix(".weight").unwrap_or(tensor);
        let of_layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let (layer, part) = of_layer.map_or((0, name), |(layer, part)| (layer.parse().unwrap_or(0), part));
        let place = Place { part, layer, layers, usual };
        let chosen = self.0.iter().rev().find_map(|choice| match choice {
            Choice::Named(named) => Some((named.kind)(&place)),
            Choice::Type(of, kind) => of.tensors.contains(&part).then_some(*kind),
        });
        chosen.unwrap_or(usual)
    }
}

impl FromStr for Mix {
    type Err = Error;

    /// # Errors
    /// [`Error::Invalid`], with the list of known names, for an unknown one.
    fn from_str(text: &str) -> Result<Self> {
        let kind = |name: &str| TensorType::ALL.iter().copied().find(|k| k.name().eq_ignore_ascii_case(name));
        let unknown =
            |what, name: &str, known: String| Error::Invalid(format!("unknown {what} {name:?} (known: {known})"));
        let list = |names: &mut dyn Iterator<Item = &'static str>| names.collect::<Vec<_>>().join(", ");
        let choice = |item: &str| match item.split_once('=') {
            Some((part, name)) => {
                let Some(part) = PARTS.iter().find(|known| known.name == part) else {
                    return Err(unknown("part of a model", part, list(&mut Self::parts())));
                };
                let kind = kind(name).ok_or_else(|| unknown("type", name, TensorType::ALL_NAMES.to_lowercase()));
                Ok(Choice::Type(part, kind?))
            }
            None => {
                let named = NAMED.iter().find(|named| named.name.eq_ignore_ascii_case(item)).map(Choice::Named);
                named.or_else(|| kind(item).map(|kind| Choice::Type(&ALL, kind))).ok_or_else(|| {
                    let known = [list(&mut Self::names()), TensorType::ALL_NAMES.to_lowercase()].join(", ");
                    unknown("mix or type", item, known)
                })
            }
        };
        text.split(',').map(choice).collect::<Result<_>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(mix: &str, tensor: &str, usual: TensorType) -> TensorType {
        mix.parse::<Mix>().unwrap().kind(tensor, usual, 48)
    }

    #[test]
    fn mixes_name_the_types_of_parts() {
        let (down, gate, head) = ("blk.5.ffn_down_exps.weight", "blk.5.ffn_gate_exps.weight", "output.weight");
        assert_eq!([down, gate, head].map(|name| kind("q5_k_m", name, Q6K)), [Q6K; 3]);
        assert_eq!(kind("q5_k_m", down, Q4K), Q5K);
        assert_eq!([down, gate, head].map(|name| kind("Q8_0", name, Q4K)), [Q8_0; 3]);
        let mix = "attn=q8_0,experts=iq4_xs,down=q6_k,head=q6_k";
        let names = ["blk.0.attn_q.weight", "blk.0.attn_output.weight", gate, down, head, "token_embd.weight"];
        assert_eq!(names.map(|name| kind(mix, name, Q4K)), [Q8_0, Q8_0, IQ4XS, Q6K, Q6K, Q4K]);
        assert_eq!(names.map(|name| kind("q6_k_l,experts=q3_k", name, Q4K)), [Q6K, Q6K, Q3K, Q3K, Q8_0, Q8_0]);
        assert_eq!(kind("down=q6_k,q2_k", down, Q4K), Q3K, "what comes later counts more");
        assert_eq!([1, 2].map(|layer| kind("q3_k_m", &format!("blk.{layer}.attn_v.weight"), Q4K)), [Q5K, Q4K]);
        assert_eq!([2, 3].map(|layer| kind("q3_k_m", &format!("blk.{layer}.ffn_down_exps.weight"), Q6K)), [Q5K, Q4K]);
        assert_eq!([5, 6].map(|layer| kind("iq4_xs", &format!("blk.{layer}.ffn_down_exps.weight"), Q6K)), [Q5K, IQ4XS]);
    }

    #[test]
    fn unknown_names_are_refused_with_the_list() {
        for (text, parts) in [
            ("q9_k", &["q9_k", "q5_k_m", "mxfp4", "iq4_xs", "q8_0"][..]),
            ("", &["q5_k_m"]),
            ("q4_k_m,", &["q5_k_m"]),
            ("attn=f64", &["f64", "q8_0", "iq4_nl"]),
            ("attn=q5_k_m", &["q5_k_m", "q8_0"]),
            ("router=q8_0", &["router", "experts", "head"]),
        ] {
            let error = text.parse::<Mix>().unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
