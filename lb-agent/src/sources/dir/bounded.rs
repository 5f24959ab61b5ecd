//! Values of which there are not too many. Pure.
//!
//! What is read but not understood yet takes up to fifty times the memory of its text, so one object
//! must not have as many values as a file has room for. The API server stores none of that size.

use std::{cell::Cell, fmt};

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// Most values of one object; below 200 MB. An EndpointSlice with all that the API allows has 20,000.
pub(super) const MOST: usize = 250_000;

/// How many values an object may still have.
pub(super) struct Left(Cell<usize>);

impl Left {
    /// Of an object of which none was read yet.
    pub(super) const fn all() -> Self {
        Self(Cell::new(MOST))
    }
}

/// A value of that object.
#[derive(Clone, Copy)]
pub(super) struct Bounded<'a>(pub(super) &'a Left);

impl Bounded<'_> {
    fn count<E: Error>(self, value: impl Into<Value>) -> Result<Value, E> {
        let Some(left) = self.0.0.get().checked_sub(1) else {
            return Err(E::custom(format_args!(
                "an object has more than {MOST} values, the most that one may have: split it"
            )));
        };
        self.0.0.set(left);
        Ok(value.into())
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.count(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.count(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.count(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.count(value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.count(value)
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        self.count(value)
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.count(())
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.count(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(self)? {
            values.push(value);
        }
        self.count(values)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = map.next_key()? {
            values.insert(key, map.next_value_seed(self)?);
        }
        self.count(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, most: usize) -> Result<Value, String> {
        let left = Left(Cell::new(most));
        let mut json = serde_json::Deserializer::from_str(text);
        Bounded(&left).deserialize(&mut json).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_read_is_what_is_there() {
        let text = r#"{"a": [null, true, 1, -1, 1.5, "x", []], "b": {"c": {}}}"#;
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(read(text, 100), Ok(value.clone()));
        assert_eq!(read(text, 11), Ok(value), "eleven values");
        let error = read(text, 10).unwrap_err();
        assert!(error.starts_with("an object has more than"), "{error}");
        assert!(read(r#"{"a": "#, 10).unwrap_err().starts_with("EOF"));
    }
}
