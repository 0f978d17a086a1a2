//! Products against the ceilings of the machine, measured alternately in the same run.
//!
//! `cargo bench -p millpond-simd --bench matmul -- [--threads N] [--isa NAME] [--rounds N] [gemv|gemm|core] [FORMAT ..]`
//!
//! gemv: a matrix of more than 200 MB with 1 to 4 activation rows, as a share of the bandwidth of reading the same
//! bytes. gemm: 512, 16 and 8 activation rows, as a share of the peak of multiply-adds (bytes or floats). core: one
//! thread on weights that fit the second cache level, the best of many short runs: what the instructions allow, even
//! on a busy machine.

use std::time::Instant;

use millpond_simd::isa::Isa;
use millpond_simd::matmul::{Activations, MatmulKernels, OutTile};
use millpond_simd::quant::QFormat;

struct Options {
    threads: usize,
    rounds: usize,
    isa: Isa,
    gemv: bool,
    gemm: bool,
    core: bool,
    formats: Vec<QFormat>,
}

fn options() -> Options {
    let mut options = Options {
        threads: 2,
        rounds: 7,
        isa: Isa::detect(),
        gemv: true,
        gemm: true,
        core: false,
        formats: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("an option has a value");
        match argument.as_str() {
            "--bench" => {}
            "--threads" => options.threads = value().parse().expect("a number"),
            "--rounds" => options.rounds = value().parse().expect("a number"),
            "--isa" => options.isa = value().parse().expect("an instruction set"),
            "gemv" => options.gemm = false,
            "gemm" => options.gemv = false,
            "core" => (options.gemv, options.gemm, options.core) = (false, false, true),
            name => {
                let format = QFormat::ALL.into_iter().find(|format| format.name() == name);
                options.formats.push(format.expect("a format"));
            }
        }
    }
    if options.formats.is_empty() {
        options.formats = vec![
            QFormat::Q4K,
            QFormat::Q5K,
            QFormat::Q6K,
            QFormat::Q4_0,
            QFormat::Q8_0,
            QFormat::IQ4XS,
            QFormat::IQ4NL,
            QFormat::F16,
            QFormat::BF16,
            QFormat::F32,
        ];
    }
    options
}

/// Runs `work(chunk)` for every chunk on `threads` threads, each of which has consecutive ones, as in the runtime.
fn parallel(threads: usize, chunks: usize, work: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let work = &work;
            scope.spawn(move || (chunks * thread / threads..chunks * (thread + 1) / threads).for_each(work));
        }
    });
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Where threads write; each claims its own columns.
struct Shared(*mut f32);
// SAFETY: the threads write disjoint columns.
unsafe impl Sync for Shared {}

/// Columns `from .. to` of the product.
#[allow(clippy::too_many_arguments)]
fn columns(
    kernels: &MatmulKernels,
    format: QFormat,
    weights: &[u8],
    cols: usize,
    x: &Activations,
    out: &Shared,
    stride: usize,
    range: std::ops::Range<usize>,
) {
    let bytes = format.row_bytes(cols).expect("whole blocks");
    // SAFETY: the matrix has `x.rows()` rows of `stride` numbers, and nobody else writes these columns.
    let tile = unsafe { OutTile::from_raw(out.0.add(range.start), stride, x.rows(), range.len()) };
    let weights = &weights[range.start * bytes..range.end * bytes];
    kernels.matmul(format, weights, range.len(), cols, x, 0..x.rows(), tile);
}

fn random_bytes(format: QFormat, len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // No exponent of all ones, whatever the format: neither infinities nor denormals to slow things down.
        bytes.extend((state ^ (state >> 29)).to_le_bytes().map(|byte| byte & 0xb7));
    }
    bytes.truncate(len);
    if format == QFormat::F32 || format == QFormat::BF16 {
        bytes.iter_mut().skip(1).step_by(2).for_each(|byte| *byte = 0x3c);
    }
    bytes
}

#[cfg(target_arch = "x86_64")]
mod ceilings {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    pub(crate) fn read(bytes: &[u8]) {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: detected.
            unsafe { read_512(bytes) }
        } else {
            black_box(bytes.iter().fold(0u64, |sum, &byte| sum + u64::from(byte)));
        }
    }

    #[target_feature(enable = "avx512f")]
    fn read_512(bytes: &[u8]) {
        let mut sums = [_mm512_setzero_si512(); 8];
        for chunk in bytes.chunks_exact(512) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: 64 bytes at 64 i, of 512.
                let v = unsafe { _mm512_loadu_si512(chunk.as_ptr().add(64 * i).cast()) };
                *sum = _mm512_xor_si512(*sum, v);
            }
            _mm_prefetch(chunk.as_ptr().wrapping_add(4096).cast(), _MM_HINT_T0);
        }
        black_box(sums);
    }

    /// Multiply-adds of bytes per call.
    pub(crate) const BYTES: f64 = 16.0 * 64.0 * 200_000.0;
    /// Multiply-adds of floats per call.
    pub(crate) const FLOATS: f64 = 16.0 * 16.0 * 200_000.0;

    pub(crate) fn bytes() {
        assert!(is_x86_feature_detected!("avx512vnni"), "the peak is that of AVX-512 VNNI");
        // SAFETY: detected.
        unsafe { bytes_512() }
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn bytes_512() {
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
        let mut sums = [_mm512_setzero_si512(); 16];
        for _ in 0..200_000 {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    pub(crate) fn floats() {
        assert!(is_x86_feature_detected!("avx512f"), "the peak is that of AVX-512");
        // SAFETY: detected.
        unsafe { floats_512() }
    }

    #[target_feature(enable = "avx512f")]
    fn floats_512() {
        let (a, b) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(0.25)));
        let mut sums = [_mm512_setzero_ps(); 16];
        for _ in 0..200_000 {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod ceilings {
    use std::hint::black_box;

    pub(crate) const BYTES: f64 = 0.0;
    pub(crate) const FLOATS: f64 = 0.0;

    pub(crate) fn read(bytes: &[u8]) {
        black_box(bytes.iter().fold(0u64, |sum, &byte| sum + u64::from(byte)));
    }

    pub(crate) fn bytes() {}

    pub(crate) fn floats() {}
}

fn gemv(options: &Options, kernels: &MatmulKernels, format: QFormat, cols: usize) {
    let row_bytes = format.row_bytes(cols).expect("whole blocks");
    const STEP: usize = 128;
    let rows = (208_000_000 / row_bytes).next_multiple_of(STEP);
    let weights = random_bytes(format, rows * row_bytes);
    for x_rows in [1, 2, 3, 4, 6, 8] {
        let x: Vec<f32> = (0..x_rows * cols).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut activations = Activations::new();
        activations.prepare(kernels, format.activation_kind(), &x, x_rows, cols);
        let mut out = vec![0.0; x_rows * rows];
        let shared = Shared(out.as_mut_ptr());
        for threads in (1..=options.threads).rev() {
            let (mut reads, mut products, mut shares) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..options.rounds {
                let read = seconds(|| {
                    parallel(threads, rows / STEP, |chunk| {
                        ceilings::read(&weights[chunk * STEP * row_bytes..(chunk + 1) * STEP * row_bytes]);
                    });
                });
                let product = seconds(|| {
                    parallel(threads, rows / STEP, |chunk| {
                        let range = chunk * STEP..(chunk + 1) * STEP;
                        columns(kernels, format, &weights, cols, &activations, &shared, rows, range);
                    });
                });
                reads.push(weights.len() as f64 / read / 1e9);
                products.push(weights.len() as f64 / product / 1e9);
                shares.push(read / product * 100.0);
            }
            println!(
                "| gemv | {} | {rows} x {cols} | {x_rows} | {threads} | {:.1} | {:.1} GB/s | {:.0} % |",
                format.name(),
                median(products),
                median(reads),
                median(shares),
            );
        }
    }
}

fn gemm(
    options: &Options,
    kernels: &MatmulKernels,
    format: QFormat,
    x_rows: usize,
    rows: usize,
    cols: usize,
) {
    const STEP: usize = 64;
    let row_bytes = format.row_bytes(cols).expect("whole blocks");
    let weights = random_bytes(format, rows * row_bytes);
    let x: Vec<f32> = (0..x_rows * cols).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut activations = Activations::new();
    activations.prepare(kernels, format.activation_kind(), &x, x_rows, cols);
    let mut out = vec![0.0; x_rows * rows];
    let shared = Shared(out.as_mut_ptr());
    let float = format.block_len() == 1;
    let (peak, peak_work): (fn(), f64) =
        if float { (ceilings::floats, ceilings::FLOATS) } else { (ceilings::bytes, ceilings::BYTES) };
    let repeats = 1 + 1024 / x_rows;
    let work = (repeats * x_rows * rows * cols) as f64;
    for threads in (1..=options.threads).rev() {
        let (mut peaks, mut products, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            let ceiling = seconds(|| parallel(threads, 4 * threads, |_| peak()));
            let ceiling = 2.0 * (4 * threads) as f64 * peak_work / ceiling / 1e9;
            let product = seconds(|| {
                parallel(threads, repeats * rows / STEP, |chunk| {
                    let start = chunk % (rows / STEP) * STEP;
                    let range = start..start + STEP;
                    columns(kernels, format, &weights, cols, &activations, &shared, rows, range);
                });
            });
            let product = 2.0 * work / product / 1e9;
            peaks.push(ceiling);
            products.push(product);
            shares.push(product / ceiling * 100.0);
        }
        println!(
            "| gemm | {} | {rows} x {cols} | {x_rows} | {threads} | {:.0} | {:.0} Gop/s | {:.0} % |",
            format.name(),
            median(products),
            median(peaks),
            median(shares),
        );
    }
}

fn best(mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while start.elapsed().as_secs_f64() < 0.25 {
        best = best.min(seconds(&mut work));
    }
    best
}

/// One thread, small weights, best of many.
fn core(kernels: &MatmulKernels, format: QFormat, cols: usize, rows: usize) {
    let row_bytes = format.row_bytes(cols).expect("whole blocks");
    let weights = random_bytes(format, rows * row_bytes);
    let mut line = format!("| core | {} | {rows} x {cols} |", format.name());
    for x_rows in [1, 2, 3, 4, 5, 6, 8, 12, 16, 48] {
        let x: Vec<f32> = (0..x_rows * cols).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut activations = Activations::new();
        activations.prepare(kernels, format.activation_kind(), &x, x_rows, cols);
        let mut out = vec![0.0; x_rows * rows];
        let time = best(|| {
            let tile = OutTile::new(&mut out, rows, x_rows, rows);
            kernels.matmul(format, &weights, rows, cols, &activations, 0..x_rows, tile);
        });
        let gigabytes = weights.len() as f64 / time / 1e9;
        let operations = 2.0 * (x_rows * rows * cols) as f64 / time / 1e9;
        line += &format!(" {x_rows}: {gigabytes:.1} GB/s {operations:.0} Gop/s |");
    }
    println!("{line}");
}

/// One thread, pieces of a matrix beyond the caches: the best piece against the best reading.
fn stream(kernels: &MatmulKernels, format: QFormat, cols: usize) {
    let row_bytes = format.row_bytes(cols).expect("whole blocks");
    let piece_rows = (2_000_000 / row_bytes).next_multiple_of(64);
    let pieces = 52;
    let weights = random_bytes(format, pieces * piece_rows * row_bytes);
    let rate = |time: f64| (piece_rows * row_bytes) as f64 / time / 1e9;
    let mut line = format!("| stream | {} | {} x {cols} |", format.name(), pieces * piece_rows);
    for x_rows in [1, 2, 4, 8, 16] {
        let x: Vec<f32> = (0..x_rows * cols).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut activations = Activations::new();
        activations.prepare(kernels, format.activation_kind(), &x, x_rows, cols);
        let mut out = vec![0.0; x_rows * piece_rows];
        let (mut read, mut product) = (f64::INFINITY, f64::INFINITY);
        for i in 0..10 * pieces {
            let mut piece = weights.chunks_exact(piece_rows * row_bytes).cycle().skip(i % pieces);
            let first = piece.next().expect("a piece");
            read = read.min(seconds(|| ceilings::read(first)));
            let far = piece.nth(pieces / 2).expect("a piece");
            product = product.min(seconds(|| {
                let tile = OutTile::new(&mut out, piece_rows, x_rows, piece_rows);
                kernels.matmul(format, far, piece_rows, cols, &activations, 0..x_rows, tile);
            }));
        }
        line += &format!(" {x_rows}: {:.1} of {:.1} GB/s |", rate(product), rate(read));
    }
    println!("{line}");
}

fn main() {
    let options = options();
    let kernels = MatmulKernels::for_isa(options.isa).expect("an available instruction set");
    println!("instruction set {}, medians of {} alternating rounds", options.isa, options.rounds);
    if options.core {
        println!("bytes: {:.0} Gop/s", 2.0 * ceilings::BYTES / best(ceilings::bytes) / 1e9);
        println!("floats: {:.0} Gop/s", 2.0 * ceilings::FLOATS / best(ceilings::floats) / 1e9);
        for &format in &options.formats {
            stream(kernels, format, 1024);
            stream(kernels, format, 3584);
            core(kernels, format, 1024, 128);
            core(kernels, format, 3584, 64);
        }
        return;
    }
    println!("| product | format | weights | rows | threads | measured | ceiling | share |");
    println!("|---|---|---|---|---|---|---|---|");
    for &format in &options.formats {
        if options.gemv {
            gemv(&options, kernels, format, 1024);
            gemv(&options, kernels, format, 3584);
        }
        if options.gemm {
            for x_rows in [512, 16, 8] {
                gemm(&options, kernels, format, x_rows, 3584, 1024);
                gemm(&options, kernels, format, x_rows, 1024, 3584);
            }
        }
    }
}
