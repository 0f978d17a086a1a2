//! Stop strings against a search of the whole text.

use millpond::sample::{StopError, StopMatcher};
use proptest::prelude::*;

/// Where the text ends by definition: at the earliest end of any occurrence, and of those the longest string.
fn search(text: &str, stops: &[String]) -> Option<(usize, usize)> {
    let ends = text.char_indices().map(|(place, character)| place + character.len_utf8());
    let longest_at = |end: usize| {
        let fitting = (0..stops.len()).filter(|&index| text[..end].ends_with(stops[index].as_str()));
        fitting.max_by_key(|&index| (stops[index].len(), std::cmp::Reverse(index)))
    };
    let mut found = ends.filter_map(|end| longest_at(end).map(|index| (end - stops[index].len(), index)));
    found.next()
}

fn cut(text: &str, lengths: &[usize]) -> Vec<String> {
    let mut characters = text.chars();
    let mut pieces: Vec<String> =
        lengths.iter().map(|&length| characters.by_ref().take(length).collect()).collect();
    pieces.push(characters.collect());
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_cut_gives_what_a_search_gives(
        text in "[abä]{0,30}",
        stops in prop::collection::vec("[abä]{1,5}", 0..5),
        lengths in prop::collection::vec(0usize..6, 0..12),
    ) {
        let mut matcher = StopMatcher::new(&stops).expect("valid");
        let mut passed = String::new();
        let mut before = String::new();
        for piece in cut(&text, &lengths) {
            before.push_str(&piece);
            let found = matcher.push(&piece, &mut passed);
            prop_assert_eq!(found, search(&before, &stops).map(|found| found.1));
            if found.is_none() {
                // Only what may become a stop string is held back, and nothing of it is lost.
                prop_assert_eq!(format!("{passed}{}", matcher.held()), before.clone());
                let held = matcher.held();
                prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.len() > held.len() && stop.starts_with(held)));
                let longer = (held.len() + 1..=before.len()).filter(|&length| before.is_char_boundary(before.len() - length));
                for length in longer {
                    let suffix = &before[before.len() - length..];
                    prop_assert!(!stops.iter().any(|stop| stop.starts_with(suffix)));
                }
            }
        }
        matcher.flush(&mut passed);
        let expected = search(&text, &stops).map_or(text.as_str(), |found| &text[..found.0]);
        prop_assert_eq!(passed.as_str(), expected);
        prop_assert_eq!(matcher.found(), search(&text, &stops).map(|found| stops[found.1].as_str()));
    }
}

#[test]
fn text_after_a_stop_string_is_dropped() {
    let mut matcher = StopMatcher::new(&["\nUser:"]).expect("valid");
    let mut passed = String::new();
    assert_eq!(matcher.push("Hello\nUse", &mut passed), None);
    assert_eq!((passed.as_str(), matcher.held()), ("Hello", "\nUse"));
    assert_eq!(matcher.push("r: more", &mut passed), Some(0));
    assert_eq!(matcher.push(" and more", &mut passed), Some(0));
    matcher.flush(&mut passed);
    assert_eq!(passed, "Hello");
}

#[test]
fn stop_strings_that_make_no_sense_are_refused() {
    let refused = |stops: &[String]| StopMatcher::new(stops).expect_err("must be refused");
    assert_eq!(refused(&[String::from("a"), String::new()]), StopError::Empty { index: 1 });
    assert_eq!(refused(&vec![String::from("a"); 10_000]), StopError::Count { count: 10_000 });
    assert_eq!(refused(&["a".repeat(5000)]), StopError::Length { index: 0, bytes: 5000 });
}
