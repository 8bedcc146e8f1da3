//! Memory that is held and kept resident, to study how training lives beside other loads.

use thiserror::Error;

/// The system does not give the memory that `MEM_MB` asks for.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("the system refuses {mem_mb} MB of ballast: lower MEM_MB or raise the memory limit")]
pub struct BallastError {
    mem_mb: usize,
}

/// A block of resident memory.
#[derive(Debug, Default)]
pub struct Ballast {
    block: Vec<u8>,
    stride: usize,
    touches: usize,
}

impl Ballast {
    /// Allocates `mem_mb` MB (of 2^20 bytes) and writes to every page; 0 allocates nothing.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn new(mem_mb: usize, stride: usize) -> Result<Self, BallastError> {
        let refused = BallastError { mem_mb };
        let bytes = mem_mb.checked_mul(1 << 20).ok_or(refused.clone())?;
        let mut block = Vec::new();
        block.try_reserve_exact(bytes).map_err(|_| refused)?;
        // Zeros would be shared pages: a value makes each page its own.
        block.resize(bytes, 1);
        Ok(Self { block, stride: stride.max(1), touches: 0 })
    }

    /// Writes a byte every stride, so that no page looks unused.
    pub fn touch(&mut self) {
        self.touches += 1;
        for byte in self.block.iter_mut().step_by(self.stride.max(1)) {
            *byte = self.touches as u8;
        }
        std::hint::black_box(&self.block);
    }

    #[cfg(test)]
    pub(crate) fn touches(&self) -> usize {
        self.touches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_kb() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn it_is_resident_and_stays_so() {
        let before = resident_kb();
        let mut ballast = Ballast::new(64, 4096).unwrap();
        for _ in 0..3 {
            ballast.touch();
            assert!(resident_kb() >= before + 60_000);
        }
    }

    #[test]
    fn what_no_system_has_is_a_clear_error() {
        let error = Ballast::new(1 << 40, 4096).unwrap_err();
        assert!(error.to_string().contains("MEM_MB"));
    }

    #[test]
    fn none_is_none() {
        let mut ballast = Ballast::new(0, 4096).unwrap();
        ballast.touch();
        assert_eq!(ballast.block.capacity(), 0);
    }
}
