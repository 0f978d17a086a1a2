//! A GGUF file is what it is; shards become one file.

use super::{Source, SourceTensor};
use crate::file::gguf_write::OwnedValue;
use crate::load::open::OpenGguf;
use crate::load::{LoadedModel, TokenizerSource};
use crate::quantize::QuantizeError;

/// What only a file of several has.
const SPLIT_PREFIX: &str = "split.";

pub(super) fn source(opened: &OpenGguf, model: &LoadedModel) -> Result<Source, QuantizeError> {
    let keys = opened
        .head
        .keys()
        .filter(|key| !key.starts_with(SPLIT_PREFIX))
        .filter_map(|key| Some((key.to_owned(), OwnedValue::copy_of(&opened.head.value(key)?))))
        .collect();
    let store = &opened.store;
    let mut tensors = Vec::with_capacity(store.tensors.len());
    for (name, stored) in &store.tensors {
        let matrix = store.whole(name)?;
        tensors.push((
            (stored.file, stored.range.start),
            SourceTensor::new(name.clone(), stored.shape.clone(), vec![matrix]),
        ));
    }
    // The order of the files: sequential reading, and the order people expect.
    tensors.sort_by_key(|&(place, _)| place);
    Ok(Source {
        arch: model.spec.arch.clone(),
        blocks: model.spec.layers.len() + usize::from(model.spec.mtp.is_some()),
        tied_head: model.spec.tied_head,
        keys,
        vocabulary: match &model.tokenizer {
            TokenizerSource::Gguf(text) => Some(text.vocabulary.clone()),
            _ => None,
        },
        vocab: model.spec.vocab,
        tensors: tensors.into_iter().map(|(_, tensor)| tensor).collect(),
        files: store.files.iter().map(|file| file.path.clone()).collect(),
        composes_text: None,
    })
}
