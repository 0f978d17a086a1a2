//! `millpond pull`: a model from the hub to this machine.

use serde_json::json;

use super::args::PullArgs;
use super::failure::{Interrupted, usage};
use super::interrupt::Interrupt;
use super::{models, output};
use crate::hub::HubError;
use crate::hub::reference::ModelRef;

/// Runs the command. What it prints is the path to load.
///
/// # Errors
/// Wrong usage; what the hub or the system says; Ctrl-C.
pub(crate) fn run(args: &PullArgs) -> anyhow::Result<()> {
    let model: ModelRef = args.model.parse().map_err(|error: HubError| usage(error.to_string()))?;
    let interrupt = Interrupt::install()?;
    let pulled = models::update(&model, args.hf_file.as_deref(), &args.hub, interrupt.clone());
    let pulled = pulled.map_err(|error| if interrupt.pressed() { Interrupted.into() } else { error })?;
    if args.json {
        return output::line(&serde_json::to_string_pretty(&json!({
            "model": model.to_string(),
            "path": pulled.path,
            "bytes": pulled.bytes,
            "files_fetched": pulled.fetched,
            "commit": pulled.commit,
        }))?);
    }
    output::line(&pulled.path.display().to_string())
}
