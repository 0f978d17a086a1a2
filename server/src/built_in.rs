//! The model inside the binary, used where no other is named.

/// Bytes aligned as tensor data in a GGUF file expects.
#[repr(align(64))]
struct Aligned<T: ?Sized>(T);

static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("../assets/delta-48m-Q4_K_M.gguf"));

/// Name by which the built-in model goes.
pub const NAME: &str = "delta-48m";

/// The built-in model, a GGUF file.
#[must_use]
pub fn bytes() -> &'static [u8] {
    &MODEL.0
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_model_is_an_aligned_gguf_file() {
        let bytes = super::bytes();
        assert_eq!(&bytes[..4], b"GGUF");
        assert_eq!(bytes.as_ptr().align_offset(64), 0);
    }
}
