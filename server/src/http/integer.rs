//! Whole numbers in JSON. `16.0` is one too, and some clients write them so.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// Floats nearer to zero than this are whole numbers of 64 bits if they have no fraction. This itself, and its negative, may
/// have been larger before they were read.
const LARGE: f64 = 9_223_372_036_854_775_808.0;

/// A whole number of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole<T>(pub(super) T);

struct WholeVisitor<T>(PhantomData<T>);

impl<T: TryFrom<i64> + TryFrom<u64>> Visitor<'_> for WholeVisitor<T> {
    type Value = Whole<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an integer of type {}", std::any::type_name::<T>())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Whole<T>, E> {
        T::try_from(value).map(Whole).map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Whole<T>, E> {
        T::try_from(value).map(Whole).map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Whole<T>, E> {
        if value.fract() == 0.0 && value.abs() < LARGE {
            return self.visit_i64(value as i64);
        }
        Err(E::invalid_type(Unexpected::Float(value), &self))
    }
}

impl<'de, T: TryFrom<i64> + TryFrom<u64>> Deserialize<'de> for Whole<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Whole<T>, D::Error> {
        deserializer.deserialize_any(WholeVisitor(PhantomData))
    }
}

/// A whole number.
pub(super) fn one<'de, D: Deserializer<'de>, T: TryFrom<i64> + TryFrom<u64>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Whole::deserialize(deserializer).map(|Whole(value)| value)
}

/// A whole number, or null.
pub(super) fn maybe<'de, D: Deserializer<'de>, T: TryFrom<i64> + TryFrom<u64>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Option::<Whole<T>>::deserialize(deserializer).map(|value| value.map(|Whole(value)| value))
}

/// Whole numbers.
pub(super) fn many<'de, D: Deserializer<'de>, T: TryFrom<i64> + TryFrom<u64>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let list = Vec::<Whole<T>>::deserialize(deserializer)?;
    Ok(list.into_iter().map(|Whole(value)| value).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<u32> {
        serde_json::from_str::<Whole<u32>>(text).ok().map(|Whole(value)| value)
    }

    #[test]
    fn floats_without_a_fraction_are_integers() {
        assert_eq!(read("5"), Some(5));
        assert_eq!(read("5.0"), Some(5));
        assert_eq!(read("4294967295.0"), Some(u32::MAX));
        for text in ["5.5", "-1", "-1.0", "4294967296", "1e300", "\"5\"", "null", "true"] {
            assert_eq!(read(text), None, "{text}");
        }
        let wide = |text: &str| serde_json::from_str::<Whole<i64>>(text).ok().map(|Whole(value)| value);
        assert_eq!(wide("-9223372036854775808"), Some(i64::MIN));
        assert_eq!(wide("9223372036854775808"), None);
        assert_eq!(wide("1e16"), Some(10_000_000_000_000_000));
        assert_eq!(wide("-9223372036854775809"), None);
    }
}
