//! Folders of images: one folder per class, PNG and JPEG files in it.
//!
//! ```text
//! DIR/cat/1.png        DIR/dog/1.jpg         every fifth image of each class is test data, or
//! DIR/train/cat/1.png  DIR/test/cat/2.png    the folders say which are
//! ```
//!
//! Classes are numbered in the order of their names, which the data set keeps; names that are all whole numbers are
//! classes as they stand, as the labels of a table are. Images are ordered by file name. All must have one size
//! unless the spec gives one; they are stored as grey if every file is stored so. Values are standardised with the
//! mean and deviation of each channel over the training images, whichever part is loaded.
//!
//! Names that begin with a dot are ignored, and files without the extension of an image. Links are followed.

mod decode;
mod resize;

use crate::{
    DataNames, Dataset, DatasetError, Features, ImageSize, Normalization, Part, Split,
    limits::{MAX_CLASSES, MAX_FEATURE_BYTES, MAX_IMAGE_FILES, MAX_NAMES_BYTES, MAX_SAMPLE_FEATURES},
    split,
};
use decode::Picture;
use fl_protocol::{Input, Task};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

const EXTENSIONS: [&str; 3] = ["png", "jpg", "jpeg"];
/// Images that are not read. Leaving them out silently would leave out data.
const OTHER_EXTENSIONS: [&str; 9] = ["bmp", "gif", "webp", "tif", "tiff", "heic", "avif", "ppm", "pgm"];
const HINT: &str = "give a folder that holds one folder of PNG or JPEG images per class";

pub(crate) fn load(
    name: &str,
    dir: &Path,
    size: Option<ImageSize>,
    part: Part,
) -> Result<Dataset, DatasetError> {
    let Listing { names, num_classes, images } = Listing::read(name, dir, part)?;
    let shape = Shape::of(&images, size, dir)?;
    let wanted = |image: &Image| if image.test { part.has_test() } else { part.has_train() };
    let count = |test: bool| images.iter().filter(|image| image.test == test && wanted(image)).count();
    shape.check_total(count(false).max(count(true)), dir)?;
    let mut train = Pixels::with_capacity(count(false), shape);
    let mut test = Pixels::with_capacity(count(true), shape);
    // Test images give the statistics only where there are no others.
    let measured_on_test = images.iter().all(|image| image.test);
    let mut moments = vec![Moments::default(); shape.channels];
    let mut picture = Picture::default();
    for image in &images {
        let measured = image.test == measured_on_test;
        if !measured && !wanted(image) {
            continue;
        }
        let planes = shape.fit(&image.path, &mut picture)?;
        if measured {
            let planes = planes.chunks_exact(shape.width * shape.height);
            moments.iter_mut().zip(planes).for_each(|(moments, plane)| moments.add(plane));
        }
        if wanted(image) {
            let pixels = if image.test { &mut test } else { &mut train };
            pixels.values.extend_from_slice(&planes);
            pixels.labels.push(image.class);
        }
    }
    let (mean, std) = moments.iter().map(Moments::mean_and_std).unzip();
    let width = shape.len();
    Ok(Dataset {
        name: name.to_owned(),
        names: DataNames { labels: names, features: Vec::new() },
        input: Input::Image { shape: vec![shape.channels, shape.height, shape.width] },
        task: Task::classes(num_classes),
        normalization: Normalization { mean, std },
        train: Split::new(Features::U8(train.values), train.labels, width),
        test: Split::new(Features::U8(test.values), test.labels, width),
    })
}

/// One image file.
struct Image {
    path: PathBuf,
    class: u32,
    test: bool,
}

/// The images of all classes, training before test if they have folders of their own.
struct Listing {
    /// By class; empty if they are numbers.
    names: Vec<String>,
    num_classes: usize,
    images: Vec<Image>,
}

impl Listing {
    fn read(name: &str, dir: &Path, part: Part) -> Result<Self, DatasetError> {
        if !dir.is_dir() {
            return Err(missing(name, dir));
        }
        let parts = [dir.join("train"), dir.join("test")];
        let [has_train, has_test] = [holds_folders(&parts[0])?, holds_folders(&parts[1])?];
        let mut left = MAX_IMAGE_FILES;
        let mut read = |wanted: bool, dir: &Path| match wanted {
            true => classes_below(dir, &mut left),
            false => Ok(BTreeMap::new()),
        };
        let (train, test) = match has_train || has_test {
            true => (read(has_train, &parts[0])?, read(has_test, &parts[1])?),
            false => (read(true, dir)?, BTreeMap::new()),
        };
        // The classes of both parts count, so that their numbers do not depend on the part.
        let mut all: Vec<&String> = train.keys().chain(test.keys()).collect();
        all.sort();
        all.dedup();
        let (numbers, num_classes, names) = number(&all, dir)?;
        let class = |name: &String| all.binary_search(&name).map_or(0, |at| numbers[at]);
        let images = |files: &BTreeMap<String, Vec<PathBuf>>, test: bool| -> Vec<Image> {
            let of = |(name, paths): (&String, &Vec<PathBuf>)| {
                let class = class(name);
                paths.iter().map(move |path| Image { path: path.clone(), class, test }).collect::<Vec<_>>()
            };
            files.iter().flat_map(of).collect()
        };
        let mut listed = images(&train, false);
        if !has_test && part != Part::AllForTraining {
            let labels: Vec<u32> = listed.iter().map(|image| image.class).collect();
            listed.iter_mut().zip(split::fifths(&labels)).for_each(|(image, test)| image.test = test);
        }
        listed.extend(images(&test, true));
        let lacks = |wanted: bool, test: bool| wanted && !listed.iter().any(|image| image.test == test);
        if listed.is_empty() {
            return Err(DatasetError::unusable(dir, format!("its folders hold no images: {HINT}")));
        }
        for (wanted, test, what) in
            [(part.has_train(), false, "train"), (has_test && part.has_test(), true, "test")]
        {
            if lacks(wanted, test) {
                return Err(DatasetError::unusable(dir, format!("its folder `{what}` is missing or empty")));
            }
        }
        Ok(Self { names, num_classes, images: listed })
    }
}

/// The class of each name, the number of classes, and their names unless those are numbers.
fn number(names: &[&String], dir: &Path) -> Result<(Vec<u32>, usize, Vec<String>), DatasetError> {
    if names.iter().map(|name| name.len()).sum::<usize>() > MAX_NAMES_BYTES {
        let what = format!(
            "the names of its classes have more than {MAX_NAMES_BYTES} bytes: shorten or number them"
        );
        return Err(DatasetError::unusable(dir, what));
    }
    let numbers: Option<Vec<u32>> = names.iter().map(|name| name.parse().ok()).collect();
    let (numbers, named) = match numbers {
        Some(numbers) => (numbers, Vec::new()),
        None => ((0..names.len() as u32).collect(), names.iter().map(|name| (*name).clone()).collect()),
    };
    let num_classes = numbers.iter().max().map_or(0, |&max| max as usize + 1);
    match num_classes > MAX_CLASSES {
        true => Err(DatasetError::unusable(dir, format!("a class is beyond {}", MAX_CLASSES - 1))),
        false => Ok((numbers, num_classes, named)),
    }
}

/// The entries of a folder in the order of their names, without hidden ones.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let io = |source| DatasetError::Io { path: dir.to_owned(), source };
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entries.len() == MAX_IMAGE_FILES {
            return Err(DatasetError::too_large(dir, format!("it holds more than {MAX_IMAGE_FILES} files")));
        }
        entries.push(entry.path());
    }
    entries.sort();
    Ok(entries)
}

fn holds_folders(dir: &Path) -> Result<bool, DatasetError> {
    Ok(dir.is_dir() && entries(dir)?.iter().any(|path| path.is_dir()))
}

/// The images of each class; `left` is how many more may come.
fn classes_below(dir: &Path, left: &mut usize) -> Result<BTreeMap<String, Vec<PathBuf>>, DatasetError> {
    let mut classes = BTreeMap::new();
    for path in entries(dir)? {
        if !path.is_dir() {
            if is_image(&path)? {
                let what =
                    format!("it holds the image {} beside the folders of classes: {HINT}", path.display());
                return Err(DatasetError::unusable(dir, what));
            }
            continue;
        }
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            let what = format!("the name of its folder {} is not UTF-8: rename it", path.display());
            return Err(DatasetError::unusable(dir, what));
        };
        let mut images = Vec::new();
        for file in entries(&path)? {
            if file.is_dir() {
                let what = format!(
                    "{} is a folder inside of a class: put its images into the class",
                    file.display()
                );
                return Err(DatasetError::unusable(dir, what));
            }
            if is_image(&file)? {
                if *left == 0 {
                    return Err(DatasetError::too_large(
                        dir,
                        format!("it holds more than {MAX_IMAGE_FILES} images"),
                    ));
                }
                *left -= 1;
                images.push(file);
            }
        }
        classes.insert(name.to_owned(), images);
    }
    match classes.is_empty() {
        true => Err(DatasetError::unusable(dir, format!("it holds no folders: {HINT}"))),
        false => Ok(classes),
    }
}

/// Whether a file is to be read, by its extension.
fn is_image(path: &Path) -> Result<bool, DatasetError> {
    let Some(extension) = path.extension().and_then(|extension| extension.to_str()) else { return Ok(false) };
    let is_one_of = |known: &[&str]| known.iter().any(|known| extension.eq_ignore_ascii_case(known));
    match is_one_of(&OTHER_EXTENSIONS) {
        true => Err(DatasetError::image(path, format!("`.{extension}` is not read"))),
        false => Ok(is_one_of(&EXTENSIONS)),
    }
}

fn missing(name: &str, dir: &Path) -> DatasetError {
    DatasetError::Missing {
        dataset: name.to_owned(),
        looked_in: format!("no folder {}", dir.display()),
        hint: HINT.to_owned(),
    }
}

/// What every image is brought to.
#[derive(Debug, Clone, Copy)]
struct Shape {
    width: usize,
    height: usize,
    channels: usize,
    resized: bool,
}

impl Shape {
    /// From the spec, or from the headers of all images, which then must agree.
    fn of(images: &[Image], size: Option<ImageSize>, dir: &Path) -> Result<Self, DatasetError> {
        if let Some(ImageSize { width, height, channels: Some(channels) }) = size {
            return Self { width, height, channels, resized: true }.checked(dir);
        }
        let mut first: Option<(&Path, decode::Header)> = None;
        let mut grey = true;
        for image in images {
            let header = decode::header(&image.path)?;
            grey &= header.grey;
            let (first, expected) = *first.get_or_insert((&image.path, header));
            if size.is_none() && (header.width, header.height) != (expected.width, expected.height) {
                return Err(DatasetError::ImageSize {
                    path: image.path.clone(),
                    found: format!("{}x{}", header.width, header.height),
                    first: first.to_owned(),
                    expected: format!("{}x{}", expected.width, expected.height),
                    dir: dir.to_owned(),
                });
            }
        }
        let (width, height) = match (size, first) {
            (Some(size), _) => (size.width, size.height),
            (None, Some((_, header))) => (header.width, header.height),
            (None, None) => (0, 0),
        };
        Self { width, height, channels: if grey { 1 } else { 3 }, resized: size.is_some() }.checked(dir)
    }

    fn checked(self, dir: &Path) -> Result<Self, DatasetError> {
        match self.len() > MAX_SAMPLE_FEATURES {
            true => {
                let what = format!(
                    "images of {}x{} pixels: let them be resized, as in {}@32x32",
                    self.width,
                    self.height,
                    dir.display()
                );
                Err(DatasetError::too_large(dir, what))
            }
            false => Ok(self),
        }
    }

    fn len(self) -> usize {
        self.width.saturating_mul(self.height).saturating_mul(self.channels)
    }

    fn check_total(self, images: usize, dir: &Path) -> Result<(), DatasetError> {
        let bytes = self.len().saturating_mul(images);
        match bytes > MAX_FEATURE_BYTES {
            true => {
                let what = format!(
                    "{images} images of {}x{} pixels take {bytes} bytes, at most {MAX_FEATURE_BYTES} are held: give a \
                     smaller size, as in {}@32x32",
                    self.width,
                    self.height,
                    dir.display()
                );
                Err(DatasetError::too_large(dir, what))
            }
            false => Ok(()),
        }
    }

    /// Decodes an image, brings it to this shape, and gives its channels one after the other.
    fn fit(self, path: &Path, picture: &mut Picture) -> Result<Vec<u8>, DatasetError> {
        decode::decode(path, picture)?;
        picture.set_channels(self.channels);
        if self.resized && (picture.width, picture.height) != (self.width, self.height) {
            let mut pixels = Vec::new();
            resize::resize(picture, self.width, self.height, &mut pixels);
            picture.pixels = pixels;
            (picture.width, picture.height) = (self.width, self.height);
        }
        if picture.pixels.len() != self.len() {
            // It was another one when its header was read.
            return Err(DatasetError::image(path, "it changed while the folder was read"));
        }
        let mut planes = Vec::with_capacity(self.len());
        for channel in 0..self.channels {
            planes.extend(picture.pixels.iter().skip(channel).step_by(self.channels));
        }
        Ok(planes)
    }
}

/// The images of one part.
struct Pixels {
    values: Vec<u8>,
    labels: Vec<u32>,
}

impl Pixels {
    fn with_capacity(images: usize, shape: Shape) -> Self {
        Self { values: Vec::with_capacity(images * shape.len()), labels: Vec::with_capacity(images) }
    }
}

/// Exact sums of one channel.
#[derive(Debug, Clone, Default)]
struct Moments {
    count: u64,
    sum: u64,
    squares: u128,
}

impl Moments {
    fn add(&mut self, plane: &[u8]) {
        self.count += plane.len() as u64;
        self.sum += plane.iter().map(|&value| u64::from(value)).sum::<u64>();
        self.squares += u128::from(plane.iter().map(|&value| u64::from(value).pow(2)).sum::<u64>());
    }

    /// The deviation of a constant channel is set to 1.
    fn mean_and_std(&self) -> (f32, f32) {
        let count = self.count.max(1) as f64;
        let mean = self.sum as f64 / count;
        let variance = self.squares as f64 / count - mean * mean;
        let std = variance.max(0.0).sqrt() as f32;
        (mean as f32, if std > 1e-3 { std } else { 1.0 })
    }
}
