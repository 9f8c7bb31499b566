//! The codebooks of the IQ types: data of the formats, which the device's code reads from the same files.

/// Of each entry the numbers of its eight or four values among those that the type has, a digit of four bits each, the first one
/// lowest.
pub(super) const IQ2_XXS: [u32; 256] = parse(include_str!("../../cuda/common/types/iq2_xxs.inc"));
pub(super) const IQ2_XS: [u32; 512] = parse(include_str!("../../cuda/common/types/iq2_xs.inc"));
pub(super) const IQ2_S: [u32; 1024] = parse(include_str!("../../cuda/common/types/iq2_s.inc"));
pub(super) const IQ3_XXS: [u32; 256] = parse(include_str!("../../cuda/common/types/iq3_xxs.inc"));
pub(super) const IQ3_S: [u32; 512] = parse(include_str!("../../cuda/common/types/iq3_s.inc"));
/// Of IQ1_S and IQ1_M.
pub(super) const IQ1: [u32; 2048] = parse(include_str!("../../cuda/common/types/iq1_s.inc"));

/// The values of IQ2_XXS, IQ2_XS and IQ2_S.
pub(super) const IQ2_VALUES: [i8; 3] = [8, 25, 43];
pub(super) const IQ3_XXS_VALUES: [i8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
pub(super) const IQ3_S_VALUES: [i8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

/// The numbers `0x...` of a text, which are as many as there is room for.
const fn parse<const N: usize>(text: &str) -> [u32; N] {
    let bytes = text.as_bytes();
    let mut numbers = [0; N];
    let (mut count, mut at) = (0, 0);
    while at + 1 < bytes.len() {
        if !(bytes[at] == b'0' && bytes[at + 1] == b'x') {
            at += 1;
            continue;
        }
        at += 2;
        while bytes[at] != b',' {
            let digit = match bytes[at] {
                digit @ b'0'..=b'9' => digit - b'0',
                digit => digit - b'a' + 10,
            };
            numbers[count] = numbers[count] << 4 | digit as u32;
            at += 1;
        }
        count += 1;
    }
    assert!(count == N);
    numbers
}

/// Eight values of an entry.
#[inline]
pub(super) fn eight(entry: u32, values: &[i8]) -> [i8; 8] {
    std::array::from_fn(|i| values[(entry >> (4 * i) & 15) as usize])
}

/// Four values of each of two entries.
#[inline]
pub(super) fn two_fours(entries: [u32; 2], values: &[i8]) -> [i8; 8] {
    std::array::from_fn(|i| values[(entries[i / 4] >> (4 * (i % 4)) & 15) as usize])
}

/// The values with the signs that are set in these bits.
#[inline]
pub(super) fn signed(values: [i8; 8], signs: u8) -> [i8; 8] {
    std::array::from_fn(|i| if signs >> i & 1 == 0 { values[i] } else { -values[i] })
}

/// Eight signs from seven: an even number of them is set.
#[inline]
pub(super) fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// The `SuperBlock::scaled_quants` of types that have their weights in groups of eight.
#[inline(always)]
pub(super) fn scaled<T: super::SuperBlock>(block: &T, out: &mut [i16; 256], group: impl Fn(usize) -> [i8; 8]) {
    for (g, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let (values, scale) = (group(g), block.scale(8 * g / T::SUB_BLOCK) as i16);
        *out = values.map(|value| i16::from(value) * scale);
    }
}
