//! Many activation rows: weights are unpacked once into panels and reused over all rows.
//!
//! A panel holds sixteen weight rows, one to a lane: four consecutive weights of each row make a vector, whose ints
//! meet four broadcast activations. Panels are unpacked for a chunk of columns small enough for the first cache
//! level; the chains of the outputs rest in the output matrix between chunks.

use std::cell::{Cell, RefCell};

use super::Product;
use super::activations::{RowPointers, RowSteps};
use super::buffer::AlignedBuffer;
use super::simd::Simd;
use super::tile::OutTile;
use crate::LANES;
use crate::quant::QFormat;

/// Columns of a chunk.
const CHUNK: usize = 512;
/// Bytes of a vector.
pub(super) const LINE: usize = 64;

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
    pub(super) const fn pairs(self) -> usize {
        if self.mins || self.offset != 0 { self.subs / 2 } else { 0 }
    }

    /// Where the pairs start.
    pub(super) const fn pairs_at(self) -> usize {
        LINE * (1 + self.mins as usize)
    }

    /// Where the sub-scales start.
    pub(super) const fn subs_at(self) -> usize {
        self.pairs_at() + LINE * self.pairs()
    }

    /// Where the weights start.
    pub(super) const fn weights_at(self) -> usize {
        self.subs_at() + LINE * self.subs
    }

    /// Bytes of a block.
    pub(super) const fn block_bytes(self) -> usize {
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
    /// The first activation row, and how far each part of the next is.
    x: RowPointers,
    x_steps: RowSteps,
    out: *mut f32,
    out_stride: usize,
    /// Rows that are stored; the rest repeat the last.
    rows: usize,
    /// Weight rows left for the tile.
    width: usize,
    /// Whether the chains start here.
    start: bool,
    ahead: Ahead,
}

impl Tile {
    /// Activation row `r`.
    #[inline(always)]
    fn row(&self, r: usize) -> RowPointers {
        self.x.step(self.x_steps, r.min(self.rows - 1))
    }

    /// Where the outputs of row `r` and panel `p` start; and how many there are.
    #[inline(always)]
    fn place(&self, r: usize, p: usize) -> (*mut f32, usize) {
        let out = self.out.wrapping_add(r.min(self.rows - 1) * self.out_stride + LANES * p);
        (out, self.width.saturating_sub(LANES * p).min(LANES))
    }
}

/// The same place in sixteen weight rows, `stride` bytes apart.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) start: *const u8,
    pub(super) stride: usize,
}

/// Unpacks some blocks of sixteen rows into a panel.
pub(super) type UnpackFn = unsafe fn(Rows, usize, *mut u8, Ahead);
/// Memory that will be read soon: with each block of work some lines of it are asked for.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    next: *const u8,
    lines: usize,
}

impl Ahead {
    /// The `group` weight rows from `first`, spread over `blocks` blocks of work on the group before. Beyond the last
    /// row too: whoever has these rows is likely to ask for what follows them in memory next.
    pub(super) fn group(product: &Product<'_>, first: usize, group: usize, blocks: usize) -> Ahead {
        let next = product.weights.as_ptr().wrapping_add(first * product.row_bytes);
        Ahead { next, lines: (group * product.row_bytes).div_ceil(LINE * blocks) }
    }

    /// Asks for part `i` of `count` of a block's lines. The processor has room for few requests at a time, so the
    /// lines of a block are spread over the work on it.
    ///
    /// # Safety
    /// See [`Simd`].
    #[inline(always)]
    pub(super) unsafe fn part<S: Simd>(self, i: usize, count: usize) {
        for line in i * self.lines / count..(i + 1) * self.lines / count {
            // SAFETY: prefetching reads nothing.
            unsafe { S::prefetch_far(self.next.wrapping_add(LINE * line)) }
        }
    }

    /// What is left after `blocks` blocks.
    #[inline(always)]
    pub(super) fn after(self, blocks: usize) -> Ahead {
        Ahead { next: self.next.wrapping_add(LINE * self.lines * blocks), ..self }
    }
}

/// Computes a tile.
pub(super) type TileFn = unsafe fn(&Tile);

/// The panel path of one format on one instruction set.
pub(super) struct PanelKernel {
    pub(super) layout: Layout,
    pub(super) unpack: UnpackFn,
    /// Tiles by their activation rows, largest first.
    pub(super) tiles: &'static [(usize, TileFn)],
    /// Panels of a tile.
    pub(super) panels: usize,
}

/// Memory of a thread, reused between calls.
#[derive(Default)]
struct Scratch {
    panels: AlignedBuffer<u8>,
    /// The last rows of a matrix, filled up to sixteen.
    rows: AlignedBuffer<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
    /// The address behind the weights of the last call: those there were asked for.
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

/// Reads the first `group` weight rows of a product with `outputs` where the call before did not ask for them.
pub(super) fn asked_for(product: &Product<'_>, group: usize, outputs: usize) {
    let weights = product.weights.as_ptr_range();
    if ASKED.replace(weights.end.addr()) != weights.start.addr() {
        touch(&product.weights[..group.min(outputs) * product.row_bytes]);
    }
}

/// The whole product.
///
/// # Safety
/// The processor has the kernel's instruction set, and the kernel is the format's.
pub(super) unsafe fn matmul(kernel: &PanelKernel, product: &Product<'_>, out: &mut OutTile<'_>) {
    SCRATCH.with_borrow_mut(|scratch| {
        let len = kernel.layout.block_len;
        let panel_bytes = kernel.layout.block_bytes() * (CHUNK.min(product.cols) / len);
        scratch.panels.resize(kernel.panels * panel_bytes);
        let panels = scratch.panels.as_mut_slice();
        let group = LANES * kernel.panels;
        asked_for(product, group, out.cols());
        for j in (0..out.cols()).step_by(group) {
            let mut ahead = next_group(kernel, product, j + group, out);
            for start in (0..product.cols).step_by(CHUNK) {
                let blocks = CHUNK.min(product.cols - start) / len;
                for (p, panel) in panels.chunks_exact_mut(panel_bytes).enumerate() {
                    let first = j + LANES * p;
                    if first < out.cols() {
                        let within = start / len * product.format.block_bytes();
                        let bytes = blocks * product.format.block_bytes();
                        let rows = weight_rows(product, first, within, bytes, &mut scratch.rows);
                        // SAFETY: the rows have the blocks, the panel has room for them.
                        unsafe { (kernel.unpack)(rows, blocks, panel.as_mut_ptr(), ahead) }
                        ahead = ahead.after(blocks);
                    }
                }
                // SAFETY: the panels are unpacked.
                ahead = unsafe {
                    tiles(kernel, product, out, panels.as_ptr(), panel_bytes, j, start, blocks, ahead)
                };
            }
        }
    });
}

/// Reads a byte of every line, in the order of addresses.
///
/// Panels are made of many rows side by side, and memory that nobody asked for comes slowly that way: the processor
/// foresees what a reader needs that goes through it in order.
fn touch(weights: &[u8]) {
    for byte in weights.iter().step_by(LINE) {
        // SAFETY: a reference may be read; volatile, so that it is.
        unsafe { std::ptr::from_ref(byte).read_volatile() };
    }
}

/// The weight rows from `first`, as much as one group takes.
fn next_group(kernel: &PanelKernel, product: &Product<'_>, first: usize, out: &OutTile<'_>) -> Ahead {
    let tiles = out.rows().div_ceil(kernel.tiles[0].0);
    let blocks = product.cols / kernel.layout.block_len * (kernel.panels + tiles);
    Ahead::group(product, first, LANES * kernel.panels, blocks)
}

/// Bytes `within .. within + bytes` of sixteen weight rows from `first`. Where fewer are left they are copied, and
/// what is in the place of the others is unspecified.
pub(super) fn weight_rows(
    product: &Product<'_>,
    first: usize,
    within: usize,
    bytes: usize,
    copy: &mut AlignedBuffer<u8>,
) -> Rows {
    let rows = &product.weights[first * product.row_bytes..];
    if rows.len() >= LANES * product.row_bytes {
        return Rows { start: rows[within..].as_ptr(), stride: product.row_bytes };
    }
    copy.resize(LANES * bytes);
    let copy = copy.as_mut_slice();
    for (row, copy) in rows.chunks_exact(product.row_bytes).zip(copy.chunks_exact_mut(bytes)) {
        copy.copy_from_slice(&row[within..within + bytes]);
    }
    Rows { start: copy.as_ptr(), stride: bytes }
}

/// All activation rows by the panels of one chunk. Returns what is left to ask for.
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
    mut ahead: Ahead,
) -> Ahead {
    let (largest, _) = kernel.tiles[0];
    let mut i = 0;
    while i < out.rows() {
        let left = out.rows() - i;
        // As few tiles as can be, of even sizes.
        let even = left.div_ceil(left.div_ceil(largest));
        let fitting = kernel.tiles.iter().rev().find(|tile| tile.0 >= even);
        let &(size, run) = fitting.unwrap_or(&kernel.tiles[0]);
        let rows = size.min(left);
        let tile = Tile {
            panels,
            panel_bytes,
            blocks,
            x_block: start / kernel.layout.block_len,
            x: product.x.row_pointers(product.x_rows.start + i),
            x_steps: product.x.row_steps(),
            out: out.element(i, j),
            out_stride: out.stride(),
            rows,
            width: out.cols() - j,
            start: start == 0,
            ahead,
        };
        // SAFETY: the caller's promise; rows and columns lie in the tile of the output.
        unsafe { run(&tile) }
        ahead = ahead.after(blocks);
        i += rows;
    }
    ahead
}

/// Chains of dot products per output: a tile needs eight or more to keep the processor busy.
const fn ways(outputs: usize) -> usize {
    if outputs < 8 { 2 } else { 1 }
}

/// The activation rows of a tile.
#[inline(always)]
fn rows<const R: usize>(tile: &Tile) -> [RowPointers; R] {
    let mut rows = [tile.x; R];
    for r in 0..R {
        rows[r] = tile.row(r);
    }
    rows
}

/// One int of memory in all lanes.
///
/// # Safety
/// Four bytes are readable; see [`Simd`].
#[inline(always)]
pub(super) unsafe fn splat_at<S: Simd, T>(p: *const T) -> S::Vector {
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
    let x = rows::<R>(tile);
    let ways = ways(R * P);
    // SAFETY: the panels hold the blocks, the activations the same blocks.
    unsafe {
        for b in 0..tile.blocks {
            let block = tile.panels.add(b * layout.block_bytes());
            let x_block = tile.x_block + b;
            let mut sums = [[S::zero(); P]; R];
            if !MINS && layout.pairs() > 0 {
                add_pairs::<S, SUBS, R, P>(tile, &x, layout, block, x_block, &mut sums);
            }
            for sub in 0..SUBS {
                if sub % (SUBS / 4) == 0 {
                    tile.ahead.after(b).part::<S>(sub / (SUBS / 4), 4);
                }
                let steps = 64 / SUBS;
                let mut dots = [[[S::zero(); P]; R]; 2];
                let weights = block.add(layout.weights_at() + LINE * steps * sub);
                if S::PAIRS && R.is_multiple_of(2) {
                    let k = 256 * x_block + 4 * steps * sub;
                    dots[0] = paired::<S, WIDE, R, P>(tile, &x, weights, k, steps);
                }
                let singly = if S::PAIRS && R.is_multiple_of(2) { 0 } else { steps };
                for first in (0..singly).step_by(ways) {
                    // A loop of its own, so that sums are told apart by constants and stay in registers.
                    for way in 0..ways {
                        let step = first + way;
                        let mut w = [S::zero(); P];
                        for p in 0..P {
                            w[p] = S::load(weights.add(p * tile.panel_bytes + LINE * step));
                        }
                        for r in 0..R {
                            let k = 256 * x_block + 4 * (steps * sub + step);
                            let x = splat_at::<S, i8>(x[r].quants.add(k));
                            for p in 0..P {
                                dots[way][r][p] = S::dot::<WIDE>(dots[way][r][p], w[p], x);
                            }
                        }
                    }
                }
                for p in 0..P {
                    let scale = S::load(block.add(p * tile.panel_bytes + layout.subs_at() + LINE * sub));
                    for r in 0..R {
                        let dot =
                            if ways == 2 { S::add(dots[0][r][p], dots[1][r][p]) } else { dots[0][r][p] };
                        sums[r][p] = S::add(sums[r][p], S::multiply(dot, scale));
                    }
                }
            }
            let mut offsets = [[S::zero(); P]; R];
            if MINS {
                add_pairs::<S, SUBS, R, P>(tile, &x, layout, block, x_block, &mut offsets);
            }
            let start = tile.start && b == 0;
            for p in 0..P {
                let scales = S::load_floats(block.add(p * tile.panel_bytes).cast());
                let mins = S::load_floats(block.add(p * tile.panel_bytes + LINE * MINS as usize).cast());
                for r in 0..R {
                    let (out, width) = tile.place(r, p);
                    let chain = if start { S::splat(0.0) } else { S::load_first(out, width) };
                    let x_scale = S::splat(*x[r].scales.add(x_block));
                    let mut chain = S::fma(S::to_floats(sums[r][p]), S::product(scales, x_scale), chain);
                    if MINS {
                        let offsets = S::to_floats(offsets[r][p]);
                        chain = S::negated_fma(offsets, S::product(mins, x_scale), chain);
                    }
                    if r < tile.rows {
                        S::store_first(out, chain, width);
                    }
                }
            }
        }
    }
}

/// Dot products of `4 steps` weights from `weights` with the activations from `k`, two activation rows at a time.
///
/// # Safety
/// As for [`tile_of_256`]; `steps` is even.
#[inline(always)]
unsafe fn paired<S: Simd, const WIDE: bool, const R: usize, const P: usize>(
    tile: &Tile,
    x: &[RowPointers; R],
    weights: *const u8,
    k: usize,
    steps: usize,
) -> [[S::Vector; P]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut dots = [[S::zero(); P]; R];
        for p in 0..P {
            for r in (0..R).step_by(2) {
                let mut sums = [S::zero(); 2];
                for step in (0..steps).step_by(2) {
                    let w = weights.add(p * tile.panel_bytes + LINE * step);
                    let x = [x[r].quants.add(k + 4 * step), x[r + 1].quants.add(k + 4 * step)];
                    sums = S::dot_pair::<WIDE>(sums, [S::load(w), S::load(w.add(LINE))], x);
                }
                let [first, second] = S::apart(sums);
                (dots[r][p], dots[r + 1][p]) = (first, second);
            }
        }
        dots
    }
}

/// Adds the products of a block's pairs of words with the sums of activations.
///
/// # Safety
/// As for [`tile_of_256`].
#[inline(always)]
unsafe fn add_pairs<S: Simd, const SUBS: usize, const R: usize, const P: usize>(
    tile: &Tile,
    x: &[RowPointers; R],
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
                let x = if SUBS == 8 { x[r].sums32 } else { x[r].sums16 };
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
    let x = rows::<R>(tile);
    let ways = ways(R * P);
    // SAFETY: the panels hold the blocks, the activations the same blocks.
    unsafe {
        let mut chains = [[S::splat(0.0); P]; R];
        if !tile.start {
            for r in 0..R {
                for p in 0..P {
                    let (out, width) = tile.place(r, p);
                    chains[r][p] = S::load_first(out, width);
                }
            }
        }
        for b in 0..tile.blocks {
            let block = tile.panels.add(b * layout.block_bytes());
            let x_block = tile.x_block + b;
            tile.ahead.after(b).part::<S>(0, 1);
            let mut dots = [[[S::zero(); P]; R]; 2];
            if OFFSET != 0 {
                for r in 0..R {
                    let x_sum = splat_at::<S, i32>(x[r].sums.add(x_block));
                    dots[0][r] = [S::multiply(x_sum, S::splat_int(-OFFSET)); P];
                }
            }
            if S::PAIRS && R.is_multiple_of(2) {
                let weights = block.add(layout.weights_at());
                dots[1] = paired::<S, WIDE, R, P>(tile, &x, weights, 32 * x_block, 8);
            }
            let singly = if S::PAIRS && R.is_multiple_of(2) { 0 } else { 8 };
            for first in (0..singly).step_by(ways) {
                // As in tiles of 256.
                for way in 0..ways {
                    let step = first + way;
                    let mut w = [S::zero(); P];
                    for p in 0..P {
                        w[p] = S::load(block.add(p * tile.panel_bytes + layout.weights_at() + LINE * step));
                    }
                    for r in 0..R {
                        let x = splat_at::<S, i8>(x[r].quants.add(32 * x_block + 4 * step));
                        for p in 0..P {
                            dots[way][r][p] = S::dot::<WIDE>(dots[way][r][p], w[p], x);
                        }
                    }
                }
            }
            for p in 0..P {
                let scales = S::load_floats(block.add(p * tile.panel_bytes).cast());
                let mins = S::load_floats(block.add(p * tile.panel_bytes + LINE * MINS as usize).cast());
                for r in 0..R {
                    let x_scale = S::splat(*x[r].scales.add(x_block));
                    let scale = S::product(scales, x_scale);
                    let both = ways == 2 || S::PAIRS;
                    let dot = if both { S::add(dots[0][r][p], dots[1][r][p]) } else { dots[0][r][p] };
                    chains[r][p] = S::fma(S::to_floats(dot), scale, chains[r][p]);
                    if MINS {
                        let x_sum = S::to_floats(splat_at::<S, i32>(x[r].sums.add(x_block)));
                        chains[r][p] = S::negated_fma(x_sum, S::product(mins, x_scale), chains[r][p]);
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                if r < tile.rows {
                    let (out, width) = tile.place(r, p);
                    S::store_first(out, chains[r][p], width);
                }
            }
        }
    }
}
