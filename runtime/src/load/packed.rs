//! Models in packed files.

use std::path::Path;
use std::sync::Arc;

use millpond_models::names::Names;
use millpond_models::{ModelSpec, registry};

use super::build::Builder;
use super::error::LoadError;
use super::store::TensorStore;
use super::tokenizer::TokenizerSource;
use super::{LoadedModel, file_list, file_type_of, spec_error};
use crate::file::packed::Packed;
use crate::weights::ByteSource;

/// An opened packed model.
pub(crate) struct OpenPacked {
    pub(crate) packed: Packed,
    pub(crate) store: TensorStore,
}

/// Opens a packed file whose bytes are at hand.
pub(crate) fn open(path: &Path, source: Arc<dyn ByteSource>) -> Result<OpenPacked, LoadError> {
    let packed =
        Packed::parse(source).map_err(|source| LoadError::Packed { path: path.to_owned(), source })?;
    let mut store = TensorStore::default();
    store.add_packed(path, &packed)?;
    Ok(OpenPacked { packed, store })
}

pub(crate) fn load(path: &Path, opened: &OpenPacked) -> Result<LoadedModel, LoadError> {
    let OpenPacked { packed, store } = opened;
    let spec = spec(path, opened)?;
    let names = Names::Gguf { layers: spec.layers.len() };
    let weights = Builder { spec: &spec, store, names: &names }.model()?;
    let tokenizer = TokenizerSource::of_packed(path, packed, spec.vocab)?;
    let name = packed.keys().text("general.name").unwrap_or_default().map(str::to_owned);
    let file_type = file_type_of(packed.keys());
    Ok(LoadedModel { spec, weights, tokenizer, files: file_list(store), name, file_type })
}

fn spec(path: &Path, opened: &OpenPacked) -> Result<ModelSpec, LoadError> {
    registry::from_gguf(opened.packed.keys(), &|name| opened.store.has(name))
        .map_err(|source| spec_error(path, source))
}
