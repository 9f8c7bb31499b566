//! Files that were split in parts: which parts there are, and whether they belong together.
//!
//! Every part is a GGUF file with tensors of its own. The first one has the metadata, and each one has `split.no` (from 0),
//! `split.count` and `split.tensors.count`, the number of tensors of all parts. Their names end in `-00001-of-00003.gguf`.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Gguf, GgufError, Part, Quoted};
use crate::{Error, Result};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";
/// The keys that a part has about itself.
pub(super) const PREFIX: &str = "split.";
/// Keys of a part that say nothing about the model.
const GENERAL: &str = "general.";

/// Why a part of a split file cannot be taken for one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SplitFault {
    /// There is no file of that name.
    Missing {
        /// Where the part should be.
        path: PathBuf,
    },
    /// Only this part is at hand.
    Alone,
    /// The file's name does not say which part it is, so that the others cannot be found.
    Name,
    /// The part says that it is another one.
    Number {
        /// What it says that it is, from 1.
        found: u64,
    },
    /// The part says that there are other parts.
    Count {
        /// How many it says that there are; none when it says nothing.
        found: Option<u64>,
    },
    /// The parts have other tensors than they say.
    Tensors {
        /// `split.tensors.count` of the part.
        expected: u64,
        /// Tensors of all parts.
        found: u64,
    },
    /// A tensor of an earlier part is in this one, too.
    Twice {
        /// The tensor's name.
        tensor: Box<str>,
    },
    /// A metadata key that the first part does not have, or has with another value.
    Key {
        /// The key.
        key: Box<str>,
    },
}

impl fmt::Display for SplitFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { path } => write!(f, "is missing: there is no file {}", path.display()),
            Self::Alone => f.write_str("is alone: the other parts are not at hand, and without them it is no model"),
            Self::Name => {
                f.write_str("has a name that does not end like -00001-of-00003.gguf, by which the others are found")
            }
            Self::Number { found } => write!(f, "says that it is part {found} ({NUMBER})"),
            Self::Count { found: Some(found) } => write!(f, "says that there are {found} parts ({COUNT})"),
            Self::Count { found: None } => write!(f, "does not say how many parts there are ({COUNT})"),
            Self::Tensors { expected, found } => {
                write!(f, "says that all parts have {expected} tensors ({TENSORS}), and they have {found}")
            }
            Self::Twice { tensor } => write!(f, "has the tensor {} of an earlier part", Quoted(tensor)),
            Self::Key { key } => write!(f, "has a value of {} that the first part does not have", Quoted(key)),
        }
    }
}

/// Which of how many parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// From 0.
    number: u64,
    count: u64,
}

impl Place {
    fn fault(self, path: &Path, fault: SplitFault) -> Error {
        let source = GgufError::Split { part: self.number + 1, count: self.count, fault };
        Error::Gguf { path: path.into(), source }
    }

    /// What a part says; none when it is not one of several.
    fn of(part: &Gguf) -> Result<Option<Self>> {
        // Files that were joined again say that there are 0 parts.
        match part.get::<u64>(COUNT)? {
            None | Some(0 | 1) => Ok(None),
            Some(count) => Ok(Some(Self { number: part.require(NUMBER)?, count })),
        }
    }
}

/// The name of a part: what it begins with, and the digits of its number and of the number of all.
struct Name<'a> {
    stem: &'a str,
    number: &'a str,
    count: &'a str,
}

impl<'a> Name<'a> {
    fn parse(path: &'a Path) -> Option<Self> {
        let (rest, count) = path.file_name()?.to_str()?.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        (digits(number) && digits(count)).then_some(Self { stem, number, count })
    }

    fn path(&self, beside: &Path, number: u64) -> PathBuf {
        beside.with_file_name(format!("{}-{number:05}-of-{}.gguf", self.stem, self.count))
    }
}

/// The paths of all parts of a split file, in order, when the path has the name of one part; whether the files exist is not
/// looked at.
pub fn part_paths(path: &Path) -> Option<Vec<PathBuf>> {
    let name = Name::parse(path)?;
    let count: u64 = name.count.parse().ok()?;
    Some((1..=count).map(|number| name.path(path, number)).collect())
}

/// Opens the file at the path and, when it is a part of a split file, all others.
pub(super) fn open(path: &Path, open: &dyn Fn(&Path) -> Result<Part>) -> Result<Gguf> {
    let given = Gguf::of(vec![open(path)?]);
    let Some(place) = Place::of(&given)? else { return Ok(given) };
    let Some(name) = Name::parse(path) else { return Err(place.fault(path, SplitFault::Name)) };
    let (Ok(number), Ok(count)) = (name.number.parse::<u64>(), name.count.parse::<u64>()) else {
        return Err(place.fault(path, SplitFault::Name));
    };
    let named = Place { number: number.wrapping_sub(1), count };
    check_place(path, named, Some(place))?;
    let mut parts = Vec::new();
    for number in 0..count {
        let place = Place { number, count };
        let path = name.path(path, number + 1);
        let part = if number == named.number {
            given.clone()
        } else {
            match open(&path) {
                Ok(part) => Gguf::of(vec![part]),
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    return Err(place.fault(given.path(), SplitFault::Missing { path }));
                }
                Err(error) => return Err(error),
            }
        };
        check_place(&path, place, Place::of(&part)?)?;
        parts.push(part);
    }
    joined(parts)
}

/// Joins parts that are at hand, in order. A single one may be a whole file.
pub(super) fn join(parts: Vec<Part>) -> Result<Gguf> {
    let parts: Vec<Gguf> = parts.into_iter().map(|part| Gguf::of(vec![part])).collect();
    if let [one] = parts.as_slice() {
        return match Place::of(one)? {
            None => Ok(one.clone()),
            Some(place) => Err(place.fault(one.path(), SplitFault::Alone)),
        };
    }
    let count = parts.len() as u64;
    for (number, part) in (0..).zip(&parts) {
        check_place(part.path(), Place { number, count }, Place::of(part)?)?;
    }
    joined(parts)
}

fn check_place(path: &Path, expected: Place, found: Option<Place>) -> Result<()> {
    match found {
        Some(found) if found == expected => Ok(()),
        Some(Place { number, count }) if count == expected.count => {
            Err(expected.fault(path, SplitFault::Number { found: number.saturating_add(1) }))
        }
        found => Err(expected.fault(path, SplitFault::Count { found: found.map(|place| place.count) })),
    }
}

/// One file of parts that are in their places, if they belong together.
fn joined(parts: Vec<Gguf>) -> Result<Gguf> {
    let count = parts.len() as u64;
    let place = |number: usize| Place { number: number as u64, count };
    let Some((first, others)) = parts.split_first() else {
        return Err(Error::Invalid("a GGUF file has at least one part".into()));
    };
    let mut seen: HashMap<&str, ()> = first.tensors().map(|tensor| (tensor.name(), ())).collect();
    for (number, part) in (1..).zip(others) {
        let fault = |fault| place(number).fault(part.path(), fault);
        for tensor in part.tensors() {
            if seen.insert(tensor.name(), ()).is_some() {
                return Err(fault(SplitFault::Twice { tensor: tensor.name().into() }));
            }
        }
        let of_the_model = part.entries().filter(|(key, _)| !key.starts_with(PREFIX) && !key.starts_with(GENERAL));
        for (key, value) in of_the_model {
            if first.metadata(key) != Some(value) {
                return Err(fault(SplitFault::Key { key: key.into() }));
            }
        }
    }
    let found = seen.len() as u64;
    for (number, part) in parts.iter().enumerate() {
        let expected: u64 = part.require(TENSORS)?;
        if expected != found {
            return Err(place(number).fault(part.path(), SplitFault::Tensors { expected, found }));
        }
    }
    let all = parts.into_iter().flat_map(|part| part.parts.iter().cloned().collect::<Vec<Arc<Part>>>());
    Ok(Gguf::of_shared(all.collect()))
}
