//! The weights of a model on a device: matrices as the blocks of their file, vectors as floats.

use std::collections::HashMap;
use std::sync::Arc;

use millpond::backend::BackendError;
use millpond::weights::{
    AttentionWeights, FfnWeights, GluWeights, LayerWeights, LinearInput, LinearWeights, Matrix, MixerWeights,
    ModelWeights,
};
use millpond_models::LinearSpec;
use millpond_simd::quant::QFormat;

use super::failed;
use crate::device::{Device, Memory};

/// Bytes behind a matrix that kernels may read, because they load whole words.
const PADDING: usize = 16;

/// A matrix, or the same matrix of every expert one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeviceMatrix {
    pub(super) address: u64,
    pub(super) format: QFormat,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_bytes: usize,
}

impl DeviceMatrix {
    /// Bytes of one expert.
    pub(super) fn bytes(&self) -> usize {
        self.rows * self.row_bytes
    }
}

/// A linear mixer's matrices, split into their parts whatever the file has.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceLinear {
    pub(super) qkv: DeviceMatrix,
    pub(super) z: DeviceMatrix,
    pub(super) beta: DeviceMatrix,
    pub(super) alpha: DeviceMatrix,
    pub(super) norm: u64,
    pub(super) out: DeviceMatrix,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceAttention {
    pub(super) q: DeviceMatrix,
    pub(super) k: DeviceMatrix,
    pub(super) v: DeviceMatrix,
    pub(super) q_norm: u64,
    pub(super) k_norm: u64,
    pub(super) out: DeviceMatrix,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum DeviceMixer {
    Linear(DeviceLinear),
    Attention(DeviceAttention),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceGlu {
    pub(super) gate: DeviceMatrix,
    pub(super) up: DeviceMatrix,
    pub(super) down: DeviceMatrix,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum DeviceFfn {
    Dense(DeviceGlu),
    Moe { router: DeviceMatrix, experts: DeviceGlu, shared: Option<(DeviceGlu, DeviceMatrix)> },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceLayer {
    pub(super) mixer_norm: u64,
    pub(super) mixer: DeviceMixer,
    pub(super) ffn_norm: u64,
    pub(super) ffn: DeviceFfn,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceMtp {
    pub(super) embedding_norm: u64,
    pub(super) hidden_norm: u64,
    pub(super) fc: DeviceMatrix,
    pub(super) layer: DeviceLayer,
    pub(super) output_norm: u64,
    pub(super) embedding: DeviceMatrix,
    pub(super) output: DeviceMatrix,
}

/// All weights.
pub(super) struct DeviceWeights {
    pub(super) embedding: DeviceMatrix,
    pub(super) layers: Vec<DeviceLayer>,
    pub(super) output_norm: u64,
    pub(super) output: DeviceMatrix,
    pub(super) mtp: Option<DeviceMtp>,
    /// What the addresses point into.
    memory: Vec<Memory>,
}

impl DeviceWeights {
    /// Bytes on the device.
    pub(super) fn bytes(&self) -> usize {
        self.memory.iter().map(Memory::bytes).sum()
    }
}

/// Copies weights to a device. Matrices that share their bytes in the file share them there.
struct Upload<'a> {
    device: &'a Arc<dyn Device>,
    memory: Vec<Memory>,
    /// By first byte and length.
    known: HashMap<(usize, usize), DeviceMatrix>,
}

/// Uploads a model. `specs` are those of its linear layers, in order.
pub(super) fn upload(
    device: &Arc<dyn Device>,
    weights: &ModelWeights,
    specs: &[LinearSpec],
) -> Result<DeviceWeights, BackendError> {
    let mut upload = Upload { device, memory: Vec::new(), known: HashMap::new() };
    let embedding = upload.matrix(&weights.embedding)?;
    let mut specs = specs.iter();
    let mut layers = Vec::with_capacity(weights.layers.len());
    for layer in &weights.layers {
        layers.push(upload.layer(layer, &mut specs)?);
    }
    let output_norm = upload.vector(&weights.output_norm)?;
    let output = upload.matrix(&weights.output)?;
    let mtp = match &weights.mtp {
        None => None,
        Some(mtp) => Some(DeviceMtp {
            embedding_norm: upload.vector(&mtp.embedding_norm)?,
            hidden_norm: upload.vector(&mtp.hidden_norm)?,
            fc: upload.matrix(&mtp.fc)?,
            layer: upload.layer(&mtp.layer, &mut specs)?,
            output_norm: upload.vector(&mtp.output_norm)?,
            embedding: upload.matrix(&mtp.embedding)?,
            output: upload.matrix(&mtp.output)?,
        }),
    };
    Ok(DeviceWeights { embedding, layers, output_norm, output, mtp, memory: upload.memory })
}

impl Upload<'_> {
    fn vector(&mut self, values: &[f32]) -> Result<u64, BackendError> {
        let memory = Memory::of(self.device, values).map_err(failed)?;
        let address = memory.address();
        self.memory.push(memory);
        Ok(address)
    }

    /// Room for `bytes` bytes of weights.
    fn room(&mut self, bytes: usize) -> Result<&mut Memory, BackendError> {
        let memory = Memory::new(self.device, bytes + PADDING).map_err(failed)?;
        self.memory.push(memory);
        Ok(self.memory.last_mut().expect("just pushed"))
    }

    fn matrix(&mut self, matrix: &Matrix) -> Result<DeviceMatrix, BackendError> {
        let bytes = matrix.bytes();
        let key = (bytes.as_ptr().addr(), bytes.len());
        if let Some(known) = self.known.get(&key) {
            return Ok(*known);
        }
        let place = self.place(matrix, bytes)?;
        self.known.insert(key, place);
        Ok(place)
    }

    /// Puts the bytes of a matrix with the shape of `matrix` on the device.
    fn place(&mut self, matrix: &Matrix, bytes: &[u8]) -> Result<DeviceMatrix, BackendError> {
        check(matrix)?;
        let memory = self.room(bytes.len())?;
        memory.write(0, bytes).map_err(failed)?;
        Ok(DeviceMatrix {
            address: memory.address(),
            format: matrix.format(),
            rows: bytes.len() / matrix.row_bytes().max(1),
            cols: matrix.cols(),
            row_bytes: matrix.row_bytes(),
        })
    }

    /// Rows of a matrix in another order.
    fn rows(
        &mut self,
        matrix: &Matrix,
        rows: impl Iterator<Item = usize>,
    ) -> Result<DeviceMatrix, BackendError> {
        let mut bytes = Vec::new();
        for row in rows {
            bytes.extend_from_slice(matrix.row_range(row..row + 1));
        }
        self.place(matrix, &bytes)
    }

    fn layer<'s>(
        &mut self,
        layer: &LayerWeights,
        specs: &mut impl Iterator<Item = &'s LinearSpec>,
    ) -> Result<DeviceLayer, BackendError> {
        let mixer = match &layer.mixer {
            MixerWeights::Linear(mixer) => {
                let spec = specs.next().expect("weights are loaded to the specification");
                DeviceMixer::Linear(self.linear(mixer, spec)?)
            }
            MixerWeights::Attention(mixer) => DeviceMixer::Attention(self.attention(mixer)?),
        };
        Ok(DeviceLayer {
            mixer_norm: self.vector(&layer.mixer_norm)?,
            mixer,
            ffn_norm: self.vector(&layer.ffn_norm)?,
            ffn: self.feed_forward(&layer.ffn)?,
        })
    }

    fn linear(&mut self, weights: &LinearWeights, spec: &LinearSpec) -> Result<DeviceLinear, BackendError> {
        let norm = self.vector(&weights.norm)?;
        let out = self.matrix(&weights.out)?;
        let (qkv, z, beta, alpha) = match &weights.input {
            LinearInput::Split { qkv, z, beta, alpha } => {
                (self.matrix(qkv)?, self.matrix(z)?, self.matrix(beta)?, self.matrix(alpha)?)
            }
            LinearInput::SplitFusedGates { qkv, z, ba } => {
                let (beta, alpha) = self.gates(ba, spec)?;
                (self.matrix(qkv)?, self.matrix(z)?, beta, alpha)
            }
            LinearInput::ByKeyHead { qkvz, ba } => {
                let (beta, alpha) = self.gates(ba, spec)?;
                let (dk, group) = (spec.key_dim, spec.value_heads / spec.key_heads * spec.value_dim);
                let part = |first: usize, len: usize| {
                    let width = 2 * dk + 2 * group;
                    (0..spec.key_heads).flat_map(move |head| head * width + first..head * width + first + len)
                };
                let qkv = part(0, dk).chain(part(dk, dk)).chain(part(2 * dk, group));
                let qkv = self.rows(qkvz, qkv)?;
                let z = self.rows(qkvz, part(2 * dk + group, group))?;
                (qkv, z, beta, alpha)
            }
        };
        Ok(DeviceLinear { qkv, z, beta, alpha, norm, out })
    }

    /// From rows `beta (r), alpha (r)` by key head to both in the order of value heads.
    fn gates(
        &mut self,
        both: &Matrix,
        spec: &LinearSpec,
    ) -> Result<(DeviceMatrix, DeviceMatrix), BackendError> {
        let group = spec.value_heads / spec.key_heads;
        let part = |first: usize| {
            (0..spec.key_heads)
                .flat_map(move |head| head * 2 * group + first..head * 2 * group + first + group)
        };
        Ok((self.rows(both, part(0))?, self.rows(both, part(group))?))
    }

    fn attention(&mut self, weights: &AttentionWeights) -> Result<DeviceAttention, BackendError> {
        Ok(DeviceAttention {
            q: self.matrix(&weights.q)?,
            k: self.matrix(&weights.k)?,
            v: self.matrix(&weights.v)?,
            q_norm: self.vector(&weights.q_norm)?,
            k_norm: self.vector(&weights.k_norm)?,
            out: self.matrix(&weights.out)?,
        })
    }

    fn glu(&mut self, weights: &GluWeights) -> Result<DeviceGlu, BackendError> {
        Ok(DeviceGlu {
            gate: self.matrix(&weights.gate)?,
            up: self.matrix(&weights.up)?,
            down: self.matrix(&weights.down)?,
        })
    }

    fn feed_forward(&mut self, weights: &FfnWeights) -> Result<DeviceFfn, BackendError> {
        let moe = match weights {
            FfnWeights::Dense(glu) => return Ok(DeviceFfn::Dense(self.glu(glu)?)),
            FfnWeights::Moe(moe) => moe,
        };
        let experts = DeviceGlu {
            gate: self.experts(&moe.experts, |glu| &glu.gate)?,
            up: self.experts(&moe.experts, |glu| &glu.up)?,
            down: self.experts(&moe.experts, |glu| &glu.down)?,
        };
        let shared = match &moe.shared {
            None => None,
            Some((glu, gate)) => Some((self.glu(glu)?, self.matrix(gate)?)),
        };
        Ok(DeviceFfn::Moe { router: self.matrix(&moe.router)?, experts, shared })
    }

    /// One matrix of every expert, one after the other.
    fn experts(
        &mut self,
        experts: &[GluWeights],
        part: fn(&GluWeights) -> &Matrix,
    ) -> Result<DeviceMatrix, BackendError> {
        let Some(first) = experts.first().map(part) else {
            return Err(BackendError::Unsupported { what: "experts", found: 0, max: usize::MAX });
        };
        check(first)?;
        let bytes = first.bytes().len();
        let memory = self.room(bytes * experts.len())?;
        for (index, expert) in experts.iter().map(part).enumerate() {
            if (expert.format(), expert.rows(), expert.cols()) != (first.format(), first.rows(), first.cols())
            {
                return Err(BackendError::Device("the experts of a layer have different formats".to_owned()));
            }
            memory.write(index * bytes, expert.bytes()).map_err(failed)?;
        }
        Ok(DeviceMatrix {
            address: memory.address(),
            format: first.format(),
            rows: first.rows(),
            cols: first.cols(),
            row_bytes: first.row_bytes(),
        })
    }
}

/// Kernels take four floats at a time.
fn check(matrix: &Matrix) -> Result<(), BackendError> {
    let cols = matrix.cols();
    if matrix.format().block_len() == 1 && !cols.is_multiple_of(4) {
        return Err(BackendError::Device(format!(
            "matrices of {cols} columns are not supported: no multiple of 4"
        )));
    }
    Ok(())
}
