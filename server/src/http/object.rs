//! Objects in JSON. What reads structures would also take lists of their values, which no API means.

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error};
use serde_json::{Map, Value};

/// An object, or null.
pub(super) fn maybe<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let fields = Option::<Map<String, Value>>::deserialize(deserializer)?;
    fields.map(|fields| T::deserialize(Value::Object(fields)).map_err(D::Error::custom)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Inner {
        #[serde(default)]
        flag: bool,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Outer {
        #[serde(default, deserialize_with = "maybe")]
        inner: Option<Inner>,
    }

    #[test]
    fn lists_are_no_objects() {
        let read = |text: &str| serde_json::from_str::<Outer>(text).ok().map(|outer| outer.inner);
        assert_eq!(read("{}"), Some(None));
        assert_eq!(read("{\"inner\": null}"), Some(None));
        assert_eq!(read("{\"inner\": {\"flag\": true}}"), Some(Some(Inner { flag: true })));
        for text in ["{\"inner\": []}", "{\"inner\": [true]}", "{\"inner\": {\"flag\": 1}}", "{\"inner\": 5}"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
