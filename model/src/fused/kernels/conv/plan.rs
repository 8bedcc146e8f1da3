//! Which values of the source each output of a convolution sums: without those that padding makes zero.
//!
//! Along one axis the positions fall into few classes that see the same taps: the interior, those near
//! either end and, for the input's gradient with a stride, the phases. Positions of a class share the
//! segments of their rows.

use super::{Geometry, tile::Segment};

/// A class of positions along one axis.
#[derive(Debug, Clone)]
pub(super) struct AxisClass {
    /// Taps in the order of the source, each with its distance from the first tap's source.
    pub(super) taps: Vec<(usize, usize)>,
    /// Positions, each with the source of the first tap.
    pub(super) positions: Vec<(usize, usize)>,
}

/// The geometry along one axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) padding: usize,
    pub(super) dilation: usize,
}

impl Axis {
    /// Outputs by the inputs that they sum.
    pub(super) fn forward(self) -> Vec<AxisClass> {
        classes(self.output, |position| {
            let source = |tap: usize| {
                let at = (position * self.stride + tap * self.dilation).checked_sub(self.padding)?;
                (at < self.input).then_some((tap, at))
            };
            (0..self.kernel).filter_map(source).collect()
        })
    }

    /// Inputs by the outputs that they contributed to.
    pub(super) fn backward(self) -> Vec<AxisClass> {
        classes(self.input, |position| {
            let source = |tap: usize| {
                let at = (position + self.padding).checked_sub(tap * self.dilation)?;
                (at % self.stride == 0 && at / self.stride < self.output).then_some((tap, at / self.stride))
            };
            (0..self.kernel).rev().filter_map(source).collect()
        })
    }
}

/// Groups positions by their taps and the distances between the taps' sources.
fn classes(positions: usize, sources: impl Fn(usize) -> Vec<(usize, usize)>) -> Vec<AxisClass> {
    let mut classes: Vec<AxisClass> = Vec::new();
    for position in 0..positions {
        let sources = sources(position);
        let first = sources.first().map_or(0, |&(_, at)| at);
        let taps: Vec<_> = sources.into_iter().map(|(tap, at)| (tap, at - first)).collect();
        match classes.iter_mut().find(|class| class.taps == taps) {
            Some(class) => class.positions.push((position, first)),
            None => classes.push(AxisClass { taps, positions: vec![(position, first)] }),
        }
    }
    classes
}

/// A class of pixels: the product of two classes along the axes.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) segments: Vec<Segment>,
    /// Starts of the rows of the source and of the target, of several images.
    pub(super) starts: Vec<u32>,
    pub(super) targets: Vec<u32>,
    /// Pixels of one image.
    pub(super) pixels: usize,
}

/// A convolution's forward pass, or that to the gradient of its input, as gathered products.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) classes: Vec<Class>,
    /// Images that the lists of the classes cover.
    pub(super) images: usize,
    /// Values of one image of the source and of the target.
    pub(super) source_len: usize,
    pub(super) target_len: usize,
    /// Channels of one group of the source and of the target.
    pub(super) source_channels: usize,
    pub(super) target_channels: usize,
    pub(super) groups: usize,
    /// Rows of the packed weights of one group.
    pub(super) depth: usize,
}

/// Rows that make the tiles of a class worth their start: small images are taken together.
const ROWS: usize = 384;

/// Most images that are taken together, so that a batch is enough work for several threads.
const IMAGES: usize = 16;

impl Plan {
    pub(super) fn forward(geometry: &Geometry) -> Self {
        let [down, across] = geometry.axes();
        let order = |row: usize, column: usize| row * across.kernel + column;
        let shapes = [geometry.input_shape(), geometry.output_shape()];
        Self::new(geometry, down.forward(), across.forward(), shapes, order)
    }

    pub(super) fn backward(geometry: &Geometry) -> Self {
        let [down, across] = geometry.axes();
        let taps = down.kernel * across.kernel;
        let order = move |row: usize, column: usize| taps - 1 - (row * across.kernel + column);
        let shapes = [geometry.output_shape(), geometry.input_shape()];
        Self::new(geometry, down.backward(), across.backward(), shapes, order)
    }

    /// `order` gives a tap's place in the packed weights.
    fn new(
        geometry: &Geometry,
        down: Vec<AxisClass>,
        across: Vec<AxisClass>,
        [source, target]: [[usize; 3]; 2],
        order: impl Fn(usize, usize) -> usize,
    ) -> Self {
        let [source_height, source_width, source_all] = source;
        let [target_height, target_width, target_all] = target;
        let channels = source_all / geometry.groups;
        let (source_len, target_len) = (source_height * source_width * source_all, target.iter().product());
        let images = (ROWS / (target_height * target_width).max(1)).clamp(1, IMAGES);
        let mut classes = Vec::with_capacity(down.len() * across.len());
        for rows in &down {
            for columns in &across {
                let mut segments: Vec<Segment> = Vec::new();
                for &(row, y) in &rows.taps {
                    for &(column, x) in &columns.taps {
                        let left = (y * source_width + x) * source_all;
                        let right = order(row, column) * channels;
                        match segments.last_mut() {
                            Some(last) if (last.left + last.len, last.right + last.len) == (left, right) => {
                                last.len += channels;
                            }
                            _ => segments.push(Segment { left, right, len: channels }),
                        }
                    }
                }
                let mut class = Class {
                    segments,
                    starts: Vec::new(),
                    targets: Vec::new(),
                    pixels: rows.positions.len() * columns.positions.len(),
                };
                for image in 0..images {
                    for &(row, y) in &rows.positions {
                        for &(column, x) in &columns.positions {
                            let start = image * source_len + (y * source_width + x) * source_all;
                            let to = image * target_len + (row * target_width + column) * target_all;
                            class.starts.push(start as u32);
                            class.targets.push(to as u32);
                        }
                    }
                }
                classes.push(class);
            }
        }
        let (depth_taps, target_channels) = (geometry.kernel[0] * geometry.kernel[1], target_all / geometry.groups);
        Self {
            classes,
            images,
            source_len,
            target_len,
            groups: geometry.groups,
            source_channels: channels,
            target_channels,
            depth: depth_taps * channels,
        }
    }
}
