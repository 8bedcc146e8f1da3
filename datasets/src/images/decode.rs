//! Image files: PNG and JPEG, told apart by their first bytes.

use crate::{
    DatasetError,
    limits::{MAX_DEFLATE_RATIO, MAX_IMAGE_FILE_BYTES, MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE},
};
use png::{DecodingError, Transformations};
use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Seek},
    path::Path,
};
use zune_jpeg::{
    JpegDecoder,
    errors::DecodeErrors,
    zune_core::{colorspace::ColorSpace, options::DecoderOptions},
};

/// Most pixels that a byte of JPEG can stand for: each block of 8 x 8 takes at least a bit.
const JPEG_PIXELS_PER_BYTE: u64 = 512;

/// What a file says about its image before it is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) width: usize,
    pub(super) height: usize,
    /// Whether it is stored as shades of grey.
    pub(super) grey: bool,
}

/// A decoded image.
#[derive(Debug, Default)]
pub(super) struct Picture {
    pub(super) width: usize,
    pub(super) height: usize,
    /// 1 or 3.
    pub(super) channels: usize,
    /// The channels of a pixel lie side by side, pixels row after row.
    pub(super) pixels: Vec<u8>,
}

/// A file whose header has been read and checked.
enum Opened<R: BufRead + Seek> {
    // Both decoders hold their tables.
    Png(Box<png::Decoder<R>>),
    Jpeg(Box<JpegDecoder<R>>),
}

/// Reads the header of an image file.
pub(super) fn header(path: &Path) -> Result<Header, DatasetError> {
    let (reader, bytes) = file(path)?;
    open(reader, bytes, path).map(|(header, _)| header)
}

/// Decodes an image file.
pub(super) fn decode(path: &Path, picture: &mut Picture) -> Result<(), DatasetError> {
    let (reader, bytes) = file(path)?;
    let (header, opened) = open(reader, bytes, path)?;
    (picture.width, picture.height) = (header.width, header.height);
    match opened {
        Opened::Png(decoder) => decode_png(*decoder, picture, path),
        Opened::Jpeg(decoder) => decode_jpeg(*decoder, header.grey, picture, path),
    }
}

/// Opens a regular file of an allowed size.
fn file(path: &Path) -> Result<(BufReader<File>, u64), DatasetError> {
    let io = |source| DatasetError::Io { path: path.to_owned(), source };
    let metadata = path.metadata().map_err(io)?;
    if !metadata.is_file() {
        // Opening a pipe would wait for its writer.
        return Err(DatasetError::image(path, "it is not a file"));
    }
    if metadata.len() > MAX_IMAGE_FILE_BYTES {
        let what = format!("{} bytes, at most {MAX_IMAGE_FILE_BYTES} are read", metadata.len());
        return Err(DatasetError::too_large(path, what));
    }
    Ok((BufReader::with_capacity(1 << 14, File::open(path).map_err(io)?), metadata.len()))
}

fn open<R: BufRead + Seek>(
    mut reader: R,
    bytes: u64,
    path: &Path,
) -> Result<(Header, Opened<R>), DatasetError> {
    let start = reader.fill_buf().map_err(|source| DatasetError::Io { path: path.to_owned(), source })?;
    if start.starts_with(b"\x89PNG") {
        let limits = png::Limits { bytes: MAX_IMAGE_PIXELS * 4 };
        let mut decoder = png::Decoder::new_with_limits(reader, limits);
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true);
        decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
        let info = decoder.read_header_info().map_err(|error| from_png(error, path))?;
        let grey = matches!(info.color_type, png::ColorType::Grayscale | png::ColorType::GrayscaleAlpha);
        let header = Header { width: info.width as usize, height: info.height as usize, grey };
        // A pixel of a PNG takes a bit or more before compression.
        check_size(header, bytes.saturating_mul(MAX_DEFLATE_RATIO * 8), path)?;
        return Ok((header, Opened::Png(Box::new(decoder))));
    }
    if start.starts_with(&[0xff, 0xd8]) {
        let options = DecoderOptions::default()
            .set_max_width(MAX_IMAGE_SIDE)
            .set_max_height(MAX_IMAGE_SIDE)
            .set_strict_mode(true);
        let mut decoder = Box::new(JpegDecoder::new_with_options(reader, options));
        decoder.decode_headers().map_err(|error| from_jpeg(&error, path))?;
        let (width, height) = decoder.dimensions().unwrap_or((0, 0));
        let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
        let header = Header { width, height, grey };
        check_size(header, bytes.saturating_mul(JPEG_PIXELS_PER_BYTE), path)?;
        return Ok((header, Opened::Jpeg(decoder)));
    }
    Err(DatasetError::image(path, "it begins like neither PNG nor JPEG"))
}

/// Checks the size that a file declares, given how many pixels its bytes can hold at most.
fn check_size(header: Header, most: u64, path: &Path) -> Result<(), DatasetError> {
    let Header { width, height, .. } = header;
    if width == 0 || height == 0 {
        return Err(DatasetError::image(path, "it has no pixels"));
    }
    let pixels = width.saturating_mul(height);
    if width > MAX_IMAGE_SIDE || height > MAX_IMAGE_SIDE || pixels > MAX_IMAGE_PIXELS {
        let what = format!(
            "{width}x{height} pixels, at most {MAX_IMAGE_SIDE} in a row or column and {MAX_IMAGE_PIXELS} in all are read"
        );
        return Err(DatasetError::too_large(path, what));
    }
    match pixels as u64 > most {
        true => Err(DatasetError::image(
            path,
            format!("it declares {width}x{height} pixels but is too short for them"),
        )),
        false => Ok(()),
    }
}

fn decode_png<R: BufRead + Seek>(
    decoder: png::Decoder<R>,
    picture: &mut Picture,
    path: &Path,
) -> Result<(), DatasetError> {
    let mut reader = decoder.read_info().map_err(|error| from_png(error, path))?;
    let size = reader.output_buffer_size().ok_or_else(|| DatasetError::image(path, "it is too large"))?;
    picture.pixels.clear();
    picture.pixels.resize(size, 0);
    let info = reader.next_frame(&mut picture.pixels).map_err(|error| from_png(error, path))?;
    let stored = info.color_type.samples();
    // Transparency is left out.
    picture.channels = if stored < 3 { 1 } else { 3 };
    if stored != picture.channels {
        keep_first(&mut picture.pixels, stored, picture.channels);
    }
    let expected = picture.width * picture.height * picture.channels;
    match picture.pixels.len() == expected {
        true => Ok(()),
        false => Err(DatasetError::image(path, "its first frame is smaller than the image")),
    }
}

/// Keeps the first `kept` of every `stored` values.
fn keep_first(pixels: &mut Vec<u8>, stored: usize, kept: usize) {
    let count = pixels.len() / stored;
    for pixel in 0..count {
        pixels.copy_within(pixel * stored..pixel * stored + kept, pixel * kept);
    }
    pixels.truncate(count * kept);
}

fn decode_jpeg<R: BufRead + Seek>(
    mut decoder: JpegDecoder<R>,
    grey: bool,
    picture: &mut Picture,
    path: &Path,
) -> Result<(), DatasetError> {
    let (space, channels) = if grey { (ColorSpace::Luma, 1) } else { (ColorSpace::RGB, 3) };
    decoder.set_options(decoder.options().jpeg_set_out_colorspace(space));
    picture.channels = channels;
    picture.pixels.clear();
    picture.pixels.resize(picture.width * picture.height * channels, 0);
    decoder.decode_into(&mut picture.pixels).map_err(|error| from_jpeg(&error, path))
}

impl Picture {
    /// Brings the pixels to 1 or 3 channels.
    pub(super) fn set_channels(&mut self, channels: usize) {
        match (self.channels, channels) {
            (3, 1) => {
                // The luma of ITU-R BT.601, as JPEG has it.
                let luma = |rgb: &[u8; 3]| {
                    let [r, g, b] = rgb.map(u32::from);
                    ((299 * r + 587 * g + 114 * b + 500) / 1000) as u8
                };
                let grey: Vec<u8> = self.pixels.as_chunks::<3>().0.iter().map(luma).collect();
                self.pixels = grey;
            }
            (1, 3) => self.pixels = self.pixels.iter().flat_map(|&value| [value; 3]).collect(),
            _ => return,
        }
        self.channels = channels;
    }
}

fn from_png(error: DecodingError, path: &Path) -> DatasetError {
    match error {
        DecodingError::IoError(source)
            if !matches!(source.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) =>
        {
            DatasetError::Io { path: path.to_owned(), source }
        }
        error => DatasetError::image(path, error.to_string()),
    }
}

fn from_jpeg(error: &DecodeErrors, path: &Path) -> DatasetError {
    // The decoder's messages may span lines.
    let text = format!("{error:?}");
    DatasetError::image(path, text.split_whitespace().collect::<Vec<_>>().join(" "))
}
