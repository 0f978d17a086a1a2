//! CUDA backend of Millpond.
