//! Bounds on the content of data files, checked before anything is allocated.

/// Most bytes that the features of one split may take in memory.
pub const MAX_FEATURE_BYTES: usize = 2 << 30;

/// Most samples of one split: indices are 32 bits wide.
pub const MAX_SAMPLES: usize = 1 << 28;

/// Most values of one sample.
pub const MAX_SAMPLE_FEATURES: usize = 1 << 24;

/// Most classes: a label is the index of an output of the network.
pub const MAX_CLASSES: usize = 1 << 16;

/// Deflate cannot expand a byte of input to more than this many bytes: a compressed file that
/// declares more is damaged or hostile.
pub const MAX_DEFLATE_RATIO: u64 = 1032;

/// Most bytes of all class names together, and of all column names together: every model file carries them.
pub const MAX_NAMES_BYTES: usize = 1 << 17;

/// Most image files below one folder: their paths are held in memory while they are read.
pub const MAX_IMAGE_FILES: usize = 1 << 21;

/// Most bytes of one image file.
pub const MAX_IMAGE_FILE_BYTES: u64 = 64 << 20;

/// Most pixels in a row or a column of an image.
pub const MAX_IMAGE_SIDE: usize = 1 << 14;

/// Most pixels of one image, before it is brought to its size.
pub const MAX_IMAGE_PIXELS: usize = 1 << 25;

/// Most bytes of a text.
pub const MAX_TEXT_BYTES: u64 = 1 << 30;

/// Most different characters of a text: each is an output of the network, and every model file names them.
pub const MAX_CHARACTERS: usize = 1 << 14;

/// Most columns to predict, or labels of a sample.
pub const MAX_OUTPUTS: usize = 1 << 12;
