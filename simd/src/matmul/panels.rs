//! Many activation rows: weights are unpacked once into panels and reused over all rows.
//!
//! A panel holds sixteen weight rows, one to a lane: four consecutive weights of each row make a vector, whose ints
//! meet four broadcast activations. Panels are unpacked for a chunk of columns small enough for the first cache
//! level; the chains of the outputs rest in the output matrix between chunks.

use std::cell::RefCell;

use super::Product;
use super::activations::RowPointers;
use super::buffer::AlignedBuffer;
use super::formats::{Format32, Format256};
use super::simd::Simd;
use super::tile::OutTile;
use crate::LANES;
use crate::quant::{Block, QFormat, unpack_block};

/// Columns of a chunk.
const CHUNK: usize = 512;
/// The most activation rows of a tile.
const MOST_ROWS: usize = 6;
/// The most panels of a tile.
pub(super) const MOST_PANELS: usize = 2;
/// Bytes of a vector.
const LINE: usize = 64;

/// How a format's panels are laid out: for each block the scales and, if it has them, the offset units of the
/// sixteen rows as floats, then, in blocks of 256, the pairs of words that meet the activations' sums (sub-offsets,
/// or sub-scales times minus the weights' offset) and the sub-scales as ints, then the weights.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) block_len: usize,
    /// Sub-scales of a block that differ: 8 or 16 in blocks of 256, none in blocks of 32.
    pub(super) subs: usize,
    /// Whether blocks have an offset.
    pub(super) mins: bool,
    /// What weights in the panel are above their values.
    pub(super) offset: i32,
}

impl Layout {
    /// Vectors of pairs of words.
    const fn pairs(self) -> usize {
        if self.mins || self.offset != 0 { self.subs / 2 } else { 0 }
    }

    /// Where the pairs start.
    const fn pairs_at(self) -> usize {
        LINE * (1 + self.mins as usize)
    }

    /// Where the sub-scales start.
    const fn subs_at(self) -> usize {
        self.pairs_at() + LINE * self.pairs()
    }

    /// Where the weights start.
    const fn weights_at(self) -> usize {
        self.subs_at() + LINE * self.subs
    }

    /// Bytes of a block.
    const fn block_bytes(self) -> usize {
        self.weights_at() + LINE * self.block_len / 4
    }
}

/// The layout of a format's panels; `wide_offset` is [`Simd::WIDE_OFFSET`].
pub(super) const fn layout(format: QFormat, wide_offset: i32) -> Layout {
    let (subs, mins, offset) = match format {
        QFormat::Q4K | QFormat::Q5K => (8, true, 0),
        QFormat::Q2K => (16, true, 0),
        QFormat::Q3K => (16, false, 4),
        QFormat::Q6K => (16, false, 32),
        QFormat::IQ4XS => (8, false, wide_offset),
        QFormat::Q4_0 => (0, false, 8),
        QFormat::Q5_0 => (0, false, 16),
        QFormat::MXFP4 => (0, false, 12),
        QFormat::Q4_1 | QFormat::Q5_1 => (0, true, 0),
        _ => (0, false, wide_offset),
    };
    Layout { block_len: format.block_len(), subs, mins, offset }
}

/// Operands of one tile: some activation rows by the panels of one chunk.
pub(super) struct Tile {
    /// The panels, one after the other.
    panels: *const u8,
    panel_bytes: usize,
    /// Blocks of the chunk, and the first one's index in the activations.
    blocks: usize,
    x_block: usize,
    x: [RowPointers; MOST_ROWS],
    out: [*mut f32; MOST_ROWS],
    /// Rows that are stored; the rest repeat the last.
    rows: usize,
    /// Weight rows in each panel.
    widths: [usize; MOST_PANELS],
    /// Whether the chains start here.
    start: bool,
}

/// The same block of sixteen weight rows.
pub(super) type Rows = [*const u8; LANES];
/// Unpacks some blocks of sixteen rows into a panel.
pub(super) type Unpack = unsafe fn(QFormat, &Rows, usize, *mut u8);
/// Computes a tile.
pub(super) type TileFn = unsafe fn(&Tile);

/// The panel path of one format on one instruction set.
pub(super) struct PanelKernel {
    pub(super) layout: Layout,
    pub(super) unpack: Unpack,
    /// Tiles by their activation rows, largest first.
    pub(super) tiles: &'static [(usize, TileFn)],
    /// Panels of a tile.
    pub(super) panels: usize,
}

thread_local! {
    /// The panels of the thread's current chunk.
    static PANELS: RefCell<AlignedBuffer<u8>> = const { RefCell::new(AlignedBuffer::new()) };
}

/// The whole product.
///
/// # Safety
/// The processor has the kernel's instruction set, and the kernel is the format's.
pub(super) unsafe fn matmul(kernel: &PanelKernel, product: &Product<'_>, out: &mut OutTile<'_>) {
    PANELS.with_borrow_mut(|buffer| {
        let len = kernel.layout.block_len;
        let panel_bytes = kernel.layout.block_bytes() * (CHUNK.min(product.cols) / len + 1);
        buffer.resize(kernel.panels * panel_bytes);
        let panels = buffer.as_mut_slice();
        for j in (0..out.cols()).step_by(LANES * kernel.panels) {
            for start in (0..product.cols).step_by(CHUNK) {
                let blocks = CHUNK.min(product.cols - start) / len;
                for (p, panel) in panels.chunks_exact_mut(panel_bytes).enumerate() {
                    let first = j + LANES * p;
                    if first < out.cols() {
                        let rows = weight_rows(product, first, out.cols(), start);
                        // SAFETY: the rows have the blocks, the panel has room for one more than them.
                        unsafe { (kernel.unpack)(product.format, &rows, blocks, panel.as_mut_ptr()) }
                    }
                }
                // SAFETY: the panels are unpacked.
                unsafe { tiles(kernel, product, out, panels.as_ptr(), panel_bytes, j, start, blocks) }
            }
        }
    });
}

/// Where sixteen weight rows have column `start`; rows past the last are replaced by the last.
fn weight_rows(product: &Product<'_>, first: usize, rows: usize, start: usize) -> Rows {
    let within = product.format.block_bytes() * (start / product.format.block_len());
    std::array::from_fn(|row| {
        let row = (first + row).min(rows - 1);
        product.weights[row * product.row_bytes + within..].as_ptr()
    })
}

/// All activation rows by the panels of one chunk.
///
/// # Safety
/// As for [`matmul`]; the panels hold weight rows `j ..` of columns `start ..`.
unsafe fn tiles(
    kernel: &PanelKernel,
    product: &Product<'_>,
    out: &mut OutTile<'_>,
    panels: *const u8,
    panel_bytes: usize,
    j: usize,
    start: usize,
    blocks: usize,
) {
    let smallest = kernel.tiles[kernel.tiles.len() - 1];
    let mut i = 0;
    while i < out.rows() {
        let left = out.rows() - i;
        let &(size, run) = kernel.tiles.iter().find(|tile| tile.0 <= left).unwrap_or(&smallest);
        let rows = size.min(left);
        let tile = Tile {
            panels,
            panel_bytes,
            blocks,
            x_block: start / kernel.layout.block_len,
            x: std::array::from_fn(|r| product.x.row_pointers(product.x_rows.start + i + r.min(rows - 1))),
            out: std::array::from_fn(|r| out.element(i + r.min(rows - 1), j)),
            rows,
            widths: std::array::from_fn(|p| LANES.min(out.cols().saturating_sub(j + LANES * p))),
            start: start == 0,
        };
        // SAFETY: the caller's promise; rows and columns lie in the tile of the output.
        unsafe { run(&tile) }
        i += rows;
    }
}

/// One int of memory in all lanes.
///
/// # Safety
/// Four bytes are readable; see [`Simd`].
#[inline(always)]
unsafe fn splat_at<S: Simd, T>(p: *const T) -> S::Vector {
    // SAFETY: the caller's promise; the read is unaligned.
    unsafe { S::splat_int(p.cast::<i32>().read_unaligned()) }
}

/// `R` activation rows by `P` panels of blocks of 256 with `SUBS` sub-scales.
///
/// # Safety
/// The processor has the instruction set `S`, whose features the caller is compiled with; the panels have this
/// layout.
#[inline(always)]
pub(super) unsafe fn tile_of_256<
    S: Simd,
    const SUBS: usize,
    const MINS: bool,
    const WIDE: bool,
    const R: usize,
    const P: usize,
>(
    tile: &Tile,
) {
    let offset = if MINS || (WIDE && S::WIDE_OFFSET == 0) { 0 } else { 1 };
    let layout = Layout { block_len: 256, subs: SUBS, mins: MINS, offset };
    // SAFETY: the panels hold the blocks, the activations the same blocks.
    unsafe {
        for b in 0..tile.blocks {
            let block = tile.panels.add(b * layout.block_bytes());
            let x_block = tile.x_block + b;
            let mut sums = [[S::zero(); P]; R];
            if !MINS && layout.pairs() > 0 {
                add_pairs::<S, SUBS, R, P>(tile, layout, block, x_block, &mut sums);
            }
            for sub in 0..SUBS {
                let steps = 64 / SUBS;
                let mut dots = [[S::zero(); P]; R];
                let weights = block.add(layout.weights_at() + LINE * steps * sub);
                for step in 0..steps {
                    let mut w = [S::zero(); P];
                    for p in 0..P {
                        w[p] = S::load(weights.add(p * tile.panel_bytes + LINE * step));
                    }
                    for r in 0..R {
                        let k = 256 * x_block + 4 * (steps * sub + step);
                        let x = splat_at::<S, i8>(tile.x[r].quants.add(k));
                        for p in 0..P {
                            dots[r][p] = S::dot::<WIDE>(dots[r][p], w[p], x);
                        }
                    }
                }
                for p in 0..P {
                    let scale = S::load(block.add(p * tile.panel_bytes + layout.subs_at() + LINE * sub));
                    for r in 0..R {
                        sums[r][p] = S::add(sums[r][p], S::multiply(dots[r][p], scale));
                    }
                }
            }
            let mut offsets = [[S::zero(); P]; R];
            if MINS {
                add_pairs::<S, SUBS, R, P>(tile, layout, block, x_block, &mut offsets);
            }
            let start = tile.start && b == 0;
            for p in 0..P {
                let scales = S::load_floats(block.add(p * tile.panel_bytes).cast());
                let mins = S::load_floats(block.add(p * tile.panel_bytes + LINE * MINS as usize).cast());
                for r in 0..R {
                    let out = tile.out[r].wrapping_add(LANES * p);
                    let chain = if start { S::splat(0.0) } else { S::load_first(out, tile.widths[p]) };
                    let x_scale = S::splat(*tile.x[r].scales.add(x_block));
                    let mut chain = S::fma(S::to_floats(sums[r][p]), S::product(scales, x_scale), chain);
                    if MINS {
                        let offsets = S::to_floats(offsets[r][p]);
                        chain = S::negated_fma(offsets, S::product(mins, x_scale), chain);
                    }
                    if r < tile.rows {
                        S::store_first(out, chain, tile.widths[p]);
                    }
                }
            }
        }
    }
}

/// Adds the products of a block's pairs of words with the sums of activations.
///
/// # Safety
/// As for [`tile_of_256`].
#[inline(always)]
unsafe fn add_pairs<S: Simd, const SUBS: usize, const R: usize, const P: usize>(
    tile: &Tile,
    layout: Layout,
    block: *const u8,
    x_block: usize,
    sums: &mut [[S::Vector; P]; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        for pair in 0..SUBS / 2 {
            let mut words = [S::zero(); P];
            for p in 0..P {
                words[p] = S::load(block.add(p * tile.panel_bytes + layout.pairs_at() + LINE * pair));
            }
            for r in 0..R {
                let x = if SUBS == 8 { tile.x[r].sums32 } else { tile.x[r].sums16 };
                let x = splat_at::<S, i16>(x.add(SUBS * x_block + 2 * pair));
                for p in 0..P {
                    sums[r][p] = S::dot_words(sums[r][p], words[p], x);
                }
            }
        }
    }
}

/// `R` activation rows by `P` panels of blocks of 32. `OFFSET` is what weights are above their values.
///
/// # Safety
/// As for [`tile_of_256`].
#[inline(always)]
pub(super) unsafe fn tile_of_32<
    S: Simd,
    const MINS: bool,
    const WIDE: bool,
    const OFFSET: i32,
    const R: usize,
    const P: usize,
>(
    tile: &Tile,
) {
    let layout = Layout { block_len: 32, subs: 0, mins: MINS, offset: OFFSET };
    // SAFETY: the panels hold the blocks, the activations the same blocks.
    unsafe {
        let mut chains = [[S::splat(0.0); P]; R];
        if !tile.start {
            for r in 0..R {
                for p in 0..P {
                    chains[r][p] = S::load_first(tile.out[r].wrapping_add(LANES * p), tile.widths[p]);
                }
            }
        }
        for b in 0..tile.blocks {
            let block = tile.panels.add(b * layout.block_bytes());
            let x_block = tile.x_block + b;
            let mut dots = [[S::zero(); P]; R];
            if OFFSET != 0 {
                for r in 0..R {
                    let x_sum = splat_at::<S, i32>(tile.x[r].sums.add(x_block));
                    dots[r] = [S::multiply(x_sum, S::splat_int(-OFFSET)); P];
                }
            }
            for step in 0..8 {
                let mut w = [S::zero(); P];
                for p in 0..P {
                    w[p] = S::load(block.add(p * tile.panel_bytes + layout.weights_at() + LINE * step));
                }
                for r in 0..R {
                    let x = splat_at::<S, i8>(tile.x[r].quants.add(32 * x_block + 4 * step));
                    for p in 0..P {
                        dots[r][p] = S::dot::<WIDE>(dots[r][p], w[p], x);
                    }
                }
            }
            for p in 0..P {
                let scales = S::load_floats(block.add(p * tile.panel_bytes).cast());
                let mins = S::load_floats(block.add(p * tile.panel_bytes + LINE * MINS as usize).cast());
                for r in 0..R {
                    let x_scale = S::splat(*tile.x[r].scales.add(x_block));
                    let scale = S::product(scales, x_scale);
                    chains[r][p] = S::fma(S::to_floats(dots[r][p]), scale, chains[r][p]);
                    if MINS {
                        let x_sum = S::to_floats(splat_at::<S, i32>(tile.x[r].sums.add(x_block)));
                        chains[r][p] = S::negated_fma(x_sum, S::product(mins, x_scale), chains[r][p]);
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                if r < tile.rows {
                    S::store_first(tile.out[r].wrapping_add(LANES * p), chains[r][p], tile.widths[p]);
                }
            }
        }
    }
}

/// Writes the half-precision numbers at `at` in each row's block as a vector of floats.
///
/// # Safety
/// The blocks are whole, a vector is writable; see [`Simd`].
#[inline(always)]
unsafe fn unpack_halves<S: Simd>(blocks: &Rows, at: usize, panel: *mut u8) {
    let mut halves = [0u16; LANES];
    // SAFETY: the caller's promise.
    unsafe {
        for (half, block) in halves.iter_mut().zip(blocks) {
            *half = u16::from_le(block.add(at).cast::<u16>().read_unaligned());
        }
        S::store_floats(panel.cast(), S::load_f16(halves.as_ptr().cast()));
    }
}

/// Transposes sixteen vectors, one a row, and writes them.
///
/// # Safety
/// Sixteen vectors are writable; see [`Simd`].
#[inline(always)]
unsafe fn store_transposed<S: Simd>(rows: &mut [S::Vector; LANES], panel: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        S::transpose(rows);
        for (i, &row) in rows.iter().enumerate() {
            S::store(panel.add(LINE * i), row);
        }
    }
}

/// Unpacks `count` blocks of 256 of sixteen rows.
///
/// # Safety
/// The processor has the instruction set `S`, whose features the caller is compiled with; the rows have the blocks,
/// the panel has room for them.
#[inline(always)]
pub(super) unsafe fn unpack_256<S: Simd, F: Format256<S>>(rows: &Rows, count: usize, panel: *mut u8) {
    let layout = layout(F::FORMAT, S::WIDE_OFFSET);
    // SAFETY: the caller's promise.
    unsafe {
        for b in 0..count {
            let panel = panel.add(b * layout.block_bytes());
            let mut blocks = *rows;
            for block in &mut blocks {
                *block = block.add(b * F::FORMAT.block_bytes());
            }
            unpack_halves::<S>(&blocks, F::SCALE_AT, panel);
            if F::MINS {
                unpack_halves::<S>(&blocks, F::MIN_AT, panel.add(LINE));
            }
            if F::SUBS == 8 {
                unpack_8_subs::<S, F>(&blocks, layout, panel);
            } else {
                unpack_16_subs::<S, F>(&blocks, layout, panel);
            }
            let weights = panel.add(layout.weights_at());
            let mut group = [S::zero(); LANES];
            macro_rules! groups {
                ($($group:literal)*) => {
                    $(for row in 0..LANES {
                        group[row] = F::group::<$group>(blocks[row]);
                    }
                    store_transposed::<S>(&mut group, weights.add(LINE * LANES * $group));)*
                };
            }
            groups!(0 1 2 3);
        }
    }
}

/// Sub-scales and pairs of a block with eight of them: a scale and an offset fit an int and are transposed together.
///
/// # Safety
/// As for [`unpack_256`].
#[inline(always)]
unsafe fn unpack_8_subs<S: Simd, F: Format256<S>>(blocks: &Rows, layout: Layout, panel: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut both = [S::zero(); LANES];
        for row in 0..LANES {
            let (scales, mins) = (F::scales(blocks[row]), F::mins(blocks[row]));
            both[row] = S::pair_words(S::widen_half(scales), S::widen_half(mins));
        }
        S::transpose(&mut both);
        for sub in 0..8 {
            S::store(panel.add(layout.subs_at() + LINE * sub), S::lower_words(both[sub]));
        }
        for pair in 0..layout.pairs() {
            let (mut low, mut high) = (S::upper_words(both[2 * pair]), S::upper_words(both[2 * pair + 1]));
            if !F::MINS {
                low = S::multiply(low, S::splat_int(-F::OFFSET));
                high = S::multiply(high, S::splat_int(-F::OFFSET));
            }
            S::store(panel.add(layout.pairs_at() + LINE * pair), S::pair_words(low, high));
        }
    }
}

/// Sub-scales and pairs of a block with sixteen sub-scales and no offsets.
///
/// # Safety
/// As for [`unpack_256`].
#[inline(always)]
unsafe fn unpack_16_subs<S: Simd, F: Format256<S>>(blocks: &Rows, layout: Layout, panel: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut scales = [S::zero(); LANES];
        for row in 0..LANES {
            scales[row] = S::ints_of_words(F::scales(blocks[row]));
        }
        store_transposed::<S>(&mut scales, panel.add(layout.subs_at()));
        for pair in 0..layout.pairs() {
            let low = S::multiply(scales[2 * pair], S::splat_int(-F::OFFSET));
            let high = S::multiply(scales[2 * pair + 1], S::splat_int(-F::OFFSET));
            S::store(panel.add(layout.pairs_at() + LINE * pair), S::pair_words(low, high));
        }
    }
}

/// Unpacks `count` blocks of 32 of sixteen rows, two at a time.
///
/// # Safety
/// As for [`unpack_256`]; if `count` is odd the panel has room for one more.
#[inline(always)]
pub(super) unsafe fn unpack_32<S: Simd, F: Format32<S>>(rows: &Rows, count: usize, panel: *mut u8) {
    let layout = layout(F::FORMAT, S::WIDE_OFFSET);
    let bytes = F::FORMAT.block_bytes();
    // SAFETY: the caller's promise; a block that is missing is replaced by the one before it.
    unsafe {
        for b in (0..count).step_by(2) {
            let second = (b + 1).min(count - 1);
            let (mut low, mut high) = (*rows, *rows);
            let mut pair = [S::zero(); LANES];
            for row in 0..LANES {
                low[row] = low[row].add(b * bytes);
                high[row] = high[row].add(second * bytes);
                pair[row] = F::pair(low[row], high[row]);
            }
            S::transpose(&mut pair);
            let panel = panel.add(b * layout.block_bytes());
            unpack_halves::<S>(&low, 0, panel);
            unpack_halves::<S>(&high, 0, panel.add(layout.block_bytes()));
            for (i, &weights) in pair.iter().enumerate() {
                let block = panel.add(i / 8 * layout.block_bytes());
                S::store(block.add(layout.weights_at() + LINE * (i % 8)), weights);
            }
        }
    }
}

/// Unpacks `count` blocks of sixteen rows of any block format with narrow weights, in plain code.
///
/// # Safety
/// The rows have the blocks, the panel has room for them.
pub(super) unsafe fn unpack_any(format: QFormat, rows: &Rows, count: usize, panel: *mut u8) {
    let layout = layout(format, 0);
    let bytes = format.block_bytes();
    let mut unpacked = Block::ZERO;
    for b in 0..count {
        for (row, &blocks) in rows.iter().enumerate() {
            // SAFETY: the caller's promise.
            let block = unsafe { std::slice::from_raw_parts(blocks.add(b * bytes), bytes) };
            unpack_block(format, block, &mut unpacked);
            // SAFETY: the caller's promise: a block of the panel is writable.
            let panel = unsafe {
                let panel = panel.add(b * layout.block_bytes());
                std::slice::from_raw_parts_mut(panel, layout.block_bytes())
            };
            write_block(layout, &unpacked, row, panel);
        }
    }
}

/// Writes one row's block into a panel's block.
fn write_block(layout: Layout, block: &Block, row: usize, panel: &mut [u8]) {
    let mut put = |at: usize, bytes: [u8; 4]| {
        panel[at + 4 * row..at + 4 * row + 4].copy_from_slice(&bytes);
    };
    put(0, block.scale.to_le_bytes());
    if layout.mins {
        put(LINE, block.min.to_le_bytes());
    }
    for pair in 0..layout.pairs() {
        let word = |sub: usize| match layout.mins {
            true => i16::from(block.sub_mins[sub]),
            false => i16::from(block.sub_scales[sub]) * -(layout.offset as i16),
        };
        let ([a, b], [c, d]) = (word(2 * pair).to_le_bytes(), word(2 * pair + 1).to_le_bytes());
        put(layout.pairs_at() + LINE * pair, [a, b, c, d]);
    }
    for sub in 0..layout.subs {
        put(layout.subs_at() + LINE * sub, i32::from(block.sub_scales[sub]).to_le_bytes());
    }
    for (i, four) in block.quants[..layout.block_len].as_chunks::<4>().0.iter().enumerate() {
        let weights = four.map(|quant| (quant + layout.offset as i8) as u8);
        put(layout.weights_at() + LINE * i, weights);
    }
}
