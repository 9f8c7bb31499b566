//! The bits of `tests/data/pins.json`, which `tests/data/pins.py` computed from `docs/arithmetic.md` without the crate, and operands in it
//! whose results tell the orders of a sum apart.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use serde_json::Value;

static TABLE: LazyLock<Value> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pins.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
});

/// An entry of the table.
#[derive(Clone, Copy)]
pub struct Pin(&'static Value);

/// The list of entries of that name.
pub fn list(name: &str) -> Vec<Pin> {
    let entries = TABLE[name].as_array().unwrap_or_else(|| panic!("{name} is no list"));
    assert!(!entries.is_empty(), "{name}");
    entries.iter().map(Pin).collect()
}

/// The entry of that name.
pub fn entry(name: &str) -> Pin {
    Pin(TABLE.get(name).unwrap_or_else(|| panic!("there is no {name}")))
}

fn hex(text: &str) -> impl Iterator<Item = u64> {
    let (pieces, rest) = text.as_bytes().as_chunks::<8>();
    assert!(rest.is_empty());
    pieces.iter().map(|piece| u64::from_str_radix(std::str::from_utf8(piece).unwrap(), 16).unwrap())
}

impl Pin {
    pub fn text(&self, field: &str) -> &'static str {
        self.0[field].as_str().unwrap_or_else(|| panic!("{field} is no text"))
    }

    pub fn number(&self, field: &str) -> usize {
        self.exponent(field) as usize
    }

    pub fn exponent(&self, field: &str) -> i32 {
        self.0[field].as_i64().unwrap_or_else(|| panic!("{field} is no number")) as i32
    }

    /// A number that an f64 has.
    pub fn float(&self, field: &str) -> f64 {
        self.0[field].as_f64().unwrap_or_else(|| panic!("{field} is no number"))
    }

    pub fn numbers(&self, field: &str) -> Vec<usize> {
        let numbers = self.0[field].as_array().unwrap_or_else(|| panic!("{field} is no list"));
        numbers.iter().map(|number| number.as_u64().unwrap() as usize).collect()
    }

    pub fn seed(&self) -> u64 {
        self.number("seed") as u64
    }

    /// f32, given by their bits.
    pub fn values(&self, field: &str) -> Vec<f32> {
        hex(self.text(field)).map(|bits| f32::from_bits(bits as u32)).collect()
    }

    /// A single f64.
    pub fn wide(&self, field: &str) -> f64 {
        let halves: Vec<u64> = hex(self.text(field)).collect();
        let [high, low] = halves[..] else { panic!("{field} is no f64") };
        f64::from_bits(high << 32 | low)
    }

    pub fn bytes(&self, field: &str) -> Vec<u8> {
        hex(self.text(field)).flat_map(|bits| (bits as u32).to_be_bytes()).collect()
    }

    /// A row of `cols` numbers of which only some are not zero.
    pub fn row(&self) -> Vec<f32> {
        let mut row = vec![0.0; self.number("cols")];
        let places = self.0["places"].as_array().unwrap();
        let values = self.values("values");
        assert_eq!(places.len(), values.len());
        for (place, value) in places.iter().zip(values) {
            row[place.as_u64().unwrap() as usize] = value;
        }
        row
    }
}

/// Numbers, `len` at a time, whose [`tree_sum`](kquant_moe::oracle::tree) differs in f32 when they are added in another order; for every
/// neighbour of the order there is a sequence. The last one is of zeros.
pub fn sequences(len: usize) -> Vec<Vec<f32>> {
    let mut all: Vec<Vec<f32>> =
        list("sums").iter().map(|pin| pin.values("values")).filter(|values| values.len() == len).collect();
    assert!(all.len() >= 3, "no sequences of {len}");
    all.push(vec![0.0; len]);
    all
}

/// Rows whose sum (a `tree_dot` with ones) differs in f32 when it is made in another order.
pub fn dot_rows(cols: usize) -> Vec<Vec<f32>> {
    of_columns("dots", cols).iter().map(Pin::row).collect()
}

/// Rows whose RMSNorm differs when the squares are added in another order, each with its own eps.
pub fn norm_rows(cols: usize) -> Vec<(Vec<f32>, f32)> {
    of_columns("norms", cols).iter().map(|pin| (pin.row(), pin.values("eps")[0])).collect()
}

fn of_columns(name: &str, cols: usize) -> Vec<Pin> {
    let all: Vec<Pin> = list(name).into_iter().filter(|pin| pin.number("cols") == cols).collect();
    assert!(!all.is_empty(), "{name}: no rows of {cols}");
    all
}

/// Logits of the chosen experts in the order of their ranks, whose weights show how they are summed up and divided.
pub fn router_logits() -> Vec<Vec<f32>> {
    list("router").iter().map(|pin| pin.values("logits")).collect()
}
