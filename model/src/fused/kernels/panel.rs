//! Panels: how a right operand is packed.

/// Columns of a panel.
pub(super) const PANEL: usize = 64;

/// Widths of panels are multiples of this: the lanes of the widest vector.
pub(super) const LANES: usize = 16;

/// Width of the panel that begins at `column`, padded.
pub(super) fn padded(columns: usize, column: usize) -> usize {
    (columns - column).min(PANEL).next_multiple_of(LANES)
}
