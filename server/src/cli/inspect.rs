//! `millpond inspect`: what is inside a model's files, and the memory it will need.

use millpond::load::{Inspection, ModelSummary, inspect, inspect_built_in};

use super::args::InspectArgs;
use super::failure::usage;
use super::{models, output};
use crate::built_in;

/// Runs the command.
///
/// # Errors
/// Files that cannot be read, or that are no model at all.
pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let path = args.path.as_deref().or(args.model.as_deref()).map(models::path_of);
    let intact = || path.as_deref().map_or(Ok(false), millpond::load::verify);
    if args.verify && !intact()? {
        return Err(usage("--verify: only packed files have checksums"));
    }
    let seen = match &path {
        Some(path) => inspect(path)?,
        None => inspect_built_in(built_in::bytes(), built_in::NAME)?,
    };
    if args.json {
        output::line(&serde_json::to_string_pretty(&seen)?)?;
    } else {
        print_text(&seen, args.all)?;
    }
    match &seen.problem {
        Some(problem) => anyhow::bail!("this model cannot be run: {problem}"),
        None => Ok(()),
    }
}

fn print_text(seen: &Inspection, all: bool) -> anyhow::Result<()> {
    let mut lines = vec![
        row("name", seen.name.as_deref().unwrap_or("-")),
        row("architecture", seen.architecture.as_deref().unwrap_or("-")),
        row("format", &seen.format),
    ];
    for file in &seen.files {
        lines.push(row("file", &format!("{} ({})", file.path.display(), output::bytes(file.bytes))));
    }
    for share in &seen.types {
        let text = format!("{:8} {:5} tensors, {}", share.name, share.tensors, output::bytes(share.bytes));
        lines.push(row("type", &text));
    }
    if let Some(model) = &seen.model {
        lines.extend(model_rows(model));
    }
    if all {
        lines.extend(seen.metadata.iter().map(|(key, value)| row(key, value)));
        lines.extend(seen.tensors.iter().map(|tensor| {
            row(&tensor.name, &format!("{} {:?} {}", tensor.kind, tensor.shape, output::bytes(tensor.bytes)))
        }));
    }
    lines.iter().try_for_each(|line| output::line(line))
}

fn model_rows(model: &ModelSummary) -> Vec<String> {
    let mut rows = vec![
        row("parameters", &format!("{:.1} M", model.parameters as f64 / 1e6)),
        row("vocabulary", &model.vocab.to_string()),
        row("context", &format!("{} tokens", model.context)),
        row(
            "layers",
            &format!(
                "{} ({} linear, {} attention{})",
                model.layers,
                model.linear_layers,
                model.attention_layers,
                if model.mtp { ", and a multi-token-prediction head" } else { "" }
            ),
        ),
        row("hidden", &model.hidden.to_string()),
    ];
    if let Some([key_heads, value_heads, key_dim, value_dim]) = model.linear_heads {
        rows.push(row(
            "linear heads",
            &format!("{key_heads} key, {value_heads} value, {key_dim} x {value_dim}"),
        ));
    }
    if let Some([heads, kv_heads, head_dim]) = model.attention_heads {
        rows.push(row("attention heads", &format!("{heads} query, {kv_heads} key/value of {head_dim}")));
    }
    if let Some([experts, used]) = model.experts {
        rows.push(row("experts", &format!("{experts}, {used} for each token")));
    }
    rows.extend(memory_rows(model));
    rows
}

fn memory_rows(model: &ModelSummary) -> Vec<String> {
    let bytes = |count: usize| output::bytes(count as u64);
    vec![
        row("weights", &output::bytes(model.weight_bytes)),
        row(
            "state per stream",
            &format!("{}, none below {} tokens", bytes(model.state_bytes), model.break_even_tokens),
        ),
        row("buffer per token", &bytes(model.log_bytes_per_token)),
        row(
            "cache per token",
            &format!(
                "{} in half precision ({} for the whole context)",
                bytes(model.kv_bytes_per_token),
                bytes(model.kv_bytes_per_token.saturating_mul(model.context))
            ),
        ),
    ]
}

fn row(name: &str, value: &str) -> String {
    format!("{name:18} {value}")
}
