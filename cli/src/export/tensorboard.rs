//! Event files of TensorBoard: records of the TFRecord format, each a protocol buffer `Event`.
//!
//! A record is its length (u64), the length's checksum, the data, the data's checksum; numbers are little-endian.
//! Checksums are CRC-32C, rotated by 15 bits and moved by a constant. Source: `tensorflow/core/lib/io/record_writer.h`
//! and `tensorboard/compat/proto/event.proto`.

use super::series::Point;
use anyhow::Context;
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

/// What the first event of a file says.
const VERSION: &[u8] = b"brain.Event:2";

/// A file of events that grows.
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins the file of a training that began at `begin`, in seconds since 1970. The name follows from that, so
    /// that another export of the training replaces the file.
    ///
    /// # Errors
    /// If the folder or the file cannot be written.
    pub fn create(dir: &Path, begin: f64) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
        let path = dir.join(format!("events.out.tfevents.{:010}.fl", begin.max(0.0) as u64));
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut events = Self { path, file };
        let mut event = Message::default();
        event.double(1, begin).bytes(3, VERSION);
        events.record(&event.0)?;
        Ok(events)
    }

    /// Appends an event for each point.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn append(&mut self, points: &[Point]) -> anyhow::Result<()> {
        let mut records = Vec::new();
        for point in points {
            let (mut value, mut summary, mut event) =
                (Message::default(), Message::default(), Message::default());
            value.bytes(1, point.series.as_bytes()).float(2, point.value as f32);
            summary.bytes(1, &value.0);
            event.double(1, point.time).integer(2, point.step as u64).bytes(5, &summary.0);
            records.extend(record(&event.0));
        }
        self.write(&records)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn record(&mut self, event: &[u8]) -> anyhow::Result<()> {
        self.write(&record(event))
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(bytes).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let checks = [masked(&length), masked(data)].map(u32::to_le_bytes);
    [&length[..], &checks[0], data, &checks[1]].concat()
}

fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protocol buffer that is being written. The fields are given by their numbers.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn bytes(&mut self, field: u64, bytes: &[u8]) -> &mut Self {
        self.varint(field << 3 | 2).varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn integer(&mut self, field: u64, value: u64) -> &mut Self {
        self.varint(field << 3).varint(value)
    }

    fn double(&mut self, field: u64, value: f64) -> &mut Self {
        self.varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn float(&mut self, field: u64, value: f32) -> &mut Self {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn varint(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_the_record_that_tensorboard_reads() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(dir.path(), 1_700_000_000.5).unwrap();
        let point = Point { series: "loss".to_owned(), step: 300, time: 2.0, value: 0.5 };
        events.append(&[point]).unwrap();
        assert_eq!(events.path().file_name().unwrap(), "events.out.tfevents.1700000000.fl");
        let bytes = fs::read(events.path()).unwrap();
        // The first record: wall time and version.
        let first = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(first, 9 + 2 + VERSION.len());
        assert_eq!(bytes[8..12], masked(&bytes[..8]).to_le_bytes());
        assert!(bytes[12..12 + first].ends_with(VERSION));
        let second = &bytes[12 + first + 4..];
        let data = &second[12..second.len() - 4];
        // time 2.0; step 300; summary { value { tag "loss", simple_value 0.5 } }
        let expected = [
            &[0x09][..],
            &2.0f64.to_le_bytes(),
            &[0x10, 0xac, 0x02, 0x2a, 0x0d, 0x0a, 0x0b, 0x0a, 0x04],
            b"loss",
            &[0x15],
            &0.5f32.to_le_bytes(),
        ];
        assert_eq!(data, expected.concat());
        assert_eq!(second[second.len() - 4..], masked(data).to_le_bytes());
    }

    #[test]
    fn checksums_are_castagnolis() {
        // The check value of CRC-32C.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }
}
