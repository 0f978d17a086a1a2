//! Standard output, where only answers go, and what is told beside them.

use std::io::Write;

/// Writes a line.
///
/// # Errors
/// The reader has gone.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(())
}

/// Writes text as it is and flushes it, so that a reader sees it at once.
///
/// # Errors
/// The reader has gone.
pub(crate) fn piece(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Writes a line for people to standard error. Who started the program may have stopped listening there, which is no
/// reason to end it: `eprintln!` would, and with it a server in the middle of its answers.
pub(crate) fn notice(text: std::fmt::Arguments<'_>) {
    let _nobody_listens = writeln!(std::io::stderr().lock(), "{text}");
}

/// Tells people something on standard error; takes what `format!` takes.
macro_rules! note {
    ($($text:tt)*) => { $crate::cli::output::notice(format_args!($($text)*)) };
}
pub(crate) use note;

/// Writes rows in columns of one width each; the first names the columns.
///
/// # Errors
/// The reader has gone.
pub(crate) fn table(rows: &[Vec<String>]) -> anyhow::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    rows.iter().try_for_each(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        line(cells.collect::<Vec<_>>().join("  ").trim_end())
    })
}

/// A number of bytes for people.
#[must_use]
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_read_well() {
        assert_eq!(super::bytes(1023), "1023 B");
        assert_eq!(super::bytes(1536), "1.5 KiB");
        assert_eq!(super::bytes(31_207_456), "29.8 MiB");
    }
}
