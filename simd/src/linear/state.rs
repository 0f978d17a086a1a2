//! The state as it is kept: in single precision, or rounded to 16 bits where it is folded into.

use half::bf16;

/// A state or a part of one, to be read. Arithmetic on it is in single precision whatever it is kept in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// `bf16`: what a fold computes is rounded to nearest, ties to even.
    Bf16(&'a [bf16]),
}

/// A state or a part of one, to be folded into.
#[derive(Debug)]
pub enum StateMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// Rounded as in [`State::Bf16`].
    Bf16(&'a mut [bf16]),
}

impl<'a> State<'a> {
    /// Values.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            State::F32(values) => values.len(),
            State::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `at` values, and the others.
    #[must_use]
    pub fn split_at(self, at: usize) -> (State<'a>, State<'a>) {
        match self {
            State::F32(values) => {
                let (left, right) = values.split_at(at);
                (State::F32(left), State::F32(right))
            }
            State::Bf16(values) => {
                let (left, right) = values.split_at(at);
                (State::Bf16(left), State::Bf16(right))
            }
        }
    }

    /// The values, widened.
    #[must_use]
    pub fn to_f32(self) -> Vec<f32> {
        match self {
            State::F32(values) => values.to_vec(),
            State::Bf16(values) => values.iter().map(|value| value.to_f32()).collect(),
        }
    }
}

impl<'a> StateMut<'a> {
    /// Values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same, to be read.
    #[must_use]
    pub fn shared(&self) -> State<'_> {
        match self {
            StateMut::F32(values) => State::F32(values),
            StateMut::Bf16(values) => State::Bf16(values),
        }
    }

    /// The same for a shorter time.
    #[must_use]
    pub fn reborrow(&mut self) -> StateMut<'_> {
        match self {
            StateMut::F32(values) => StateMut::F32(values),
            StateMut::Bf16(values) => StateMut::Bf16(values),
        }
    }

    /// The first `at` values, and the others.
    #[must_use]
    pub fn split_at(self, at: usize) -> (StateMut<'a>, StateMut<'a>) {
        match self {
            StateMut::F32(values) => {
                let (left, right) = values.split_at_mut(at);
                (StateMut::F32(left), StateMut::F32(right))
            }
            StateMut::Bf16(values) => {
                let (left, right) = values.split_at_mut(at);
                (StateMut::Bf16(left), StateMut::Bf16(right))
            }
        }
    }
}
