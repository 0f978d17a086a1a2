//! A model as a process loads it once: specification, weights, tokenizer, shared by reference.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::file::mmap::Access;
use crate::load::{self, FolderText, LoadedModel, TokenizerSource};
use crate::text::{ChatTemplate, TemplateError, TemplateSources, Tokenizer, TokenizerConfig, TokenizerError};
use crate::weights::{FfnWeights, GluWeights, LayerWeights, LinearInput, Matrix, MixerWeights, ModelWeights};

pub use crate::load::{LoadError, Loaded, Progress};
pub use millpond_models::ModelSpec;

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Read the files into memory instead of mapping them.
    pub no_mmap: bool,
    /// Map the files and keep them in memory, so that nothing of them is paged out. Where the system does not allow
    /// that, loading fails with an [`std::io::Error`] around a [`mmap::LockError`](crate::file::mmap::LockError).
    pub mlock: bool,
    /// A GGUF file with the multi-token-prediction head of a model that was published without it.
    pub mtp: Option<PathBuf>,
    /// Read every page of a mapped file at once, so that the first prompt need not wait for the disk.
    pub preload: bool,
    /// Told how far loading is; may give it up.
    pub progress: Option<Progress>,
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The weights or the specification.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tokenizer.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// The chat template.
    #[error("chat template: {0}")]
    Template(#[from] TemplateError),
    /// A text file beside the weights.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What there is to say about a loaded model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The name its files give, or that of the file.
    pub name: String,
    /// Where it was loaded from; absent for a model that is part of the program.
    pub path: Option<PathBuf>,
    /// What its file calls the mixture of formats, such as `Q4_K_M`; absent where the file does not say.
    pub file_type: Option<&'static str>,
    /// Formats of its matrices, most bytes first.
    pub formats: Vec<&'static str>,
    /// Bytes of its files.
    pub bytes: u64,
    /// Parameters of all its matrices.
    pub parameters: u64,
    /// Tells models apart: a hash of the shapes, the formats and a sample of the weights.
    pub fingerprint: u64,
}

/// A loaded model. Several engines may share it.
///
/// ```
/// use millpond::model::{LoadOptions, Model};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/assets/delta-48m-Q4_K_M.gguf");
/// let model = Model::load(path.as_ref(), &LoadOptions::default())?;
/// println!("{}: {} parameters, context of {}", model.info.name, model.info.parameters, model.spec.context);
///
/// // What cannot be loaded is an error that names the file and what is wrong with it.
/// let error = Model::load("Cargo.toml".as_ref(), &LoadOptions::default()).unwrap_err();
/// assert!(error.to_string().contains("Cargo.toml"));
/// # Ok::<(), millpond::model::ModelError>(())
/// ```
pub struct Model {
    /// What it is.
    pub spec: Arc<ModelSpec>,
    /// Its weights.
    pub weights: Arc<ModelWeights>,
    /// Its tokenizer; a model without one takes and gives token ids only.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Its chat template; absent where the model has no notion of turns.
    pub template: Option<ChatTemplate>,
    /// Name, size, formats.
    pub info: ModelInfo,
}

impl Model {
    /// Loads a model from a GGUF file, a packed file or a Hugging Face folder.
    ///
    /// # Errors
    /// [`ModelError`], naming the file and what is wrong with it.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Arc<Model>, ModelError> {
        let access = match (options.no_mmap, options.mlock) {
            (true, _) => Access::Read,
            (false, true) => Access::Locked,
            (false, false) => Access::Map,
        };
        let LoadOptions { mtp, preload, progress, .. } = options.clone();
        let options = load::LoadOptions { access, mtp, preload, progress };
        let loaded = load::load_model(path, &options)?;
        let fallback = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        Model::from_loaded(loaded, Some(path.to_owned()), fallback)
    }

    /// Loads a GGUF file that is part of the program.
    ///
    /// # Errors
    /// [`ModelError`] as for [`Model::load`].
    pub fn from_static(bytes: &'static [u8]) -> Result<Arc<Model>, ModelError> {
        Model::from_loaded(load::load_built_in(bytes)?, None, None)
    }

    fn from_loaded(
        loaded: LoadedModel,
        path: Option<PathBuf>,
        fallback: Option<String>,
    ) -> Result<Arc<Model>, ModelError> {
        let LoadedModel { spec, weights, tokenizer, files, name, file_type } = loaded;
        let summary = Summary::of(&spec, &weights);
        let info = ModelInfo {
            name: name.filter(|name| !name.is_empty()).or(fallback).unwrap_or_else(|| "built-in".to_owned()),
            path,
            file_type,
            formats: summary.formats(),
            bytes: files.iter().map(|file| file.bytes).sum(),
            parameters: summary.parameters,
            fingerprint: summary.hash.0,
        };
        let (tokenizer, template) = text_of(tokenizer)?.unzip();
        Ok(Arc::new(Model {
            spec: Arc::new(spec),
            weights: Arc::new(weights),
            tokenizer: tokenizer.map(Arc::new),
            template: template.flatten(),
            info,
        }))
    }
}

impl ModelInfo {
    /// What its weights are kept in: the file's own word for it, or the format of most of their bytes.
    #[must_use]
    pub fn quantization(&self) -> Option<&'static str> {
        self.file_type.or_else(|| self.formats.first().copied())
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("info", &self.info).finish_non_exhaustive()
    }
}

/// The tokenizer of a model and its chat template.
type Text = (Tokenizer, Option<ChatTemplate>);

fn text_of(source: TokenizerSource) -> Result<Option<Text>, ModelError> {
    match source {
        TokenizerSource::Absent => Ok(None),
        TokenizerSource::Gguf(text) => {
            let tokenizer = Tokenizer::from_gguf(text.vocabulary)?;
            let sources = TemplateSources { gguf: text.chat_template.as_deref(), ..Default::default() };
            let template = ChatTemplate::from_loaded(sources, &tokenizer)?;
            Ok(Some((tokenizer, template)))
        }
        TokenizerSource::Tables(text) => {
            let tokenizer = Tokenizer::from_tables(text.tables)?;
            let sources = TemplateSources { gguf: text.chat_template.as_deref(), ..Default::default() };
            let template = ChatTemplate::from_loaded(sources, &tokenizer)?;
            Ok(Some((tokenizer, template)))
        }
        TokenizerSource::Folder(text) => folder_text(&text).map(Some),
    }
}

fn folder_text(text: &FolderText) -> Result<Text, ModelError> {
    let failed = |path: &Path, source| ModelError::Io { path: path.to_owned(), source };
    let read = |path: &Path| std::fs::read(path).map_err(|source| failed(path, source));
    let config = match &text.tokenizer_config {
        Some(path) => Some(TokenizerConfig::parse(&read(path)?)?),
        None => None,
    };
    let mut tokenizer = Tokenizer::from_json(&read(&text.tokenizer)?, config.as_ref())?;
    for &id in &text.end_of_generation {
        tokenizer.add_end_of_generation(id)?;
    }
    let file = match &text.chat_template {
        Some(path) => Some(std::fs::read_to_string(path).map_err(|source| failed(path, source))?),
        None => None,
    };
    let config = config.as_ref().and_then(|config| config.chat_template.as_deref());
    let sources = TemplateSources { file: file.as_deref(), config, gguf: None };
    let template = ChatTemplate::from_loaded(sources, &tokenizer)?;
    Ok((tokenizer, template))
}

/// Fowler, Noll and Vo's hash, variant 1a, 64 bits.
#[derive(Clone, Copy)]
pub(crate) struct Fnv(pub(crate) u64);

impl Fnv {
    pub(crate) fn new() -> Fnv {
        Fnv(0xCBF2_9CE4_8422_2325)
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
    }
}

/// What one walk over the weights finds out.
struct Summary {
    hash: Fnv,
    parameters: u64,
    bytes_by_format: Vec<(&'static str, usize)>,
}

/// Bytes hashed at the start and at the end of a matrix: enough to tell models apart without reading them.
const SAMPLE: usize = 256;

impl Summary {
    fn of(spec: &ModelSpec, weights: &ModelWeights) -> Summary {
        let mut summary = Summary { hash: Fnv::new(), parameters: 0, bytes_by_format: Vec::new() };
        summary.hash.add(format!("{spec:?}").as_bytes());
        summary.matrix(&weights.embedding, true);
        if !spec.tied_head {
            summary.matrix(&weights.output, true);
        }
        for layer in weights.layers.iter().chain(weights.mtp.iter().map(|mtp| &mtp.layer)) {
            summary.layer(layer);
        }
        summary
    }

    fn matrix(&mut self, matrix: &Matrix, sampled: bool) {
        let bytes = matrix.bytes();
        self.parameters += matrix.rows() as u64 * matrix.cols() as u64;
        let name = matrix.format().name();
        match self.bytes_by_format.iter_mut().find(|(format, _)| *format == name) {
            Some((_, total)) => *total += bytes.len(),
            None => self.bytes_by_format.push((name, bytes.len())),
        }
        if sampled {
            self.hash.add(name.as_bytes());
            self.hash.add(&bytes[..bytes.len().min(SAMPLE)]);
            self.hash.add(&bytes[bytes.len().saturating_sub(SAMPLE)..]);
        }
    }

    fn glu(&mut self, weights: &GluWeights, sampled: bool) {
        for matrix in [&weights.gate, &weights.up, &weights.down] {
            self.matrix(matrix, sampled);
        }
    }

    fn layer(&mut self, layer: &LayerWeights) {
        match &layer.mixer {
            MixerWeights::Attention(mixer) => {
                for matrix in [&mixer.q, &mixer.k, &mixer.v, &mixer.out] {
                    self.matrix(matrix, true);
                }
            }
            MixerWeights::Linear(mixer) => {
                let inputs: Vec<&Matrix> = match &mixer.input {
                    LinearInput::Split { qkv, z, beta, alpha } => vec![qkv, z, beta, alpha],
                    LinearInput::ByKeyHead { qkvz, ba } => vec![qkvz, ba],
                    LinearInput::SplitFusedGates { qkv, z, ba } => vec![qkv, z, ba],
                };
                for matrix in inputs.into_iter().chain([&mixer.out]) {
                    self.matrix(matrix, true);
                }
            }
        }
        match &layer.ffn {
            FfnWeights::Dense(glu) => self.glu(glu, true),
            FfnWeights::Moe(moe) => {
                self.matrix(&moe.router, true);
                // One expert is sample enough: each read touches pages of the file.
                for (i, expert) in moe.experts.iter().enumerate() {
                    self.glu(expert, i == 0);
                }
                if let Some((shared, _)) = &moe.shared {
                    self.glu(shared, true);
                }
            }
        }
    }

    fn formats(&self) -> Vec<&'static str> {
        let mut formats = self.bytes_by_format.clone();
        formats.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        formats.into_iter().map(|(name, _)| name).collect()
    }
}
