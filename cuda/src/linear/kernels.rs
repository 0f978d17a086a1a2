//! Which kernel runs a launch: a table, and policy that needs no device to be tested.

use super::LinearError;

/// Threads of a block of the step kernels.
pub const STEP_THREADS: u32 = 128;

/// Type of what stands between the kernels: convolution inputs, queries, keys, values, outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Single precision: for comparisons.
    F32,
    /// bfloat16, which loses nothing where the values were made as such.
    Bf16,
}

impl Activation {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Activation::F32 => 4,
            Activation::Bf16 => 2,
        }
    }

    /// As kernel names spell it.
    pub fn name(self) -> &'static str {
        match self {
            Activation::F32 => "float",
            Activation::Bf16 => "bf16",
        }
    }
}

/// One compiled form of the step kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepKernel {
    /// Width of a key, padded.
    pub key_dim: usize,
    /// Values of a head that one block computes.
    pub block_values: usize,
    /// Rows of a window that it takes at a time; longer windows loop.
    pub rows: usize,
    /// Log entries it has room for.
    pub entries: usize,
    /// Whether it exists for single precision too.
    pub float: bool,
}

impl StepKernel {
    const fn both(key_dim: usize, block_values: usize, rows: usize, entries: usize) -> StepKernel {
        StepKernel { key_dim, block_values, rows, entries, float: true }
    }

    const fn bf16(key_dim: usize, block_values: usize, rows: usize, entries: usize) -> StepKernel {
        StepKernel { key_dim, block_values, rows, entries, float: false }
    }
}

/// The forms that kernels/linear.cu instantiates; the first that fits is the best.
pub const STEP_KERNELS: [StepKernel; 11] = [
    StepKernel::bf16(128, 64, 1, 18),
    StepKernel::bf16(128, 64, 2, 20),
    StepKernel::bf16(128, 64, 4, 24),
    StepKernel::bf16(128, 64, 8, 32),
    StepKernel::both(128, 32, 1, 18),
    StepKernel::bf16(128, 32, 2, 20),
    StepKernel::both(128, 32, 4, 24),
    StepKernel::both(128, 32, 8, 32),
    StepKernel::both(128, 32, 8, 128),
    StepKernel::both(32, 32, 8, 32),
    StepKernel::both(32, 32, 8, 128),
];

/// Most log entries of a launch.
pub const MAX_ENTRIES: usize = 128;

/// Widths of keys that kernels are made for; narrower keys are padded with zeros.
const KEY_DIMS: [usize; 2] = [32, 128];

/// Values are padded to a multiple of it.
const BLOCK_VALUES: usize = 32;

/// The padded widths of keys and values.
///
/// # Errors
/// [`LinearError::KeyDim`] for keys wider than the kernels know.
pub fn padded(key_dim: usize, value_dim: usize) -> Result<(usize, usize), LinearError> {
    let key = KEY_DIMS.into_iter().find(|&width| key_dim <= width).ok_or(LinearError::KeyDim(key_dim))?;
    Ok((key, value_dim.next_multiple_of(BLOCK_VALUES)))
}

impl StepKernel {
    /// The kernel for windows of up to `rows` rows and `entries` log entries (window included), on `heads` value
    /// heads of all sequences together.
    ///
    /// Large blocks share more work between values; small ones keep a device of `processors` busy when there are few.
    ///
    /// # Errors
    /// [`LinearError::LogTooLong`] when none has room.
    pub fn choose(
        activation: Activation,
        (key_dim, value_dim): (usize, usize),
        rows: usize,
        entries: usize,
        heads: usize,
        processors: usize,
    ) -> Result<StepKernel, LinearError> {
        let fits = |kernel: &&StepKernel, block: usize| {
            let exists = kernel.float || activation == Activation::Bf16;
            exists && kernel.key_dim == key_dim && kernel.block_values == block && kernel.entries >= entries
        };
        let wide = value_dim.is_multiple_of(64) && heads * (value_dim / 64) >= processors;
        // Windows longer than every kernel's rows loop in the one with the most.
        for (block, wanted) in [(64, wide), (32, true)] {
            let mut kernels = STEP_KERNELS.iter().filter(|kernel| fits(kernel, block));
            let found = kernels.clone().find(|kernel| kernel.rows >= rows).or_else(|| kernels.next_back());
            if let (true, Some(kernel)) = (wanted, found) {
                return Ok(*kernel);
            }
        }
        Err(LinearError::LogTooLong { log: entries, capacity: MAX_ENTRIES })
    }

    /// Its name in the compiled kernels.
    pub fn name(&self, activation: Activation) -> String {
        let StepKernel { key_dim, block_values, rows, entries, .. } = self;
        format!("linear_step_{}_k{key_dim}_v{block_values}_t{rows}_e{entries}", activation.name())
    }

    /// Bytes of shared memory of a block: `StepShared` of kernels/linear_step.cuh.
    pub fn shared_bytes(&self, activation: Activation) -> usize {
        let StepKernel { key_dim, block_values, rows, entries, .. } = *self;
        let floats = block_values * key_dim
            + 2 * rows * key_dim
            + entries * block_values
            + 2 * entries
            + 3 * entries * rows
            + 2 * rows * block_values
            + 3 * rows;
        let stored = entries * key_dim + rows * (key_dim + block_values);
        (floats * 4 + stored * activation.bytes()).next_multiple_of(8) + 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_fit_what_they_are_chosen_for() {
        for (rows, entries) in [(1, 1), (1, 17), (1, 21), (2, 18), (3, 19), (5, 21), (8, 31), (64, 128)] {
            for heads in [4, 32, 8192] {
                for dims in [(128, 128), (32, 32), (128, 32)] {
                    for activation in [Activation::F32, Activation::Bf16] {
                        let kernel = StepKernel::choose(activation, dims, rows, entries, heads, 132).unwrap();
                        assert!(kernel.entries >= entries && kernel.key_dim == dims.0);
                        assert!(dims.1.is_multiple_of(kernel.block_values));
                        assert!(kernel.rows >= rows.min(8));
                        assert!(kernel.float || activation == Activation::Bf16);
                    }
                }
            }
        }
        assert!(StepKernel::choose(Activation::Bf16, (128, 128), 1, 129, 32, 132).is_err());
    }

    #[test]
    fn large_batches_take_large_blocks() {
        let block = |activation, heads| {
            StepKernel::choose(activation, (128, 128), 1, 17, heads, 132).unwrap().block_values
        };
        assert_eq!(block(Activation::Bf16, 32), 32);
        assert_eq!(block(Activation::Bf16, 8192), 64);
        assert_eq!(block(Activation::F32, 8192), 32);
    }

    #[test]
    fn narrow_heads_are_padded() {
        assert_eq!(padded(16, 16).unwrap(), (32, 32));
        assert_eq!(padded(96, 192).unwrap(), (128, 192));
        assert!(matches!(padded(256, 128), Err(LinearError::KeyDim(256))));
    }
}
