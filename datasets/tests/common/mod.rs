//! Writers of small image files.

#![allow(dead_code, reason = "not every test uses all of them")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use png::{BitDepth, ColorType, Encoder};
use std::{fs, path::Path};

/// A PNG of `kind` with 8 bits a channel.
pub fn png(width: u32, height: u32, kind: ColorType, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, width, height);
    encoder.set_color(kind);
    encoder.set_depth(BitDepth::Eight);
    encoder.write_header().unwrap().write_image_data(pixels).unwrap();
    bytes
}

/// A grey PNG of one shade.
pub fn grey(width: u32, height: u32, shade: u8) -> Vec<u8> {
    png(width, height, ColorType::Grayscale, &vec![shade; (width * height) as usize])
}

/// A baseline JPEG of blocks of 8 x 8 pixels, each of a single colour: for each block its components (one for grey,
/// or Y, Cb, Cr).
pub fn jpeg(width: u16, height: u16, blocks: &[Vec<u8>]) -> Vec<u8> {
    let components = blocks[0].len() as u8;
    let mut out = vec![0xff, 0xd8];
    let mut segment = |marker: u8, body: &[u8]| {
        out.extend([0xff, marker]);
        out.extend((body.len() as u16 + 2).to_be_bytes());
        out.extend(body);
    };
    // A divisor of 8 makes the first coefficient of a block its value less 128.
    segment(0xdb, &[&[0][..], &[8; 64]].concat());
    let size = [&[8][..], &height.to_be_bytes(), &width.to_be_bytes(), &[components]].concat();
    let sampling: Vec<u8> = (1..=components).flat_map(|id| [id, 0x11, 0]).collect();
    segment(0xc0, &[size, sampling].concat());
    // Twelve codes of four bits for differences, and a single bit for "no other coefficients".
    let (mut dc, mut ac) = (vec![0x00], vec![0x10]);
    dc.extend((1..=16).map(|length| if length == 4 { 12 } else { 0 }));
    dc.extend(0..12u8);
    ac.extend((1..=16).map(|length| u8::from(length == 1)));
    ac.push(0);
    segment(0xc4, &dc);
    segment(0xc4, &ac);
    let scan: Vec<u8> = (1..=components).flat_map(|id| [id, 0]).collect();
    segment(0xda, &[&[components][..], &scan, &[0, 63, 0]].concat());
    let mut bits = Bits::default();
    let mut before = vec![0i32; usize::from(components)];
    for block in blocks {
        for (value, before) in block.iter().zip(&mut before) {
            let value = i32::from(*value) - 128;
            let difference = value - std::mem::replace(before, value);
            let category = 32 - difference.unsigned_abs().leading_zeros();
            bits.push(category, 4);
            let offset = if difference < 0 { (1 << category) - 1 } else { 0 };
            bits.push((difference + offset) as u32, category);
            bits.push(0, 1);
        }
    }
    out.extend(bits.finish());
    out.extend([0xff, 0xd9]);
    out
}

#[derive(Default)]
struct Bits {
    out: Vec<u8>,
    pending: u32,
    count: u32,
}

impl Bits {
    fn push(&mut self, value: u32, count: u32) {
        for bit in (0..count).rev() {
            self.pending = self.pending << 1 | (value >> bit & 1);
            self.count += 1;
            if self.count == 8 {
                self.out.push(self.pending as u8);
                if self.pending as u8 == 0xff {
                    self.out.push(0);
                }
                (self.pending, self.count) = (0, 0);
            }
        }
    }

    fn finish(mut self) -> Vec<u8> {
        while self.count != 0 {
            self.push(1, 1);
        }
        self.out
    }
}

/// Writes a file and the folders above it.
pub fn write(root: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}
