//! `millpond bench linear|capacity|spec`: what the buffer is worth, measured beside the machine's own ceilings.

pub mod capacity;
#[cfg(feature = "cuda")]
mod cuda;
pub mod linear;
pub mod rates;
pub mod shapes;
mod snapshots;
pub mod spec;
mod spec_table;
mod streams;
mod table;
mod traffic;

/// Drafts accepted in the mean.
const ACCEPTANCE: f64 = 0.6;

/// Tokens of a window that are confirmed in a round: the first, and [`ACCEPTANCE`] of the drafts in the mean.
fn confirmed(rows: usize, round: usize, stream: usize) -> usize {
    let drafts = (rows - 1) as f64 * ACCEPTANCE;
    let upto = |round: usize| (drafts * round as f64 + 0.37 * stream as f64).floor() as usize;
    1 + upto(round + 1) - upto(round)
}

/// The median; 0 of nothing.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::{confirmed, median};

    #[test]
    fn acceptance_is_what_it_says() {
        for rows in [1, 2, 4, 8] {
            for stream in 0..4 {
                let confirmed: Vec<usize> = (0..1000).map(|round| confirmed(rows, round, stream)).collect();
                assert!(confirmed.iter().all(|&count| (1..=rows).contains(&count)));
                let drafts = confirmed.iter().sum::<usize>() as f64 / 1000.0 - 1.0;
                assert!((drafts - 0.6 * (rows - 1) as f64).abs() < 0.01, "{drafts}");
            }
        }
    }

    #[test]
    fn medians_of_few_values() {
        assert_eq!(median([]), 0.0);
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
