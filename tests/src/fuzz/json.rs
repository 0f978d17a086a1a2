//! Any bytes as the JSON files of a checkpoint.

use std::hint::black_box;

use millpond::text::Tokenizer;
use millpond_models::registry;

/// Any bytes as a `config.json`, of a checkpoint with all tensors and of one with none.
pub fn config(data: &[u8]) {
    let Ok(config) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    for answer in [true, false] {
        let Ok(spec) = registry::from_config(&config, &|_| answer) else { continue };
        assert!(!spec.layers.is_empty());
        for layer in &spec.layers {
            if let Some(linear) = layer.mixer.as_linear() {
                assert!(linear.key_head_of(linear.value_heads - 1) < linear.key_heads);
                black_box((linear.state_bytes(), linear.log_entry_bytes()));
            }
        }
    }
}

/// Any bytes as a `tokenizer.json`.
pub fn tokenizer_json(data: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_json(data, None) else { return };
    if let Ok(ids) = tokenizer.encode("text with <|specials|> \u{1f600} in it", true) {
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocabulary_size()));
        black_box(tokenizer.decode(&ids, false));
    }
}
